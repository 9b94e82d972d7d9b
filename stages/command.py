"""A stage as a command: its arguments, its parameters, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline import config
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError
from pipeline.files import digest, write_bytes
from stages.common import RESULTS

if TYPE_CHECKING:
    from pipeline.training.device import Machine

MOST = 1024  # processes of a training, as `devices` in params.yaml
TORCHRUN = "where another variable of torchrun stands: torchrun sets all of them, and without it none is needed"
GRACE = 3.0  # s from asking a process to stop to making it


def main(stage: Callable[..., None], *arguments: str, trains: bool = False) -> None:
    """Run a stage on `python -m stages.NAME ARGUMENTS`: bad input ends in one sentence, a stop says how to go on.

    A stage that `trains` does so on several devices, when params.yaml says so or torchrun has begun it.
    """
    name = Path(sys.argv[0]).stem  # of `python -m`, the module's file
    parser = Parser(prog=f"python -m stages.{name}", description=stage.__doc__)
    for argument in arguments:
        parser.add_argument(argument, help=f"a {argument} of params.yaml")
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the run in MLflow ends with the stage
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks
            signal.signal(number, signal.default_int_handler)
    rank = os.environ.get("RANK", "") if os.environ.get("WORLD_SIZE") != "1" else ""
    with guarded(f"{name}, rank {rank}" if rank.isdigit() and rank != "0" else name):
        if "DVC_STAGE" in os.environ:
            end_with_parent()
        names = vars(parser.parse_args())
        params = config.read()
        for key, allowed in (("network", params.networks), ("method", params.methods)):
            if key in names and names[key] not in allowed:
                raise UserError(f"{key} {names[key]!r} isn't in params.yaml, which has {', '.join(allowed)}")
        if "network" in names:
            params.require(names["network"], *(["prepare"] if name == "prepare" else []))
        writable(RESULTS)
        several = processes(trains)
        if several > 1 and not trains:
            raise UserError(f"stages.{name} trains nothing: it runs in one process, without torchrun")
        if trains and (several > 1 or ("WORLD_SIZE" not in os.environ and params.devices > 1)):
            _with_others(stage, name, params, list(names.values()))
        else:
            stage(params, *names.values())


def processes(trains: bool) -> int:
    """How many processes torchrun has begun, 1 without it; UserError for what it would never set in the environment."""
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return 1
    size = _set("WORLD_SIZE", 1, MOST)
    if size > 1 and trains:
        _set("RANK", 0, size - 1)
        _set("MASTER_PORT", 1, 65_535)
        if not os.environ.get("MASTER_ADDR"):
            raise UserError(f"MASTER_ADDR is missing in the environment, {TORCHRUN}")
    for name, least, most in (("LOCAL_WORLD_SIZE", 1, size), ("LOCAL_RANK", 0, size - 1)):
        if name in os.environ:
            _set(name, least, most)
    return size


def _set(name: str, least: int, most: int) -> int:
    """A number of the environment."""
    value = os.environ.get(name)
    if value is None:
        raise UserError(f"{name} is missing in the environment, {TORCHRUN}")
    if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
        raise UserError(f"{name} is {value[:40]!r} in the environment; a number from {least} to {most} is allowed")
    return int(value)


def _with_others(stage: Callable[..., None], name: str, params: config.Params, names: list[str]) -> None:
    """Run a stage on several devices: rank 0 runs it, and the other processes take part in its trainings."""
    from pipeline.training import devices, loop
    from pipeline.training.setup import load_setup

    network = names[0]
    setup = load_setup(params, network, RESULTS)
    words = ["-m", f"stages.{name}", *names]
    with devices.joined(params.devices, words, setup.machine, _same(params, network, setup.machine)) as rank:
        devices.check_share(setup.recipe.batch, f"train.{network}.batch")
        if rank == 0:
            stage(params, *names)
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as rank 0 stops, so does this one
        for number in (signal.SIGTERM, signal.SIGHUP):  # also within PyTorch, where Python can't react
            signal.signal(number, signal.SIG_DFL)
        loop.serve(setup.train, setup.machine)


def _same(params: config.Params, network: str, machine: Machine) -> dict[str, str]:
    """What the processes of a training must have in common, as digests under the words for it."""
    import torch

    package = params.networks[network].factory.partition(":")[0].partition(".")[0]  # a user's own, in this folder
    files = [Path(f"{package}.py")]
    for room in ("pipeline", "stages", package):
        files += Path(room).rglob("*.py")
    return {
        "code": digest(*sorted(path for path in files if path.is_file())),
        "params.yaml": digest(params.model_dump()),
        "training images": digest(RESULTS / "prepare" / network / "train" / "index.json"),
        "PyTorch": torch.__version__,
        "device or precision": digest(machine.device.type, machine.bf16),
    }


def end_with_parent(parent: int | None = None, group: bool = False) -> None:
    """Stop this process, as by Ctrl-C, when the one that began it is gone, however that ended.

    Without `parent`, its process id, that is DVC, or the shell by which DVC began this stage. With `group` everything
    in this process group stops. What doesn't stop when asked is killed: files are whole or absent.
    """
    parents = [parent] if parent else _above()

    def stop(number: signal.Signals) -> None:
        os.killpg(0, number) if group else os.kill(os.getpid(), number)

    def watch() -> None:
        while parents and parents == ([os.getppid()] if parent else _above()):
            time.sleep(0.5)
        stop(signal.SIGINT)
        time.sleep(GRACE)
        stop(signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _above() -> list[int]:
    """The parent's process id, none when it is gone; with its own parent's where it is a shell with one command."""
    try:
        parent = psutil.Process(os.getppid())
        if parent.pid == 1 and os.getpgid(1) != os.getpgrp():  # init has taken this process in
            return []
        return [parent.pid, parent.ppid()] if "-c" in parent.cmdline() else [parent.pid]
    except (psutil.Error, ProcessLookupError):
        return []


def writable(folder: Path) -> None:
    """Find out before any training that results can be written."""
    probe = folder / ".probe"
    write_bytes(probe, b"probe")
    probe.unlink(missing_ok=True)  # another stage may have been faster
