"""Photographs on disk: finding them, reading them as 8-bit RGB, and dividing them into three splits."""

from __future__ import annotations

import json
import random
import re
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
ORIENTATION = 0x0112  # EXIF: 5 to 8 are turned by a quarter
SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0.10, "test": 0.125}  # shares of the images; a series is never cut, so these are approximate


def list_images(folder: Path) -> list[Path]:
    """The image files lying directly in `folder`, sorted by name (hidden files and other suffixes are left out).

    Raises UserError when the folder is missing, is not a folder, or holds no image.
    """
    allowed = ", ".join(SUFFIXES)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of images (expected one with files ending in {allowed})")
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not found:
        raise UserError(f"{folder}: the folder holds no image (allowed suffixes: {allowed})")
    return sorted(found, key=lambda p: p.name)


def load_image(path: Path) -> np.ndarray:
    """One image file as [H, W, 3] uint8 sRGB, upright after its EXIF orientation.

    Grey, palette and CMYK are converted; 16-bit samples are scaled to 8; transparency is composited on black, since the
    colour stored under a transparent pixel is arbitrary. Colour profiles are not applied, and of several frames
    the first is taken. Raises UserError, naming the file, for what cannot be decoded whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large photograph is no attack
            with Image.open(path) as opened:
                opened.load()
                return _to_rgb8(ImageOps.exif_transpose(opened))
    except UNREADABLE as error:
        raise _refused(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as `load_image` will give it, from its header alone: milliseconds.

    Raises UserError, naming the file, for one whose header can't be read, or whose samples have no fixed range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.mode == "F":
                    raise ValueError("floating-point samples have no fixed range")
                width, height = opened.size
                # Pillow decodes a whole PNG to look for an orientation behind the pixels, where hardly any has it; a
                # TIFF's size is that of the upright image already.
                known = opened.format != "TIFF" and (opened.format != "PNG" or "exif" in opened.info)
                turned = known and opened.getexif().get(ORIENTATION, 1) >= 5
                return (width, height) if turned else (height, width)
    except UNREADABLE as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    allowed = f"whole {', '.join(SUFFIXES)} files with 8 or 16 bits a sample"
    return UserError(f"{path}: cannot be read as an image ({reason}); allowed are {allowed}")


def _to_rgb8(image: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8 of a decoded image; ValueError for sample types without a known range."""
    if image.mode == "F":
        raise ValueError("floating-point samples have no fixed range")
    if image.mode.startswith("I"):  # 16-bit grey; for RGB, Pillow itself keeps only the high bytes
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("samples of more than 16 bits")
        grey = ((samples + 128) // 257).astype(np.uint8)  # nearest of v / 257: 65535 becomes 255
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def series(name: str) -> str:
    """What a photograph's name says it belongs to: the stem without the digits at its end, `es_sea` for es_sea9.jpg."""
    return re.sub(r"[-_ .(]*\d*\)?$", "", Path(name).stem)


def read_splits(path: Path, names: list[str]) -> dict[str, list[str]]:
    """The written division of `names` (file names) into "train", "validation" and "test", each list sorted.

    Raises UserError unless the file has exactly these three keys, none empty, and lists every name exactly once.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a JSON list of splits ({error})") from error
    if not isinstance(read, dict) or sorted(read) != sorted(SPLITS):
        raise UserError(f"{path}: the keys must be exactly {', '.join(SPLITS)}")
    for split in SPLITS:
        listed = read[split]
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{path}: {split} must be a list of at least one file name")
    counts = Counter(name for split in SPLITS for name in read[split])
    known = set(names)
    for fault, wrong in (
        ("listed more than once", [name for name, count in counts.items() if count > 1]),
        (
            "listed but not in the folder of images, whose names have their suffix",
            [name for name in counts if name not in known],
        ),
        ("in the folder of images but in no split", [name for name in names if name not in counts]),
    ):
        if wrong:
            shown = ", ".join(sorted(wrong)[:3]) + (" …" if len(wrong) > 3 else "")
            raise UserError(f"{path}: {shown}: {fault}; each image belongs to exactly one of {', '.join(SPLITS)}")
    return {split: sorted(read[split]) for split in SPLITS}


def make_splits(names: list[str], seed: int) -> dict[str, list[str]]:
    """A division of `names` for a folder that has none: about a tenth to validate, an eighth to test, by whole series.

    Small series are held out first (the held-out images are then of many kinds), ties in an order drawn from `seed`,
    and the largest series always trains. With fewer than three series the division is by image, and a UserWarning says
    so. Raises UserError for fewer than three images.
    """
    if len(names) < len(SPLITS):
        raise UserError(f"{len(names)} images cannot be divided into {', '.join(SPLITS)}: at least 3 are needed")
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(series(name), []).append(name)
    if len(groups) < len(SPLITS):
        warnings.warn(
            "the names show fewer than three series, so the splits are by image: "
            "pictures of one place may be in two of them",
            stacklevel=2,
        )
        groups = {name: [name] for name in sorted(names)}
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    order.sort(key=len)  # stable: the drawn order decides between equals
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group in order[:-1]:
        missing = {split: share - len(splits[split]) / len(names) for split, share in HELD_OUT.items()}
        neediest = max(missing, key=lambda split: (not splits[split], missing[split]))
        splits[neediest if missing[neediest] > 0 else "train"] += group
    splits["train"] += order[-1]
    return {split: sorted(listed) for split, listed in splits.items()}
