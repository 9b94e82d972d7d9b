"""The data set of Chen et al., "Learning to See in the Dark" (CVPR 2018), as its Sony part unpacks.

Its list files name pairs of raw files, `./Sony/short/00001_00_0.04s.ARW ./Sony/long/00001_00_10s.ARW ISO200 F8`, and
the files' names their exposure times. Several short exposures share a long one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.data.raw import BLACK, MAX_RATIO, PACKING, WHITE
from pipeline.errors import UserError
from pipeline.files import regular_bytes, write_json

LISTS = {"train": "Sony_train_list.txt", "validation": "Sony_val_list.txt", "test": "Sony_test_list.txt"}
SECONDS = re.compile(r"_(\d+(?:\.\d+)?)s\.\w+$")
# Some samples of real Sony files lie a little above white, and SID's formula clips them. Of another bit depth is a file
# with more than OVER_SHARE of its samples above OVER, or with twice as large a white in its header.
OVER, OVER_SHARE = 1.05 * WHITE, 0.001

Place = tuple[int, int, int, int]
_Seen = TypeAdapter(dict[str, tuple[int, int, int, int, int, int]])  # file: its size, mtime in ns, place
_seen: dict[str, tuple[int, int, int, int, int, int]] = {}


@dataclass(frozen=True)
class Pair:
    """A line of a list: the exposures' paths, how many times longer `long` is, at most 300, and where it stands."""

    short: Path
    long: Path
    ratio: float
    line: str


def read_list(path: Path) -> list[Pair]:
    """The pair of each line; blank lines and those that begin with # hold none, what follows two paths is ignored.

    Paths count from the list's folder, with slashes of either kind. Raises UserError, naming the line, for one that
    isn't such a pair, whose names don't say the exposure times, or whose first exposure is the longer one.
    """
    try:
        content = regular_bytes(path)
        if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("it is UTF-16 or no text; UTF-8 is needed")
        lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as a list of raw files ({reason})") from None
    listed = []
    for number, line in enumerate(lines, start=1):
        words = line.replace("\\", "/").split()
        if not words or words[0].startswith("#"):
            continue
        place = f"{path}: line {number}"
        if len(words) == 1:
            raise UserError(f"{place} has one file, but a short and a long exposure are needed")
        listed.append((path.parent / words[0], path.parent / words[1], place))
    if not listed:
        raise UserError(f"{path}: lists no pair of raw files; a split needs at least one")
    pairs = []
    for short, long, place in listed:
        try:
            pairs.append(Pair(short, long, exposure_ratio(short, long), place))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return pairs


def repeated(splits: dict[str, list[Pair]]) -> list[str]:
    """A sentence for each pair that would serve twice.

    A short exposure may stand once in all lists, a long one in one split alone, and none is both. Files count by where
    their paths lead.
    """
    errors: list[str] = []
    shorts: dict[Path, str] = {}
    longs: dict[Path, tuple[str, str]] = {}
    listed = [
        (split, pair, Path(os.path.realpath(pair.short)), Path(os.path.realpath(pair.long)))
        for split, pairs in splits.items()
        for pair in pairs
    ]
    for split, pair, short, long in listed:
        first = shorts.setdefault(short, pair.line)
        if first != pair.line:
            errors.append(f"{pair.line} has {short.name} again, as {first}; an exposure serves once, in one split")
        owner, line = longs.setdefault(long, (split, pair.line))
        if owner != split:
            errors.append(f"{pair.line} has the long exposure {long.name}, as {line}; it may serve one split alone")
    for _, pair, short, _ in listed:
        if short in longs:
            errors.append(f"{pair.line} has {short.name} as the short exposure, but {longs[short][1]} as the long one")
    return errors


def exposure_ratio(short: Path, long: Path) -> float:
    """How many times longer the long exposure is, at most 300. UserError under 1, or for a name without its time."""
    times = []
    for path in (short, long):
        seconds = SECONDS.search(path.name)
        if not seconds or float(seconds[1]) == 0:
            raise UserError(f"{path}: the name doesn't say the exposure time; allowed is one like 00001_00_0.04s.ARW")
        times.append(float(seconds[1]))
    if times[1] < times[0]:
        raise UserError(
            f"{short.name} is exposed for {times[0]:g} s and {long.name} for {times[1]:g} s, but a pair names the "
            "short exposure first, then one at least as long"
        )
    return min(times[1] / times[0], MAX_RATIO)


def _unreadable(path: Path, reason: str | None) -> UserError:
    return UserError(f"{path}: cannot be read as a raw file ({reason}); allowed are whole ARW or DNG files")


