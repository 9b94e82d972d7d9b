"""Which images train, validate and test: by a splits.json, or by series."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import regular_bytes, unambiguous
from pipeline.prepare.images import _some

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0.10, "test": 0.125}  # shares of the images; a series is never cut, so these are approximate
LEAST = 0.05  # the share that each of them has at least; where whole series leave less, the largest is cut into runs
FEW = 3  # images in each of them at least, where there are ten times as many


def series(name: str) -> str:
    """What a photograph's name says it belongs to: the stem without the digits at its end, `es_sea` for es_sea9.jpg."""
    return re.sub(r"[-_ .(]*\d*\)?$", "", Path(name).stem)


def read_splits(path: Path, names: list[str]) -> dict[str, list[str]]:
    """The written division of `names` (file names) into "train", "validation" and "test", each list sorted.

    Raises UserError unless the file has exactly these three keys, none empty, and lists every name exactly once.
    """
    try:
        read = json.loads(regular_bytes(path).decode("utf-8-sig"), object_pairs_hook=unambiguous)
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
            first_names = ", ".join(sorted(wrong)[:3]) + (" …" if len(wrong) > 3 else "")
            raise UserError(f"{path}: {first_names}: {fault}; each image belongs to exactly one of {', '.join(SPLITS)}")
    return {split: sorted(read[split]) for split in SPLITS}


def make_splits(names: list[str], seed: int) -> dict[str, list[str]]:
    """A division of `names` for a folder that has none: about a tenth to validate, an eighth to test, by whole series.

    Small series are held out first (the held-out images are then of many kinds), ties in an order drawn from `seed`,
    and the largest series always trains. Where that leaves validation or test fewer than a twentieth of the images, or
    there are fewer than three series, the largest are cut into runs of neighbouring numbers, and a UserWarning says
    so. Images of one name, but for case and suffix, stay together. Raises UserError for fewer than three images.
    """
    if len(names) < len(SPLITS):
        raise UserError(f"at least 3 images are needed, for {', '.join(SPLITS)}; found: {len(names)}")
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(series(name).casefold(), []).append(name)
    least = max(LEAST * len(names), min(FEW, len(names) // 10))
    length = max(1, int(LEAST * len(names)))
    parts, cut = list(groups.values()), []
    splits = _divided(parts, seed) if len(parts) >= len(SPLITS) else {split: [] for split in SPLITS}
    while min(len(splits["validation"]), len(splits["test"])) < least:
        largest = max(parts, key=len)
        runs = _runs(largest, length)
        if len(runs) == 1:
            break
        where = parts.index(largest)
        parts[where : where + 1] = runs
        cut.append(series(largest[0]))
        if len(parts) >= len(SPLITS):
            splits = _divided(parts, seed)
    if not all(splits.values()):
        raise UserError(f"{len(names)} images of {len(parts)} names cannot be divided into {', '.join(SPLITS)}")
    if cut:
        cut_names = _some([f"{name}…" for name in cut])
        warnings.warn(
            f"{cut_names}: too many images of one series to keep whole, so runs of about {length} neighbours are "
            "divided: images of one place may be in two splits",
            stacklevel=2,
        )
    return splits


def _divided(parts: list[list[str]], seed: int) -> dict[str, list[str]]:
    """At least three parts, none of them cut."""
    order, count = list(parts), sum(map(len, parts))
    random.Random(seed).shuffle(order)
    order.sort(key=len)  # stable: the drawn order decides between equals
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for part in order[:-1]:
        missing = {split: share - len(splits[split]) / count for split, share in HELD_OUT.items()}
        neediest = max(missing, key=lambda split: (not splits[split], missing[split]))
        splits[neediest if missing[neediest] > 0 else "train"] += part
    splits["train"] += order[-1]
    return {split: sorted(listed) for split, listed in splits.items()}


def _runs(names: list[str], length: int) -> list[list[str]]:
    """A series cut, in the order of its numbers, into runs of `length` images or slightly more."""
    same: dict[str, list[str]] = {}
    for name in sorted(names):
        same.setdefault(Path(name).stem.casefold(), []).append(name)
    runs: list[list[str]] = [[]]
    for stem in sorted(same, key=lambda stem: (int("0" + re.findall(r"(\d*)\)?$", stem)[0]), stem)):
        if len(runs[-1]) >= length:
            runs.append([])
        runs[-1] += same[stem]
    return runs
