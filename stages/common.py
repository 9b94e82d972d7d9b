"""What every stage file shares: its command line, its parameters, its scratch folder, and how it ends."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import digest, write_bytes

if TYPE_CHECKING:
    from torch import nn

RESULTS = Path("results")
SCRATCH = Path(".scratch")


def main(stage: Callable[..., None], *arguments: str) -> None:
    """Run a stage on `python -m stages.NAME ARGUMENTS`: bad input ends in one sentence, a stop says how to go on."""
    parser = argparse.ArgumentParser(prog=f"python -m {stage.__module__}", description=stage.__doc__)
    for argument in arguments:
        parser.add_argument(argument, help=f"a {argument} of params.yaml")
    given = vars(parser.parse_args())
    name = sys.modules["__main__"].__spec__.name.rpartition(".")[2]
    with guarded(name):
        params = config.read()
        for key, allowed in (("network", params.networks), ("method", params.prune.methods)):
            if key in given and given[key] not in allowed:
                raise UserError(f"{key} {given[key]!r} isn't in params.yaml, which has {', '.join(allowed)}")
        writable(RESULTS)
        stage(params, *given.values())


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Bad input ends in one sentence and status 2, a stop in one that says how to go on."""
    try:
        yield
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{error.strerror or error}; free space and writable folders are needed"
        print(f"{name}: error: {place}{reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from the last saved point", file=sys.stderr)
        sys.exit(130)


def writable(folder: Path) -> None:
    """Find out before any training that results can be written."""
    probe = folder / f".probe-{os.getpid()}"
    write_bytes(probe, b"probe")
    probe.unlink()


def scratch(stage: str, params: config.Params, *key: Any) -> Path:
    """The folder of an unfinished stage, named by all that its result depends on; files count by their contents."""
    machine = (params.seed, params.device, params.threads, params.precision)
    folder = SCRATCH / f"{stage}-{digest(stage, machine, *key)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def given_weights(params: config.Params, network: str, net: nn.Module) -> str:
    """Put the weights of train.NETWORK.checkpoint into `net`, in place; how they were read. UserError names the key."""
    from pipeline.weights import load_weights

    wanted = params.train[network].checkpoint
    try:
        return load_weights(Path(wanted), net, params.networks[network].factory)
    except UserError as error:
        raise UserError(f"train.{network}.checkpoint: {error}") from None


def images_of(network: str) -> list[Path]:
    """The files that say what the training and validation images are: they hold their checksums."""
    return [RESULTS / "prepare" / network / split / "index.json" for split in ("train", "validation")]


def finished(folder: Path) -> None:
    """The stage's results are written: nothing is left to go on with."""
    shutil.rmtree(folder, ignore_errors=True)


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """A section of the parameters as dotted keys, for the tracking store."""
    if hasattr(section, "model_dump"):
        section = section.model_dump(exclude_none=True)  # what isn't set is no parameter of the run
    if not isinstance(section, dict):
        return {prefix: section}
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