@contextmanager
def _quiet() -> Iterator[None]:
    """What LibRaw writes of damaged files, past Python and without their names, isn't seen: the UserError says it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import rawpy

    raw = rawpy.RawPy()
    try:
        with open(path, "rb"), _quiet():  # LibRaw calls every error of the file system an input/output error
            raw.open_file(str(path))
            yield raw
    except (OSError, rawpy.LibRawError, NotImplementedError) as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        reason = getattr(error, "strerror", None) or reason
        raise _unreadable(path, reason) from None
    finally:
        raw.close()


def place(path: Path) -> Place:
    """Of one raw file: 2×2 cells down and across, and the row and column where the first cell begins.

    Cells begin with a red sample, whatever corner of the mosaic has the first: another pattern than RGGB loses a row
    or a column. The file is decoded, since rawpy tells no pattern or black level before, but once as long as its size
    and time of change stay: `recall` and `remember` keep that from one process to the next. Raises UserError for
    whatever `read_packed` refuses.
    """
    key = str(path.absolute())
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    stamp = (status.st_size, status.st_mtime_ns)
    if _seen.get(key, ())[:2] != stamp:
        with _opened(path) as raw:
            _seen[key] = stamp + _checked(path, raw)[0]
    return _seen[key][2:]


def recall(file: Path) -> None:
    """Take over what `remember` wrote; a file that is absent or damaged counts for nothing."""
    with contextlib.suppress(OSError, ValidationError):
        _seen.update(_Seen.validate_json(regular_bytes(file)))


def remember(file: Path) -> None:
    """Write down the places of all raw files that were decoded without a error, if there are new ones."""
    with contextlib.suppress(OSError, ValueError, UserError):  # where it can't be written, files are decoded again
        if _seen and (not file.exists() or json.loads(regular_bytes(file)) != {k: list(v) for k, v in _seen.items()}):
            write_json(file, _seen)


def _checked(path: Path, raw: Any) -> tuple[Place, np.ndarray]:
    """The place and the samples of an opened raw file, [2h, 2w]; UserError for one that isn't as SID's camera's."""
    raw.unpack()
    pattern = raw.raw_pattern
    colours = [] if pattern is None else [chr(raw.color_desc[i]) for i in pattern.flatten()]
    if sorted(colours) != ["B", "G", "G", "R"] or abs(colours.index("R") - colours.index("B")) not in (1, 3):
        raise UserError(f"{path}: its colour filter isn't a 2×2 Bayer pattern with red and blue on a diagonal")
    _whole(path)
    top, left = divmod(colours.index("R"), 2)
    h, w = (raw.sizes.height - top) // 2, (raw.sizes.width - left) // 2
    black = sorted(set(raw.black_level_per_channel))
    if black != [BLACK]:
        raise UserError(f"{path}: its black level is {black[0]}, but that of SID's Sony camera, {BLACK}, is needed")
    mosaic = raw.raw_image_visible[top : top + 2 * h, left : left + 2 * w]
    if np.count_nonzero(mosaic > OVER) > OVER_SHARE * mosaic.size:
        raise UserError(f"{path}: has samples of {mosaic.max()}, but at most {WHITE} (14 bits) are allowed")
    if raw.white_level > 2 * WHITE:
        raise UserError(f"{path}: its header gives white as {raw.white_level}, but {WHITE} (14 bits) is needed")
    return (h, w, top, left), mosaic


def _whole(path: Path) -> None:
    """UserError for a file that ends before its samples do: LibRaw fills up compressed ones without a word."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            pages = [part for page in file.pages for part in (page, *(page.pages or ()))]
            largest = max(pages, key=lambda page: page.imagewidth * page.imagelength)
            end = max(map(sum, zip(largest.dataoffsets, largest.databytecounts, strict=True)))
    except (tifffile.TiffFileError, ValueError, IndexError):
        raise _unreadable(path, "its TIFF structure is damaged") from None
    size = path.stat().st_size
    if end > size:
        raise _unreadable(path, f"its samples end at byte {end}, but it has {size}")


def read_packed(path: Path) -> np.ndarray:
    """The samples of a raw file, int16 [4, h, w] in the order of `raw.PACKING`; those above white are white.

    Raises UserError for a file that can't be decoded, is cut short, or whose black level or range aren't those of SID's
    camera.
    """
    with _opened(path) as raw:
        _, mosaic = _checked(path, raw)
        return np.stack([mosaic[dy::2, dx::2] for dy, dx in PACKING]).clip(max=WHITE).astype(np.int16)


def read_target(path: Path) -> np.ndarray:
    """The long exposure developed as SID's authors do, uint16 [2h, 2w, 3]: LibRaw, the camera's white balance."""
    with _opened(path) as raw:
        (h, w, top, left), _ = _checked(path, raw)
        # not turned upright, since the mosaic isn't
        image = raw.postprocess(use_camera_wb=True, half_size=False, no_auto_bright=True, output_bps=16, user_flip=0)
        if image.shape[:2] != (raw.sizes.height, raw.sizes.width):
            raise UserError(f"{path}: LibRaw develops it to another size than its mosaic's; square pixels are needed")
        return image[top : top + 2 * h, left : left + 2 * w]
