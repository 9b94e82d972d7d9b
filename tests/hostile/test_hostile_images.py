"""Hostile photographs: what isn't read right, or can't stand where it stands, is named before anything trains."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from runner import PHOTOS, Hostile, base, check, command, copied

FIRST, LAST = PHOTOS[0], PHOTOS[-1]


def photo(write: Callable[[Path], object], name: str = FIRST) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        path = folder / "data" / "photos" / name
        path.unlink(missing_ok=True)
        write(path)

    return put


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(path: Path, rows: int = 256, width: int = 256, height: int = 256) -> None:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * 256))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + _chunk(b"IEND", b""))


def chunks(*more: bytes, colour: int = 2) -> Callable[[Path], None]:
    """A whole PNG with these chunks, empty ones but for a header, between its header and its pixels."""

    def write(path: Path) -> None:
        png(path)
        content = path.read_bytes()
        header = bytearray(content[8:33])
        header[17] = colour
        header[21:] = struct.pack(">I", zlib.crc32(header[4:21]))
        bodies = {b"IHDR": bytes(header), b"PLTE": _chunk(b"PLTE", bytes(3)), b"tRNS": _chunk(b"tRNS", bytes(6))}
        path.write_bytes(content[:8] + header + b"".join(bodies[kind] for kind in more) + content[33:])

    return photo(write)


def tiff(dtype: str, shape: tuple[int, ...], **more) -> Callable[[Path], None]:
    return photo(lambda path: tifffile.imwrite(path, np.zeros(shape, dtype), metadata=None, **more))


def cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-5000])


def closed(path: Path) -> None:
    """Cut short, and closed by the marker of an end."""
    cut(path)
    path.write_bytes(path.read_bytes() + b"\xff\xd9")


def doubled(folder: Path) -> None:
    shutil.copy(folder / "data" / "photos" / FIRST, folder / "data" / "photos" / LAST)


REFUSED = "cannot be read as an image"
CASES = [
    Hostile("no bytes", "stages.check", (FIRST, REFUSED), make=photo(Path.touch)),
    Hostile("a vast header", "stages.check", (FIRST, REFUSED, "pixels"), make=photo(lambda p: png(p, 1, 60000, 60000))),
    Hostile(
        "16-bit planes apart", "stages.check", (FIRST, REFUSED, "planar 2"),
        make=tiff("uint16", (3, 256, 256), photometric="rgb", planarconfig="separate"),
    ),
    Hostile(
        "16 bits, white is 0", "stages.check", (FIRST, REFUSED, "photometric 0"),
        make=tiff("uint16", (256, 256), photometric="miniswhite"),
    ),
    Hostile("floats", "stages.check", (FIRST, "no fixed range"), make=tiff("float32", (256, 256))),
    Hostile("a link to nothing", "stages.check", (FIRST, "gone.jpg"), make=photo(lambda p: p.symlink_to("gone.jpg"))),
    Hostile("rows missing", "stages.check", (FIRST, REFUSED, "its pixels end"), make=photo(lambda path: png(path, 9))),
    Hostile("two headers", "stages.check", (FIRST, REFUSED, "two chunks IHDR"), make=chunks(b"IHDR")),
    Hostile("two transparent colours", "stages.check", (FIRST, REFUSED, "two chunks tRNS"),
            make=chunks(b"tRNS", b"tRNS")),
    Hostile("two palettes", "stages.check", (FIRST, REFUSED, "two chunks PLTE"), make=chunks(b"PLTE", b"PLTE")),
    Hostile("no palette", "stages.check", (FIRST, REFUSED, "no palette"), make=chunks(colour=3)),
    Hostile("a JPEG cut short", "stages.check", (FIRST, REFUSED, "truncated"), make=photo(cut)),
    Hostile("a JPEG cut short and closed", "stages.check", (FIRST, REFUSED, "its pixels end"), make=photo(closed)),
    Hostile("a pipe", "stages.check", (FIRST, "neither a file"), make=photo(os.mkfifo)),
    Hostile("one image in two splits", "stages.check", (FIRST, LAST, "same bytes", "train", "test"), make=doubled),
    Hostile(
        "a name that isn't UTF-8", "stages.check", ("photos", r"caf\udce9.jpg", "UTF-8"),
        make=photo(png, os.fsdecode(b"caf\xe9.jpg")),
    ),
    Hostile("a name of two lines", "stages.check", ("photos", r"a\nb.jpg", "control"), make=photo(png, "a\nb.jpg")),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_photograph_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))


def test_the_check_names_what_preparing_would_refuse(origin: Path, tmp_path: Path) -> None:
    folder = copied(origin, tmp_path / "chain")
    photo(lambda path: png(path, 100))(folder)
    photo(cut, LAST)(folder)
    done = command(folder, "stages.prepare --check")
    assert done.status == 2
    for name in (FIRST, LAST):
        assert f"missing or broken: data/photos/{name}: {REFUSED}" in done.stdout
    assert "Traceback" not in done.stderr


def test_what_is_left_out_is_a_plain_line_and_no_fault(origin: Path, tmp_path: Path) -> None:
    folder = copied(origin, tmp_path / "chain")
    photo(Path.touch, "IMG_1.HEIC")(folder)
    done = command(folder, "stages.check")
    assert done.status == 0
    assert done.stderr.splitlines() == [
        "check: warning: data/photos: 1 file is left out, as no image that can be read here: IMG_1.HEIC"
    ]
