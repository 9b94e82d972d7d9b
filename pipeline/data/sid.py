"""The data set of Chen et al., "Learning to See in the Dark" (CVPR 2018), as its Sony part unpacks.

Its list files name pairs of raw files, `./Sony/short/00001_00_0.04s.ARW ./Sony/long/00001_00_10s.ARW ISO200 F8`, and
the files' names their exposure times. Several short exposures share a long one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.raw import BLACK, MAX_RATIO, PACKING, WHITE
from pipeline.errors import UserError

LISTS = {"train": "Sony_train_list.txt", "validation": "Sony_val_list.txt", "test": "Sony_test_list.txt"}
SECONDS = re.compile(r"_(\d+(?:\.\d+)?)s\.\w+$")


def read_list(path: Path) -> list[tuple[Path, Path]]:
    """The short and the long exposure of each line. UserError, naming the line, for one that isn't such a pair."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as a list of raw files ({reason})") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) == 1:
            raise UserError(f"{path}: line {number} has one file, but a short and a long exposure are needed")
        if words:
            pairs.append((path.parent / words[0], path.parent / words[1]))
    if not pairs:
        raise UserError(f"{path}: lists no pair of raw files; a split needs at least one")
    return pairs


def exposure_ratio(short: Path, long: Path) -> float:
    """How many times longer the long exposure is, at most 300. UserError for a file name without its seconds."""
    times = []
    for path in (short, long):
        found = SECONDS.search(path.name)
        if not found or float(found[1]) == 0:
            raise UserError(f"{path}: the name doesn't say the exposure time; allowed is one like 00001_00_0.04s.ARW")
        times.append(float(found[1]))
    return min(times[1] / times[0], MAX_RATIO)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import rawpy

    raw = rawpy.RawPy()
    try:
        with open(path, "rb"):  # LibRaw calls every fault of the file system an input/output error
            raw.open_file(str(path))
        yield raw
    except (OSError, rawpy.LibRawError) as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        reason = getattr(error, "strerror", None) or reason
        raise UserError(
            f"{path}: cannot be read as a raw file ({reason}); allowed are whole ARW or DNG files"
        ) from None
    finally:
        raw.close()


def place(path: Path) -> tuple[int, int, int, int]:
    """Of one raw file, from its header: 2×2 cells down and across, and the row and column where the first cell begins.

    Cells begin with a red sample, whatever corner of the mosaic has the first: another pattern than RGGB loses a row
    or a column. Raises UserError for a file that can't be read or has no 2×2 Bayer pattern.
    """
    with _opened(path) as raw:
        return _place(path, raw)


def _place(path: Path, raw: Any) -> tuple[int, int, int, int]:
    pattern = raw.raw_pattern
    colours = [] if pattern is None else [chr(raw.color_desc[i]) for i in pattern.flatten()]
    if sorted(colours) != ["B", "G", "G", "R"] or abs(colours.index("R") - colours.index("B")) not in (1, 3):
        raise UserError(f"{path}: its colour filter isn't a 2×2 Bayer pattern with red and blue on a diagonal")
    top, left = divmod(colours.index("R"), 2)
    return (raw.sizes.height - top) // 2, (raw.sizes.width - left) // 2, top, left


def read_packed(path: Path) -> np.ndarray:
    """The samples of a raw file, int16 [4, h, w] in the order of `raw.PACKING`.

    Raises UserError for a file that can't be decoded or whose black level or range aren't those of SID's camera.
    """
    with _opened(path) as raw:
        raw.unpack()
        h, w, top, left = _place(path, raw)
        black = sorted(set(raw.black_level_per_channel))
        if black != [BLACK]:
            raise UserError(f"{path}: its black level is {black[0]}, but that of SID's Sony camera, {BLACK}, is needed")
        mosaic = raw.raw_image_visible[top : top + 2 * h, left : left + 2 * w]
        if mosaic.max() > WHITE:
            raise UserError(f"{path}: has samples of {mosaic.max()}, but at most {WHITE} (14 bits) are allowed")
        return np.stack([mosaic[dy::2, dx::2] for dy, dx in PACKING]).astype(np.int16)


def read_target(path: Path) -> np.ndarray:
    """The long exposure developed as SID's authors do, uint16 [2h, 2w, 3]: LibRaw, the camera's white balance."""
    with _opened(path) as raw:
        raw.unpack()
        h, w, top, left = _place(path, raw)
        # not turned upright, since the mosaic isn't
        picture = raw.postprocess(use_camera_wb=True, half_size=False, no_auto_bright=True, output_bps=16, user_flip=0)
        if picture.shape[:2] != (raw.sizes.height, raw.sizes.width):
            raise UserError(f"{path}: LibRaw develops it to another size than its mosaic's; square pixels are needed")
        return picture[top : top + 2 * h, left : left + 2 * w]
