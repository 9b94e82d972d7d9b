"""A prepared split on disk: a folder of plain .npy files, memory-mapped when they are read.

A split is a dict of arrays; every image's pixels follow one another in flat arrays, because images may differ in
size. N images, input sides h×w, target sides scale·h × scale·w. What is small lies in the folder's index.json, with
a checksum of the rest, so that this file alone says whether a split changed:

| key | type | shape | what |
| --- | --- | --- | --- |
| task | str | () | "super_resolution", "low_light" or "restoration" |
| names | str | [N] | file names |
| scale | int64 | () | target pixels for one input pixel, along a side |
| sizes | int64 | [N, 2] | input height and width |
| shown | int64 | [N] | which target is each image's; absent: each has its own (SID's inputs share theirs) |
| ratio | float32 | [N] | low light with a fixed exposure: the exposure ratio |
| exposures | float64 | [2, 2] | synthetic low light: lowest and highest exposure ratio, lowest and highest λ_shot |
| cameras | str | () | synthetic low light: "one" for all images, or "random" |
| noise | float64 | () | restoration of noise made here: σ in 8-bit levels |
| channels | int64 | () | 1: luma of the images is learnt; absent: RGB. Stored are the images in RGB |
| split | str | () | the folder's name: train, validation, test or an extra set's; no array of the split |
| seed | int64 | () | with `noise`: what a whole image's noise is drawn from, with its name |

What is large is a file KEY.npy each:

| key | type | shape | what |
| --- | --- | --- | --- |
| high | uint8, or uint16 of raw | [Σ scale²·h·w, 3] | the targets, sRGB |
| low | uint8 | [Σ h·w, 3] | super-resolution, paired restoration: the inputs, sRGB |
| raw | int16 | [Σ 4·h·w] | low light with a fixed exposure: dark samples, packed [4, h, w] an image |
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline import records
from pipeline.errors import UserError, first_line
from pipeline.files import again, read_sealed, replacing, write_sealed

Prepared = dict[str, np.ndarray]

INDEX = "index.json"
SMALL = {
    "task": np.str_, "names": np.str_, "scale": np.int64, "sizes": np.int64, "shown": np.int64, "ratio": np.float32,
    "exposures": np.float64, "cameras": np.str_, "noise": np.float64, "seed": np.int64,
    "channels": np.int64,
}  # fmt: skip
LARGE = ("high", "low", "raw")


def save_split(folder: Path, split: Prepared, images: Iterable[Prepared] = ()) -> None:
    """Write a split: its arrays, then those that `images` gives one image at a time, behind one another.

    No more than one image is held in memory. Equal content gives equal bytes; a folder that was not written to its
    end never has the name. Raises UserError when the folder can't be written or the disk is full, and whatever
    `images` raises.
    """
    with replacing(folder) as temporary:
        small: dict[str, list] = {key: [split[key]] for key in SMALL if key in split}
        files: dict[str, _Array] = {}
        whole = {key: split[key] for key in LARGE if key in split}
        for piece in itertools.chain([whole], images):
            _append(temporary, files, small, piece)
        content = {key: file.close() for key, file in sorted(files.items())}
        values = {key: _joined(parts).tolist() for key, parts in small.items()}
        write_sealed(temporary / INDEX, values | {"split": folder.name, "content": content})


def _append(folder: Path, files: dict[str, _Array], small: dict[str, list], piece: Prepared) -> None:
    for key, value in piece.items():
        if key in SMALL:
            small.setdefault(key, []).append(value)
            continue
        if key not in files:
            files[key] = _Array(folder / f"{key}.npy", value)
        files[key].append(value)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def gathered(split: Prepared, images: Iterable[Prepared]) -> Prepared:
    """The same split in memory."""
    parts: dict[str, list] = {}
    for piece in images:
        for key, value in piece.items():
            parts.setdefault(key, []).append(value)
    return split | {key: np.concatenate(values) for key, values in parts.items()}


class _Array:
    """An .npy file that grows at its end. (A writable memory-map would die of a full disk, instead of saying so.)"""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.file = open(path, "w+b")  # noqa: SIM115
        self.descr, self.rest, self.rows = np.lib.format.dtype_to_descr(like.dtype), like.shape[1:], 0
        self._header()
        self.start = self.file.tell()

    def _header(self) -> None:
        shape = (self.rows, *self.rest)
        header = {"descr": self.descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)  # padded, so that a longer shape takes no more bytes

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> str:
        """Write the final shape; the file's SHA-256."""
        self.file.seek(0)
        self._header()
        if self.file.tell() != self.start:
            raise RuntimeError(f"{self.file.name}: its header outgrew its place")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.seek(0)
        checksum = hashlib.file_digest(self.file, "sha256").hexdigest()
        self.file.close()
        return checksum


def load_split(folder: Path) -> Prepared:
    """What `save_split` wrote, the large arrays memory-mapped, after every file was read once for its checksum.

    UserError, naming the file, when one isn't whole or not as it was written. A hole that a crash left in an array
    would be black pixels to train on. Hashing takes about 0.6 s a GB.
    """
    index = folder / INDEX
    values = records.index(index)
    small = read_sealed(index)
    if values.get("split", folder.name) != folder.name:
        raise UserError(f"{folder}: holds the images of {values['split']}, not those of {folder.name}; {again(index)}")
    split: Prepared = {key: np.array(small[key], dtype=kind) for key, kind in SMALL.items() if key in small}
    for key in LARGE:
        if key in values["content"]:
            path = folder / f"{key}.npy"
            split[key] = _mapped(path)
            _check_form(path, split[key], *_form(split, key))
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != values["content"][key]:
                    raise UserError(f"{path}: isn't as it was written (its checksum is another); {again(path)}")
    return split


def _mapped(path: Path) -> np.ndarray:
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise UserError(f"{path}: cannot be read as a prepared split: it is no file; {again(path)}")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy names no common class for what a damaged header raises
        raise UserError(f"{path}: cannot be read as a prepared split ({first_line(error)}); {again(path)}") from None


def _form(split: Prepared, key: str) -> tuple[tuple[int, ...], set[str]]:
    """The shape that an array has by the index, and the types that it may have."""
    pixels = split["sizes"].prod(axis=1)
    if key == "raw":
        return (4 * int(pixels.sum()),), {"int16"}
    if key == "low":
        return (int(pixels.sum()), 3), {"uint8"}
    _, owner = np.unique(split.get("shown", np.arange(len(pixels))), return_index=True)  # each target's first image
    real = str(split["task"]) == "low_light" and "exposures" not in split  # developed of raw files
    return (int(pixels[owner].sum()) * int(split["scale"]) ** 2, 3), {"uint16"} if real else {"uint8"}


def _check_form(path: Path, array: np.ndarray, shape: tuple[int, ...], types: set[str]) -> None:
    if array.shape != shape or array.dtype.name not in types or not array.flags.c_contiguous:
        has, needs = f"{array.dtype} {array.shape}", f"{' or '.join(types)} {shape}"
        raise UserError(f"{path}: holds {has}, but by {INDEX} it must be {needs}; {again(path)}")


def bytes_of(split: Prepared) -> int:
    """What the large arrays take, in bytes."""
    return sum(split[key].nbytes for key in LARGE if key in split)
