"""Files that are whole or absent: written to a temporary name beside their own, then renamed."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

FIRST = "the stage that writes it must run first"
AGAIN = "it is cut short or of another version: the stage that writes it must run again"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one piece; UserError when the folder can't be written or the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror}; a writable folder with free space is needed"
        ) from None
    finally:  # after the rename there is nothing left to remove
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sweep(path: Path) -> None:
    """Remove what killed processes left of this file or folder."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except PermissionError:  # another user's process lives
            continue


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path, *keys: str) -> Any:
    """What a JSON file holds; UserError when it isn't there, isn't JSON, or has no such keys."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; {FIRST}") from None
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from None
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; {AGAIN}")
    return value


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file; UserError when it isn't there, has no rows, or one without these columns."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; {FIRST}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} isn't CSV: {error}") from None
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise UserError(f"{path} has no rows with {', '.join(columns)}; {AGAIN}")
    return rows


def save_tensors(path: Path, value: Any) -> None:
    """torch.save through memory: written directly, the bytes would depend on the file's name."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


def digest(*parts: Any) -> str:
    """A short name for parameters and files: equal contents, equal name. Paths stand for their bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            try:
                total.update(hashlib.sha256(part.read_bytes()).digest())
            except OSError as error:
                reason = f"{error.strerror}; {FIRST}"
                raise UserError(f"{part} can't be read: {reason}") from None
        else:
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new, empty folder to write into, which takes the name `folder` when the block ends well, and else goes.

    UserError when it can't be written or the disk is full.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{folder} can't be written: {error.strerror or error}; a writable folder with free space is needed"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
