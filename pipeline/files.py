"""Files that are whole or absent: written to a temporary name beside their own, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import importlib
import io
import itertools
import json
import os
import shutil
import stat
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError, first_line

LOCK = "running"  # in a folder that one process alone works in
CUT = "it is cut short or of another version"
# the stages that write folders in results/, and how many names their folders have below the stage's
STAGES = {"prepare": 1, "train": 1, "analyze": 1, "control": 1, "prune": 2, "finetune": 2, "evaluate": 1, "latency": 1}


def stage_of(path: Path) -> str:
    """The stage of dvc.yaml that writes a file in results/, as `dvc repro` takes it: prune@edsr-D; else nothing."""
    parts = path.parts
    for place, (above, stage) in enumerate(itertools.pairwise(parts)):
        names = parts[place + 2 : place + 2 + STAGES.get(stage, 0)]
        if above == "results" and names and len(names) == STAGES[stage] and names[-1] != parts[-1]:
            return f"{stage}@{'-'.join(names)}"
    return ""


def first(path: Path) -> str:
    """What to do for a file that isn't there."""
    stage = stage_of(path)
    return "the stage that writes it must run first" + (f": dvc repro {stage}" if stage else "")


def again(path: Path) -> str:
    """What to do for a file that is damaged."""
    stage = stage_of(path)
    return f"dvc repro -s -f {stage} makes it anew" if stage else "the stage that writes it must run again"


def check_folders(results: Path, networks: Iterable[str], methods: Iterable[str], others: Iterable[Path] = ()) -> None:
    """UserError when something that is no folder stands where a stage writes its folder, or where `others` will be."""
    folders = [results, results / "report", *others]
    for stage, depth in STAGES.items():
        folders.append(results / stage)
        for network in networks:
            folders.append(results / stage / network)
            folders += [results / stage / network / method for method in methods if depth == 2]
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            destination(folder, folder=True)


_WRITABLE = "a writable folder with free space is needed"
_SHOWN = 300  # letters of a path in a sentence
_KINDS = {
    stat.S_IFDIR: os.strerror(errno.EISDIR), stat.S_IFREG: os.strerror(errno.ENOTDIR), stat.S_IFIFO: "it is a pipe",
    stat.S_IFCHR: "it is a device", stat.S_IFBLK: "it is a device", stat.S_IFSOCK: "it is a socket",
}  # fmt: skip


def room(folder: Path, needed: int) -> None:
    """UserError when the disk that the folder lies on, or will lie on, can't take so many bytes."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{folder}: {needed / 1e6:,.1f} MB are needed on this disk, which has {free / 1e6:,.1f}")


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
    pipe, a socket, a folder), is `source` itself or where this process prints, or is a link to what nobody may write;
    and for a name that no file can have.
    """
    shown = str(path) if str(path).isprintable() else repr(str(path))
    if len(shown) > _SHOWN:
        shown = f"{shown[:100]}…{shown[-40:]}"
    if any(unicodedata.category(letter) == "Cc" for letter in str(path)):
        raise UserError(f"{shown} can't be written: its name holds control characters; a printable name is needed")
    target = Path(os.path.realpath(path))
    try:
        there = os.stat(path)  # and not `target`, since what /dev/stdout leads to has no name where it is a pipe
    except FileNotFoundError:
        return target
    except OSError as error:
        needed = "a shorter name is needed" if error.errno == errno.ENAMETOOLONG else _WRITABLE
        raise UserError(f"{shown} can't be written: {error.strerror}; {needed}") from None
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(there.st_mode):
        reason = _KINDS.get(stat.S_IFMT(there.st_mode), "it is no regular file")
        kind = "folder" if folder else "regular file"
        raise UserError(f"{shown} can't be written: {reason}; the name of a {kind}, or of nothing yet, is needed")
    for number, stream in enumerate(("input", "output", "errors")):
        with contextlib.suppress(OSError):  # a stream that is closed
            if os.path.samestat(there, os.fstat(number)):
                raise UserError(f"{shown} can't be written: it is this command's {stream}; another name is needed")
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


