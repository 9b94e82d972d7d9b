"""Files that are whole or absent: written to a temporary name beside their own, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

FIRST = "the stage that writes it must run first"
AGAIN = "it is cut short or of another version: the stage that writes it must run again"

_WRITABLE = "a writable folder with free space is needed"
_SHOWN = 300  # letters of a path in a sentence
_KINDS = {
    stat.S_IFDIR: os.strerror(errno.EISDIR), stat.S_IFREG: os.strerror(errno.ENOTDIR), stat.S_IFIFO: "it is a pipe",
    stat.S_IFCHR: "it is a device", stat.S_IFBLK: "it is a device", stat.S_IFSOCK: "it is a socket",
}  # fmt: skip


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one piece; a link stays, and the file that it names is written.

    UserError when the folder can't be written, the disk is full, or something that is no regular file has the name.
    """
    path, given = destination(path), path
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{given} can't be written: {error.strerror}; {_WRITABLE}") from None
    finally:  # after the rename there is nothing left to remove
        with contextlib.suppress(OSError):
            temporary.unlink()


def destination(path: Path, folder: bool = False, source: Path | None = None) -> Path:
    """Where a file of this name is to be written, or a folder: links are followed, to the end of the last one.

    source: a file that was read to make this one. UserError when what stands there is of another kind (a device, a
    pipe, a socket, a folder), is `source` itself, or is a link to what nobody may write; and for a name that no file
    can have.
    """
    shown = str(path) if str(path).isprintable() else repr(str(path))
    if len(shown) > _SHOWN:
        shown = f"{shown[:100]}…{shown[-40:]}"
    if any(unicodedata.category(letter) == "Cc" for letter in str(path)):
        raise UserError(f"{shown} can't be written: its name holds control characters; a printable name is needed")
    target = Path(os.path.realpath(path))
    try:
        there = os.stat(target)
    except FileNotFoundError:
        return target
    except OSError as error:
        needed = "a shorter name is needed" if error.errno == errno.ENAMETOOLONG else _WRITABLE
        raise UserError(f"{shown} can't be written: {error.strerror}; {needed}") from None
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(there.st_mode):
        reason = _KINDS.get(stat.S_IFMT(there.st_mode), "it is no regular file")
        kind = "folder" if folder else "regular file"
        raise UserError(f"{shown} can't be written: {reason}; the name of a {kind}, or of nothing yet, is needed")
    if source is not None and source.exists() and os.path.samefile(target, source):
        raise UserError(f"{shown} can't be written: it is {source}, which is read to make it; another name is needed")
    if path.is_symlink() and not there.st_mode & 0o222:  # as a cache keeps what it links to
        raise UserError(f"{shown} can't be written: it is a link to a file that is read-only; remove the link first")
    return target


def _temporary(path: Path) -> Path:
    """A name beside it that is no longer than a file's name may be."""
    name = path.name if len(os.fsencode(path.name)) <= 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}.tmp")


def _sweep(path: Path) -> None:
    """Remove what killed processes left of this file or folder."""
    start = _temporary(path).name.rsplit(".", 2)[0]
    for left in path.parent.glob(f"{glob.escape(start)}.*.tmp"):
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


def load_tensors(path: Path, device: Any = "cpu") -> Any:
    """What torch.save wrote to the file, if it is plain tensors and numbers, and is as it was written.

    torch.load doesn't look at the checksums that every part of its files has: a flipped bit would be another weight.
    Files without them, of torch before 1.6 or of torch.serialization.set_crc32_options(False), are read as they are.
    UserError names the file.
    """
    import torch

    try:
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):  # /dev/zero has no end
            raise UserError(f"{path} can't be read: a regular file is needed")
        packed = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    try:
        if packed.startswith(b"PK\x03\x04"):
            packed = _sound(packed)
        with warnings.catch_warnings(action="ignore"):  # torch remarks on pickles that it did not write
            return torch.load(io.BytesIO(packed), map_location=device, weights_only=True)
    except Exception:  # torch names no common class for what a damaged or foreign file raises
        raise UserError(
            f"{path} isn't a file of plain tensors: it is damaged, of another format, or holds objects, which are "
            "never loaded since they could run code; torch.save(network.state_dict(), FILE) writes one that is"
        ) from None


def _sound(packed: bytes) -> bytes:
    """A zip file with the same parts, each of which has the checksum that it was written with; BadZipFile otherwise.

    It is a new one, since a flipped bit that says what a part is, and not what it holds, makes torch read other bytes.
    """
    sound = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as parts, zipfile.ZipFile(sound, "w") as copy:
        if not any(part.CRC for part in parts.infolist()):
            return packed
        for part in parts.infolist():
            copy.writestr(part.filename, parts.read(part))
    return sound.getvalue()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """JSON of what is unfinished, with a digest that tells whether it is as it was written."""
    write_json(path, value | {"digest": digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote; UserError when the file isn't as it was written."""
    value = read_json(path, "digest")
    if value.pop("digest") != digest(value):
        raise UserError(f"{path} is damaged: it isn't as it was written")
    return value


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

    UserError when it can't be written, the disk is full, or something that is no folder has the name.
    """
    folder, given = destination(folder, folder=True), folder
    temporary = _temporary(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"{given} can't be written: {error.strerror or error}; {_WRITABLE}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
