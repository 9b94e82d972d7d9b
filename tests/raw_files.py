"""Small raw files that LibRaw opens, written as DNG by tifffile."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import tifffile

RGGB, GRBG, BGGR = (0, 1, 1, 2), (1, 0, 2, 1), (2, 1, 1, 0)  # colours of the 2×2 cell, line by line
CFA, FIXED = 32803, 10_000  # TIFF's photometric value of a colour filter array; denominator of fractions


def write_dng(
    path: Path,
    mosaic: np.ndarray,
    pattern: tuple[int, ...] = RGGB,
    black: int = 512,
    white: int = 16383,
    orientation: int = 1,
) -> Path:
    """`mosaic`, uint16 [2h, 2w], as a camera without colour matrix and with white balance gains of 2, 1 and 2."""
    identity = [x for value in (1, 0, 0, 0, 1, 0, 0, 0, 1) for x in (value * FIXED, FIXED)]
    tags = [  # code, TIFF type, count, value, once
        (274, 3, 1, orientation, True),
        (33421, 3, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, 1, 4, bytes(pattern), True),  # CFAPattern
        (50706, 1, 4, bytes((1, 4, 0, 0)), True),  # DNGVersion
        (50708, 2, 0, "test camera", True),  # UniqueCameraModel
        (50714, 3, 1, black, True),  # BlackLevel
        (50717, 4, 1, white, True),  # WhiteLevel
        (50721, 10, 9, tuple(identity), True),  # ColorMatrix1
        (50728, 5, 3, (1, 2, 1, 1, 1, 2), True),  # AsShotNeutral: the gains' inverses
        (50778, 3, 1, 21, True),  # CalibrationIlluminant1: D65
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, mosaic.astype(np.uint16), photometric=CFA, extratags=tags)
    return path


def write_compressed_arw(path: Path, side: int = 64) -> Path:
    """An RGGB mosaic of any values as Sony's lossy compression stores it, a byte a sample."""
    tags = [  # code, TIFF type, count, value, once
        (271, 2, 0, "SONY", True),
        (272, 2, 0, "ILCE-7SM2", True),
        (33421, 3, 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, 1, 4, bytes(RGGB), True),  # CFAPattern
        (0x7310, 3, 4, (512,) * 4, True),  # black level
    ]
    samples = np.random.default_rng(0).integers(0, 255, (side, side)).astype(np.uint8)
    tifffile.imwrite(path, samples, photometric=CFA, extratags=tags)
    content = path.read_bytes()
    compression, sony = struct.pack("<HHIH", 259, 3, 1, 1), struct.pack("<HHIH", 259, 3, 1, 32767)
    assert content.count(compression) == 1
    path.write_bytes(content.replace(compression, sony))
    return path


def write_sid(folder: Path, side: int = 48) -> Path:
    """SID's tree in miniature: three scenes, the first with two short exposures; one scene in each split."""
    rng = np.random.default_rng(0)
    lists = {
        "train": [("00001_00_0.04s", "00001_00_10s"), ("00001_00_0.1s", "00001_00_10s")],
        "val": [("20001_00_0.033s", "20001_00_10s")],
        "test": [("10001_00_0.1s", "10001_00_30s")],
    }
    for split, pairs in lists.items():
        for short, long in pairs:
            light = rng.uniform(0.05, 0.9, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)[:side]
            write_dng(folder / "Sony/short" / f"{short}.ARW", 512 + 160 * light + rng.normal(0, 2, light.shape))
            if not (folder / "Sony/long" / f"{long}.ARW").exists():
                write_dng(folder / "Sony/long" / f"{long}.ARW", 512 + 12000 * light)
        lines = (f"./Sony/short/{short}.ARW ./Sony/long/{long}.ARW ISO200 F8" for short, long in pairs)
        (folder / f"Sony_{split}_list.txt").write_text("\n".join(lines) + "\n")
    return folder