def read_bytes(path: Path) -> bytes:
    """A file's bytes; UserError when it isn't there, or is no file (a pipe would be waited for without end)."""
    try:
        if path.exists() and not path.is_file():
            kind = "it is a folder" if path.is_dir() else "it is no regular file"
            raise UserError(f"{path} can't be read: {kind}; {again(path)}")
        return whole(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; {first(path)}") from None


def regular_bytes(path: Path) -> bytes:
    """A file's bytes; OSError also for a pipe or a device, which would be waited for without end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return whole(path)


def whole(path: Path) -> bytes:
    """A file's bytes; OSError also where they don't fit in memory."""
    try:
        return path.read_bytes()
    except MemoryError:
        size = path.stat().st_size
        raise OSError(errno.ENOMEM, f"its {size:,} bytes are more than memory takes", str(path)) from None


def read_json(path: Path, *keys: str) -> Any:
    """What a JSON file holds; UserError when it isn't there, isn't JSON, has a key twice, or hasn't these keys."""
    content = read_bytes(path)
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unambiguous)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} isn't JSON: {error}; {again(path)}") from None
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; {CUT}: {again(path)}")
    return value


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice: the last one would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice[:80]!r} stands twice in an object")
    return found


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Rows of cells, the first being the columns' names; names with commas or quotes are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file; UserError when it isn't there, has no rows, or one without these columns."""
    content = read_bytes(path)
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        head, *rows = [row for row in csv.reader(text, strict=True) if row] or [[]]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} isn't CSV: {error}; {again(path)}") from None
    if not rows or not set(columns) <= set(head) or any(len(row) < len(head) for row in rows):
        raise UserError(f"{path} has no rows with {', '.join(columns)}; {CUT}: {again(path)}")
    if len(set(head)) < len(head) or any(len(row) > len(head) for row in rows):
        raise UserError(f"{path} has a column twice, or a row with more cells than columns; {again(path)}")
    return [dict(zip(head, row, strict=True)) for row in rows]


def save_tensors(path: Path, value: Any) -> None:
    """torch.save through memory: written directly, the bytes would depend on the file's name."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


def load_tensors(path: Path, device: Any = "cpu") -> Any:
    """What torch.save wrote to the file, if it is plain tensors and numbers, and is as it was written.

    torch.load doesn't look at the checksums that every part of its files has: a flipped bit would be another weight.
    Files without them, of torch before 1.6 or of torch.serialization.set_crc32_options(False), are read as they are. A
    file named .safetensors is read by the package of that name, which is optional. UserError names the file.
    """
    import torch

    try:
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):  # /dev/zero has no end
            raise UserError(f"{path} can't be read: a regular file is needed")
        packed = whole(path)
    except OSError as error:
        needed = f"; {first(path)}" if stage_of(path) else ""
        raise UserError(f"{path} can't be read: {error.strerror or error}{needed}") from None
    if path.suffix.lower() == ".safetensors":
        return _safetensors(path, packed)
    try:
        if packed.startswith(b"PK\x03\x04"):
            packed = _sound(packed)
        with warnings.catch_warnings(action="ignore"):  # torch remarks on pickles that it did not write
            return torch.load(io.BytesIO(packed), map_location=device, weights_only=True)
    except Exception:  # torch names no common class for what a damaged or foreign file raises
        needed = again(path) if stage_of(path) else "torch.save(network.state_dict(), FILE) writes one that is"
        raise UserError(
            f"{path} isn't a file of plain tensors: it is damaged, of another format, or holds objects, which are "
            f"never loaded since they could run code; {needed}"
        ) from None


def _safetensors(path: Path, packed: bytes) -> dict[str, Any]:
    try:
        safetensors = importlib.import_module("safetensors.torch")
    except ImportError:
        raise UserError(f"{path} can't be read: `pip install safetensors` installs what reads such files") from None
    try:
        return safetensors.load(packed)
    except Exception as error:  # the package's own class, and torch's for types that it doesn't know
        raise UserError(f"{path} isn't a whole file of safetensors: {first_line(error)}") from None


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
        raise UserError(f"{path} isn't as it was written; {again(path)}")
    return value


def digest(*parts: Any) -> str:
    """A short name for parameters and files: equal contents, equal name. Paths stand for their bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(hashlib.sha256(read_bytes(part)).digest())
        else:
            total.update(json.dumps(part, sort_keys=True, default=str).encode())
    return total.hexdigest()[:16]


def hold(folder: Path) -> IO[str]:
    """Make a folder and lock it, until the file that is returned is closed or this process ends.

    BlockingIOError where another process, or another file of this one, holds it; UserError where it can't be made.
    """
    import fcntl  # here: Windows has none, and loads pruned networks with this module

    path = folder / LOCK
    while True:
        make_folder(folder)
        try:
            held = path.open("a")  # stays the same file: another process would lock a new one
        except FileNotFoundError:  # who held it has just removed the folder
            continue
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}; {_WRITABLE}") from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held.fileno()), path.stat()):
                    return held
        except BlockingIOError:
            held.close()
            raise
        held.close()  # of a folder that was removed meanwhile


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it isn't there; UserError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made a folder: {error.strerror}; {_WRITABLE}") from None


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
