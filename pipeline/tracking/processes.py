"""The process behind each run: a run's tags name it, and the runs of processes that are gone are closed."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
from mlflow import MlflowClient

CLOCK_SECONDS = 2.0  # what a process's start may seem to move by


def session() -> str:
    """Names the command that the stages of one chain share: a DVC experiment, `make repro`, or a dvc process."""
    named = os.environ.get("DVC_EXP_NAME") or os.environ.get("REPRO_SESSION")
    if named:
        return named
    for process in psutil.Process().parents():
        try:
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                return f"dvc-{process.pid}-{int(process.create_time())}"
        except psutil.Error:
            break
    return f"stage-{os.getpid()}-{int(time.time())}"


COMMANDS = ("dvc", "stages.dvc", "stages.repro")  # whose stages share a chain's run


def owner() -> psutil.Process:
    """The process of the command that the chain belongs to: `make repro`, else DVC, else this one."""
    above = [psutil.Process()]
    for process in above[0].parents():
        with suppress(psutil.Error):
            if any(Path(word).name in COMMANDS for word in process.cmdline()[:3]):
                above.append(process)
    return above[-1]


def process_tags(process: psutil.Process | None = None) -> dict[str, str]:
    """The tags that name a process; without one, this process."""
    process = process or psutil.Process()
    return {
        "process": f"{socket.gethostname()}:{process.pid}",
        "process.began": f"{process.create_time():.2f}",  # seconds since 1970
        "process.machine": machine(),
        "mlflow.user": os.environ.get("USER", ""),
    }


def machine() -> str:
    """Names the space that process ids are unique in: this start of the machine, and this container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def gone(tags: dict[str, str]) -> bool:
    """Whether the process that a run's tags name is gone. One that can't be seen from here counts as alive."""
    host, _, pid = tags.get("process", "").rpartition(":")
    if not pid.isdigit():
        return False
    its_machine, here = tags.get("process.machine", ""), machine()
    if its_machine and its_machine != here:  # an earlier start of this machine, unless another one has the same name
        return host == socket.gethostname() and its_machine.split(" ")[0] != here.split(" ")[0]
    if not its_machine and host != socket.gethostname():
        return False
    try:
        began = psutil.Process(int(pid)).create_time()
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):
        return False
    # the clock may have been set since: it moves all such times; two processes of one id are further apart
    return "process.began" in tags and abs(began - float(tags["process.began"])) > CLOCK_SECONDS


def close_orphaned_runs(client: MlflowClient, experiment: str) -> None:
    """End the runs of killed processes, which couldn't do so themselves, and the chain's run above them, as KILLED."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if not gone(run.data.tags):
            continue
        client.set_terminated(run.info.run_id, "KILLED")
        above = run.data.tags.get("mlflow.parentRunId")
        if above:
            parent = client.get_run(above)
            if parent.data.tags.get("level") == "chain" and parent.info.status in ("RUNNING", "FINISHED"):
                client.set_terminated(above, "KILLED")  # FINISHED by a stage before the one that was killed
