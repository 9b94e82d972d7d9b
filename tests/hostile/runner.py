"""What every hostile input must come to: one sentence that names the thing, status 2, and a tree that is as it was.

A case is a line in one of the tables beside this file. It runs as the command that a user gives, in a small chain's
folder of its own, in a process that is forked from one which has the large libraries loaded.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chains import ENVIRONMENT, ROOT, SPLITS, checkout, tiny

LOADED = ["torch", "torch.export", "torchvision", "mlflow", "optuna", "skimage.metrics", "pydantic", "ruamel.yaml"]
TIMEOUT = 3600  # s; against a hang, not against a busy machine


@dataclass(frozen=True)
class Hostile:
    """A hostile input: what it is, the command that meets it, and what the command's one sentence must hold."""

    name: str
    command: str  # "stages.check", "stages.train edsr": what stands after python -m
    says: tuple[str, ...]  # each must be in the sentence: the file, key or layer; what is wrong; what is allowed
    params: dict[str, Any] | None = None  # changes of params.yaml, dotted keys with __ for dots
    make: Callable[[Path], Any] | None = None  # puts the hostile thing into the folder, given its path
    environment: tuple[tuple[str, str], ...] = ()
    status: int = 2

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def base(folder: Path) -> Path:
    """The files of a small chain that nothing has run in: EDSR and SID, ten photographs."""
    return checkout(folder, tiny(ROOT / "params.yaml", run__methods=["A", "D"]))


def command(folder: Path, words: str, environment: tuple[tuple[str, str], ...] = ()) -> Ended:
    """Run `python -m WORDS` in a folder, as a user does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    out, err = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    process = context.Process(target=_run, args=(str(folder), words.split(" "), dict(environment), str(out), str(err)))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{words} hangs: {err.read_text()}")
    ended = Ended(process.exitcode or 0, out.read_text(errors="replace"), err.read_text(errors="replace"))
    out.unlink()
    err.unlink()
    return ended


def _run(folder: str, words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """In the forked process: become the command."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.setsid()
    os.environ.clear()
    os.environ.update(ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"} | environment)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.path[:] = [folder, *(path for path in sys.path if path and not Path(path).is_relative_to(ROOT / "tests"))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "stages", "examples")]:
        del sys.modules[name]
    sys.argv = words
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def tree(folder: Path) -> dict[str, str]:
    """Every file's contents, links by their targets; without git's and DVC's own."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith((".git/", ".dvc/tmp", ".dvc/cache")) or "__pycache__" in name:
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = "special"
    return found


def check(case: Hostile, folder: Path) -> None:
    """Put the hostile thing into a copied folder, run the command, and hold what it says and leaves to the rule."""
    if case.params:
        params = yaml.safe_load((folder / "params.yaml").read_text())
        for key, value in case.params.items():
            section = params
            *above, last = key.split("__")
            for name in above:
                section = section[name]
            section[last] = value
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    if case.make:
        case.make(folder)
    before = tree(folder)
    ended = command(folder, case.command, case.environment)
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.status == case.status, (ended.status, ended.stdout, ended.stderr)
    errors = [line for line in said if ": error: " in line] if len(said) > 1 else said
    assert len(errors) == 1, ended.stderr
    assert len(said) == 1 or all("warning" in line.lower() for line in said if line not in errors), ended.stderr
    for part in case.says:
        assert part in errors[0], f"{part!r} isn't in: {errors[0]}"
    assert len(errors[0]) < 1000, errors[0]
    after = tree(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    own = ("results", "mlflow.db", ".scratch", ".scratch/raw-files.json")  # the last: what was decoded already
    assert not {name for name in changed if name not in own and not name.startswith("mlruns")}, changed


def copied(origin: Path, folder: Path) -> Path:
    """A copy that a case may break; photographs are links, since cases put new ones in their place."""
    shutil.copytree(origin, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return folder


PHOTOS = tuple(name for names in SPLITS.values() for name in names)
