"""Files that are whole or absent: written to a temporary name beside their own, then renamed."""

from __future__ import annotations

import contextlib
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


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; the stage that writes it must run first") from None
    except ValueError as error:
        raise UserError(f"{path} isn't JSON: {error}") from None


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
                reason = f"{error.strerror}; the stage that writes it must run first"
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
