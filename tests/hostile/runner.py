"""What every hostile input must come to: one sentence that names the thing, status 2, and a tree that is as it was.

A case is a line in one of the tables beside this file. It runs as the command that a user gives, in a small chain's
folder of its own, in a process that is forked from one which has the large libraries loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chains import ROOT, SPLITS, checkout, module, tiny


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
    done = module(folder, *words.split(" "), PYTHONDONTWRITEBYTECODE="1", **dict(environment))
    return Ended(done.returncode, done.stdout, done.stderr)


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
    decoded = (".scratch/raw-files.json", ".scratch/images.json")  # what needn't be decoded again
    own = ("results", "mlflow.db", ".scratch", *decoded)
    assert not {name for name in changed if name not in own and not name.startswith("mlruns")}, changed


def copied(origin: Path, folder: Path) -> Path:
    """A copy that a case may break; photographs are links, since cases put new ones in their place."""
    shutil.copytree(origin, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return folder


PHOTOS = tuple(name for names in SPLITS.values() for name in names)
