"""DVC's own files that a killed DVC left cut short: it empties each before it writes, and then reads none of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import UserError
from pipeline.files import write_bytes

LOCK, BUSY, EXPERIMENTS = Path("dvc.lock"), Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/run")
FOLDERS = (Path(".dvc"), Path(".dvc/tmp"), Path(".dvc/cache"))
PATIENCE = 2.0  # s in which a living DVC ends the writing of one of these files


def mend() -> None:
    """Put in order what is damaged, and say so in a line each; UserError while a DVC process uses this folder."""
    until = time.monotonic() + PATIENCE
    while (damaged := _damaged()) and (living := _living()):
        if time.monotonic() > until:
            raise UserError(
                f"{damaged[0]} is damaged, and a DVC process (number {living[0]}) uses this folder: "
                "when that has ended, the same command mends it"
            )
        time.sleep(0.2)
    for path in damaged:
        kept = _committed() if path == LOCK else b""
        copy = _set_aside(path) if path == LOCK and path.stat().st_size else None
        if kept:
            write_bytes(path, kept)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        now = "it is git's again, and DVC takes the rest from its cache" if kept else "it is removed; DVC makes it anew"
        now += f"; what it held is in {copy}" if copy else ""
        print(f"mended: {path} was cut short or damaged (a stop, or a conflict of git's): {now}", file=sys.stderr)


def _set_aside(path: Path) -> Path:
    """A copy of a file that is to be replaced, under a name that another content doesn't get."""
    content = path.read_bytes()
    copy = BUSY.with_name(f"{path.name}-{hashlib.sha256(content).hexdigest()[:8]}")
    write_bytes(copy, content)
    return copy


def _damaged() -> list[Path]:
    """The files that DVC would end at, of those that it writes in place.

    UserError for what no stop leaves: something else than a file, or the dvc.lock of another version of DVC.
    """
    for folder in FOLDERS:
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is no folder, but DVC keeps files there: move what is there away")
    found = [BUSY] if BUSY.is_dir() and not any(BUSY.iterdir()) else []
    for path in (LOCK, BUSY):
        if path not in found and os.path.lexists(path) and not path.is_file():
            raise UserError(f"{path} is no regular file, but DVC writes one there: move what is there away")
    if LOCK.exists() and (version := _version(LOCK.read_bytes())) not in (None, "2.0"):
        raise UserError(
            f"{LOCK} has schema {version!r}, which the installed DVC can't read: it is of another version; "
            f"`git checkout {LOCK}` takes the committed one"
        )
    found += [LOCK] if LOCK.is_file() and not _is_lock(LOCK.read_bytes()) else []
    found += [BUSY] if BUSY.is_file() and not _is_busy(BUSY.read_bytes()) else []
    written = [path for path in sorted(EXPERIMENTS.glob("*/*.json")) if path.is_file()]
    return found + [path for path in written if not isinstance(_json(path), dict)]


def _is_lock(content: bytes) -> bool:
    """Whether DVC can read this as dvc.lock."""
    from dvc.exceptions import DvcException
    from dvc.rwlock import Invalid
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import parse_yaml

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(content.decode(), str(LOCK)))
    except (DvcException, Invalid, ValueError, TypeError, RecursionError):  # what any text can come to
        return False
    return True


def _version(content: bytes) -> Any:
    """The schema that a whole dvc.lock says it has; None for what is no whole one."""
    from dvc.exceptions import DvcException
    from dvc.utils.serialize import parse_yaml

    try:
        read = parse_yaml(content.decode(), str(LOCK))
    except (DvcException, ValueError, RecursionError):
        return None
    return read.get("schema") if isinstance(read, dict) else None


def _is_busy(content: bytes) -> bool:
    """Whether DVC can read this as its list of who works on what, and nobody in it has got a dead DVC's number."""
    from dvc.rwlock import SCHEMA, Invalid

    try:
        held = SCHEMA(json.loads(content))
    except (ValueError, Invalid, RecursionError):
        return False
    holders = [*held["write"].values(), *(reader for readers in held["read"].values() for reader in readers)]
    living = _living() if holders else []
    return all(_free(int(holder["pid"])) or int(holder["pid"]) in living for holder in holders)


def _free(pid: int) -> bool:
    """Whether no process has this number; one that no process can have is free."""
    return not 0 <= pid < 2**31 or not psutil.pid_exists(pid)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _committed() -> bytes:
    """dvc.lock as git has it; empty without one, or where that is damaged too."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, check=False)
    except OSError:  # without git
        return b""
    return done.stdout if done.returncode == 0 and _is_lock(done.stdout) else b""


def _living() -> list[int]:
    """The DVC processes that work in this folder or below it."""
    here, found = Path.cwd(), []
    for process in psutil.process_iter():
        try:
            if any(Path(word).name in ("dvc", "stages.dvc") for word in process.cmdline()[:3]):
                found += [process.pid] if Path(process.cwd()).is_relative_to(here) else []
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found
