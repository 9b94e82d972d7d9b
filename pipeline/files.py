"""Files that are whole or absent: written to a temporary name beside their own, then renamed."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

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


def read_bytes(path: Path) -> bytes:
    """A file's bytes; UserError when it isn't there, or is no file (a pipe would be waited for without end)."""
    try:
        if path.exists() and not path.is_file():
            kind = "it is a folder" if path.is_dir() else "it is no regular file"
            raise UserError(f"{path} can't be read: {kind}; {again(path)}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; {first(path)}") from None


def read_json(path: Path, *keys: str) -> Any:
    """What a JSON file holds; UserError when it isn't there, isn't JSON, has a key twice, or hasn't these keys."""
    content = read_bytes(path)
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} isn't JSON: {error}; {again(path)}") from None
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; {CUT}: {again(path)}")
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


def digest(*parts: Any) -> str:
    """A short name for parameters and files: equal contents, equal name. Paths stand for their bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(hashlib.sha256(read_bytes(part)).digest())
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
