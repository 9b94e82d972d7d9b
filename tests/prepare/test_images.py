"""Reading photographs of every allowed kind, and dividing them."""

from __future__ import annotations

import itertools
import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from chains import ROOT
from PIL import Image

from pipeline.errors import UserError
from pipeline.prepare import images
from pipeline.prepare.images import SUFFIXES, image_size, list_images, load_image
from pipeline.prepare.splits import make_splits, read_splits, series

DATA = ROOT / "data"


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "PNG"])
def test_lossless_formats_give_the_stored_pixels(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert list_images(tmp_path) == [path]
    assert np.array_equal(load_image(path), rgb)
    assert image_size(path) == rgb.shape[:2]


def test_jpeg_is_read_close_to_what_was_stored(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - flat).max() <= 2


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = load_image(tmp_path / "a.jpg")
    assert red.shape == (16, 16, 3)
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 6


def test_grey_is_repeated_over_three_channels(tmp_path: Path) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=2))


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    samples = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(samples).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}")[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_rgb_png_is_scaled_to_eight(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257 * 7, 257 * 8, 257 * 9)  # filter byte, two pixels
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert load_image(tmp_path / "a.png").tolist() == [[[0, 100, 255], [7, 8, 9]]]


@pytest.mark.parametrize(
    ("mode", "pixels", "expected"),
    [
        (
            "RGBA",
            [(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 128)],
            [[200, 100, 50], [0] * 3, [100, 50, 25]],
        ),
        ("LA", [(200, 255), (200, 0), (200, 128)], [[200] * 3, [0] * 3, [100] * 3]),
    ],
)
def test_transparency_is_composited_on_black(tmp_path: Path, mode: str, pixels: list, expected: list) -> None:
    image = Image.new(mode, (3, 1))
    image.putdata(pixels)
    image.save(tmp_path / "a.png")
    assert np.abs(load_image(tmp_path / "a.png")[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("transparency", [None, 0])
def test_palette_images_give_colours_and_not_indices(tmp_path: Path, transparency: int | None) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    first = [10, 20, 30] if transparency is None else [0, 0, 0]
    assert load_image(tmp_path / "a.png").tolist() == [[first, [40, 50, 60]]]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, samples: np.ndarray, *chunks: bytes, behind: bytes = b"") -> bytes:
    """A PNG of samples [H, W, bands] below 2**depth, with chunks before and behind the pixels."""
    h, w, bands = samples.shape
    bits = (samples[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(h, w * bands * depth).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    body = header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + behind
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_black_at_every_depth(tmp_path: Path, depth: int) -> None:
    top = 2**depth - 1
    clear = chunk(b"tRNS", struct.pack(">H", top))
    (tmp_path / "a.png").write_bytes(png(depth, 0, np.array([[[top], [0], [top - 1]]]), clear))
    expected = [0, 0, round((top - 1) / top * 255)]
    assert load_image(tmp_path / "a.png")[0, :, 0].tolist() == expected


def test_a_transparent_colour_is_black_and_its_neighbours_stay(tmp_path: Path) -> None:
    clear = chunk(b"tRNS", struct.pack(">3H", 9, 8, 7))
    samples = np.array([[[9, 8, 7], [9, 8, 6], [7, 8, 9]]])
    (tmp_path / "a.png").write_bytes(png(8, 2, samples, clear))
    assert load_image(tmp_path / "a.png").tolist() == [[[0, 0, 0], [9, 8, 6], [7, 8, 9]]]
    (tmp_path / "b.png").write_bytes(png(16, 2, samples, clear))  # Pillow drops the low bytes that say which it is
    for read in (image_size, load_image):
        with pytest.raises(UserError, match=r"b\.png: .*transparent colour of 16 bits"):
            read(tmp_path / "b.png")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "colour", "bands"), [(1, 0, 1), (8, 2, 3), (16, 0, 1), (8, 6, 4)])
def test_a_png_without_its_last_rows_is_refused(
    tmp_path: Path, depth: int, colour: int, bands: int, interlaced: bool
) -> None:
    whole = png(depth, colour, np.zeros((100, 21, bands), dtype=int))
    (tmp_path / "a.png").write_bytes(whole)
    assert load_image(tmp_path / "a.png").shape == (100, 21, 3)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 21, 256, depth, colour, 0, 0, interlaced))
    (tmp_path / "a.png").write_bytes(whole[:8] + header + whole[8 + len(header) :])
    with pytest.raises(UserError, match="pixels end before the last of its 256 rows"):
        load_image(tmp_path / "a.png")


def test_interlaced_pngs_count_as_whole(tmp_path: Path) -> None:
    for w, h in ((1, 1), (3, 5), (9, 2), (17, 33)):
        size = sum(
            1 + -(-(w - x) // dx)
            for x, y, dx, dy in (
                (0, 0, 8, 8),
                (4, 0, 8, 8),
                (0, 4, 4, 8),
                (2, 0, 4, 4),
                (0, 2, 2, 4),
                (1, 0, 2, 2),
                (0, 1, 1, 2),
            )
            if w > x
            for _ in range(y, h, dy)
        )
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 1))
        for missing in (0, 1):
            body = chunk(b"IDAT", zlib.compress(bytes(size - missing)))
            (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
            if missing:
                with pytest.raises(UserError, match="pixels end"):
                    load_image(tmp_path / "a.png")
            else:
                assert load_image(tmp_path / "a.png").shape == (h, w, 3)


def test_a_png_with_one_changed_byte_of_pixels_is_refused(tmp_path: Path, rgb: np.ndarray) -> None:
    data = bytearray(png(8, 2, rgb.astype(int)))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png"):
        load_image(tmp_path / "a.png")


def exif(value: bytes, kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block with an orientation of the given type."""
    return (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI", 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)
    )


def raw_profile(block: bytes) -> bytes:
    return chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())
    )


def xmp(value: int) -> bytes:
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="%d"/></x:xmpmeta>' % value


def as_jpeg(path: Path, pixels: np.ndarray, block: bytes | None = None, text: bytes | None = None) -> None:
    more = ({"exif": block} if block else {}) | ({"xmp": text} if text else {})
    Image.fromarray(pixels).save(path, "JPEG", quality=100, subsampling=0, **more)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF's table: where the first row and the first column of what is stored are shown."""
    return {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: lambda p: np.rot90(p, 1),
    }.get(orientation, lambda p: p)(pixels)


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 255])
def test_size_and_pixels_agree_on_every_orientation_wherever_it_stands(
    tmp_path: Path, rgb: np.ndarray, orientation: int
) -> None:
    block, expected = exif(struct.pack(">H", orientation)), turned(rgb, orientation)
    plain = rgb.astype(int)
    places = {
        "exif.png": png(8, 2, plain, chunk(b"eXIf", block[6:])),
        "behind.png": png(8, 2, plain, behind=chunk(b"eXIf", block[6:])),
        "raw.png": png(8, 2, plain, raw_profile(block)),
        "raw_behind.png": png(8, 2, plain, behind=raw_profile(block)),
    }
    if orientation < 10:
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))
        places |= {"xmp.png": png(8, 2, plain, text), "xmp_behind.png": png(8, 2, plain, behind=text)}
    for name, data in places.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(load_image(tmp_path / name), expected), name
        assert image_size(tmp_path / name) == expected.shape[:2], name
    as_jpeg(tmp_path / "a.jpg", rgb, block)
    Image.fromarray(rgb).save(tmp_path / "a.webp", lossless=True, exif=block)
    tifffile.imwrite(
        tmp_path / "a.tif", rgb, photometric="rgb", metadata=None, extratags=[(274, 3, 1, orientation, True)]
    )
    xmps = []
    if orientation < 10:
        as_jpeg(tmp_path / "xmp.jpg", rgb, text=xmp(orientation))
        tag = (700, 1, len(xmp(orientation)), xmp(orientation), True)
        tifffile.imwrite(tmp_path / "xmp.tif", rgb, photometric="rgb", metadata=None, extratags=[tag])
        xmps = ["xmp.jpg", "xmp.tif"]
    for name in ("a.jpg", "a.webp", "a.tif", *xmps):
        read = load_image(tmp_path / name)
        assert image_size(tmp_path / name) == read.shape[:2] == expected.shape[:2], name
        assert np.abs(read.astype(int) - expected).max() <= (4 if name.endswith("jpg") else 0), name


@pytest.mark.parametrize(
    "block", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*", b"\0" * 40, b"II*\0\x08\0\0\0\xff\xff"]
)
def test_a_damaged_exif_block_counts_as_upright(tmp_path: Path, rgb: np.ndarray, block: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 2, rgb.astype(int), chunk(b"eXIf", block)))
    (tmp_path / "b.png").write_bytes(png(8, 2, rgb.astype(int), raw_profile(b"Exif\0\0" + block)))
    (tmp_path / "c.png").write_bytes(png(8, 2, rgb.astype(int), chunk(b"zTXt", b"Raw profile type exif\0\0none")))
    Image.fromarray(rgb).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0" + block)
    as_jpeg(tmp_path / "a.jpg", rgb, b"Exif\0\0" + block)
    for name in ("a.png", "b.png", "c.png", "a.webp", "a.jpg"):
        read = load_image(tmp_path / name)
        assert image_size(tmp_path / name) == read.shape[:2] == (12, 17), name
        assert np.abs(read.astype(int) - rgb).max() <= (4 if name.endswith("jpg") else 0), name


JPEGS = [
    {"progressive": progressive, "subsampling": subsampling, **more}
    for progressive in (False, True)
    for subsampling in (0, 2)
    for more in ({}, {"restart_marker_blocks": 2}, {"optimize": True})
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("form", JPEGS, ids=str)
def test_a_jpeg_that_was_cut_short_and_closed_again_is_refused(tmp_path: Path, form: dict[str, Any], mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / "a.jpg"
    noise.save(path, "JPEG", quality=60, **form)
    whole = path.read_bytes()
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    for behind in (b"", b"\0" * 100, whole):  # a maker's data, or another picture
        path.write_bytes(whole + behind)
        assert np.array_equal(load_image(path), expected)
    begin, end, refused = whole.index(b"\xff\xda") + 20, len(whole) - 8, 0
    for cut in range(begin, end, (end - begin) // 12):
        path.write_bytes(whole[:cut].rstrip(b"\xff") + b"\xff\xd9")
        try:
            read = load_image(path)
        except UserError:
            refused += 1
        else:  # the last bytes of a scan may say nothing
            assert np.array_equal(read, expected)
    assert refused >= 11


def test_a_file_is_decoded_once_until_it_changes(
    tmp_path: Path, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, remembered, loaded = tmp_path / "a.png", tmp_path / "images.json", []
    Image.fromarray(rgb).save(path)
    monkeypatch.setattr(images, "load_image", loaded.append)
    monkeypatch.setattr(images, "_whole", {})
    images.recall(remembered)
    for _ in range(2):
        images.check_image(path)
    assert loaded == [path]
    images.remember(remembered)
    for content in (remembered.read_bytes(), b"", b"[]", b'{"a": "b"}'):
        remembered.write_bytes(content)
        monkeypatch.setattr(images, "_whole", {})
        images.recall(remembered)
        images.check_image(path)
    assert len(loaded) == 4  # what is damaged counts for nothing
    os.utime(path, ns=(0, 0))
    images.check_image(path)
    assert len(loaded) == 5


@pytest.mark.parametrize(("kind", "value", "count"), [(2, b"6", 2), (7, b"6", 1), (7, b"\6\6\6\6", 4), (1, b"\0", 1)])
def test_an_orientation_of_another_type_counts_as_upright(
    tmp_path: Path, rgb: np.ndarray, kind: int, value: bytes, count: int
) -> None:
    block = exif(value, kind, count)
    as_jpeg(tmp_path / "a.jpg", rgb, block)
    (tmp_path / "a.png").write_bytes(png(8, 2, rgb.astype(int), chunk(b"eXIf", block[6:])))
    for name in ("a.jpg", "a.png"):
        assert image_size(tmp_path / name) == load_image(tmp_path / name).shape[:2] == (12, 17)


H, W = 40, 52


def tiff(path: Path, bits: int, kind: str, **more) -> np.ndarray:
    """Write random pixels as a TIFF; what they are in 8-bit RGB, from their definition."""
    rng = np.random.default_rng(5)
    bands = {"grey": 1, "white is 0": 1, "palette": 1, "grey alpha": 2, "rgb": 3, "cmyk": 4}.get(kind, 4)
    samples = rng.integers(0, 256, (H, W, 4), dtype=np.uint8)
    eight = np.ascontiguousarray(samples[..., :bands])
    if kind == "rgb premultiplied":
        eight[..., :3] = np.minimum(eight[..., :3], eight[..., 3:])
    if bits == 1:
        eight = np.where(eight > 127, 255, 0).astype(np.uint8)
    stored = eight > 0 if bits == 1 else eight.astype(np.uint16) * 257 if bits == 16 else eight
    grey = np.repeat(eight[..., :1], 3, axis=2).astype(int)
    colours = rng.integers(0, 65536, (3, 256), dtype=np.uint16)
    over_black = (eight[..., :-1].astype(float) * eight[..., -1:] / 255).round()
    photometric, extra, expected = {
        "grey": ("minisblack", None, grey),
        "white is 0": ("miniswhite", None, 255 - grey),
        "palette": ("palette", None, (colours[:, eight[..., 0]] >> 8).transpose(1, 2, 0)),
        "grey alpha": ("minisblack", "unassalpha", over_black[..., [0, 0, 0]] if bands > 1 else None),
        "rgb": ("rgb", None, eight),
        "rgb and more": ("rgb", "unspecified", eight[..., :3]),
        "rgb premultiplied": ("rgb", "assocalpha", eight[..., :3]),
        "rgb alpha": ("rgb", "unassalpha", over_black),
        "cmyk": ("separated", None, ((255.0 - samples[..., :3]) * (255.0 - samples[..., 3:]) / 255).round()),
    }[kind]
    if bands == 1:
        stored = stored[..., 0]
    if more.get("planarconfig") == "separate":
        stored = stored.transpose(2, 0, 1)
    elif bands > 1:
        more["planarconfig"] = "contig"
    more |= {"extrasamples": [extra]} if extra else {}
    more |= {"colormap": colours} if kind == "palette" else {}
    more |= {"bitspersample": 1} if bits == 1 else {}
    tifffile.imwrite(path, stored, photometric=photometric, metadata=None, **more)
    if kind != "palette":
        assert np.array_equal(tifffile.imread(path), stored)
    return expected


READ = [
    (1, "grey"), (1, "white is 0"), (8, "grey"), (8, "white is 0"), (16, "grey"), (8, "palette"), (8, "grey alpha"),
    (8, "cmyk"), *((bits, f"rgb{more}") for bits in (8, 16) for more in ("", " and more", " premultiplied", " alpha")),
]  # fmt: skip
LAYOUTS = [{}, {"rowsperstrip": 7}, {"tile": (16, 16)}]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("bits", "kind"), READ)
def test_tiffs_of_the_tested_forms_are_read_right(
    tmp_path: Path, bits: int, kind: str, compression: str | None, byteorder: str
) -> None:
    for more in LAYOUTS[: 1 if bits == 1 else 3]:
        expected = tiff(tmp_path / "a.tif", bits, kind, compression=compression, byteorder=byteorder, **more)
        read = load_image(tmp_path / "a.tif")
        assert np.abs(read.astype(int) - expected).max() <= (1 if "premultiplied" in kind else 0), more
        assert image_size(tmp_path / "a.tif") == (H, W)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(("bits", "compression"), [(8, None), (8, "zlib"), (16, "zlib")])
def test_tiffs_with_planes_apart_are_read_right(
    tmp_path: Path, bits: int, compression: str | None, byteorder: str
) -> None:
    more = {
        "planarconfig": "separate",
        "compression": compression,
        "byteorder": byteorder,
        "predictor": compression == "zlib",
    }
    for layout in LAYOUTS:
        expected = tiff(tmp_path / "a.tif", bits, "rgb", **more, **layout)
        assert np.array_equal(load_image(tmp_path / "a.tif"), expected), layout


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate"])
def test_other_compressions_of_tiff_are_read_right(tmp_path: Path, rgb: np.ndarray, compression: str) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(load_image(tmp_path / "a.tif"), rgb)
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "b.tif", compression=compression)
    assert np.array_equal(load_image(tmp_path / "b.tif")[..., 1], rgb[..., 0])


def test_a_tiff_of_jpegs_is_read_close_to_what_was_stored(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    for mode in ("RGB", "YCbCr", "L"):
        image = Image.fromarray(flat).convert(mode)
        image.save(tmp_path / "a.tif", compression="jpeg", quality=95)
        assert np.abs(load_image(tmp_path / "a.tif").astype(int) - np.asarray(image.convert("RGB"))).max() <= 3


def of_type(dtype: str, shape: tuple[int, ...] = (H, W), **more):
    return lambda path: tifffile.imwrite(path, np.zeros(shape, dtype), metadata=None, **more)


REFUSED = {
    "16-bit planes apart": lambda path: tiff(path, 16, "rgb", planarconfig="separate"),
    "16-bit grey, white is 0": lambda path: tiff(path, 16, "white is 0"),
    "16-bit grey, white is 0, big-endian": lambda path: tiff(path, 16, "white is 0", byteorder=">"),
    "16-bit grey, white is 0, deflate": lambda path: tiff(path, 16, "white is 0", compression="zlib"),
    "alpha apart": lambda path: tiff(path, 8, "rgb alpha", planarconfig="separate"),
    "more, apart": lambda path: tiff(path, 8, "rgb and more", planarconfig="separate"),
    "CMYK apart": lambda path: tiff(path, 8, "cmyk", planarconfig="separate"),
    "signed 8": of_type("int8", photometric="minisblack"),
    "signed 16": of_type("int16", photometric="minisblack"),
    "signed 32": of_type("int32", photometric="minisblack"),
    "unsigned 32": of_type("uint32", photometric="minisblack"),
    "float 16": of_type("float16", photometric="minisblack"),
    "float 32": of_type("float32", photometric="minisblack"),
    "float 32, RGB": of_type("float32", (H, W, 3), photometric="rgb"),
    "float 64": of_type("float64", photometric="minisblack"),
    "Lab": of_type("uint8", (H, W, 3), photometric="cielab"),
    "YCbCr as it is": of_type("uint8", (H, W, 3), photometric="ycbcr"),
    "fax": lambda path: Image.new("1", (W, H)).save(path, compression="group4"),
    "rows missing": lambda path: (
        tifffile.imwrite(path, np.ones((H, W), np.uint8), photometric="minisblack", metadata=None, rowsperstrip=20),
        set_tag(path, 257, 256),
    ),
}  # fmt: skip


def set_tag(path: Path, tag: int, value: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)


@pytest.mark.parametrize("form", REFUSED)
def test_tiffs_of_other_forms_are_refused_by_size_and_pixels_alike(tmp_path: Path, form: str) -> None:
    REFUSED[form](tmp_path / "a.tif")
    for read in (image_size, load_image):
        with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image"):
            read(tmp_path / "a.tif")


def test_of_several_frames_the_first_is_taken(tmp_path: Path, rgb: np.ndarray) -> None:
    first, second = Image.fromarray(rgb), Image.fromarray(255 - rgb)
    for suffix in ("tif", "png", "webp"):
        more = {"lossless": True} if suffix == "webp" else {}
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **more)
        assert np.array_equal(load_image(tmp_path / f"a.{suffix}"), rgb)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "avif", "gif", "qoi", "ppm", "dib"])
def test_what_pillow_reads_besides_is_read_or_refused_when_cut(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in SUFFIXES:
        pytest.skip("this Pillow is built without it")
    flat = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(flat).save(path)
    assert list_images(tmp_path) == [path]
    assert np.abs(load_image(path).astype(int) - flat).max() <= 6
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(UserError, match=path.name):
        load_image(path)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.HEIC", "c.psd", "d", "e.arw", "README.md", "splits.json", ".hidden"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"4 files are left out, .*: b\.HEIC, c\.psd, d …"):
        assert [path.name for path in list_images(tmp_path)] == ["a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"holds no image .*b\.HEIC, c\.psd, d …"):
        list_images(tmp_path)


def test_a_link_to_nothing_is_named_and_one_to_an_image_is_read(tmp_path: Path, rgb: np.ndarray) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "photos" / "a.png").symlink_to("../a.png")
    assert np.array_equal(load_image(list_images(tmp_path / "photos")[0]), rgb)
    (tmp_path / "photos" / "b.png").symlink_to("../gone.png")
    with pytest.raises(UserError, match=r"b\.png: is a link to \.\./gone\.png, where no file is"):
        list_images(tmp_path / "photos")


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"a\nb.png", b"a\x7f.png"])
def test_a_name_that_cant_stand_in_a_table_is_refused_in_one_line(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).touch()
    with pytest.raises(UserError, match="isn't UTF-8 or has control characters") as caught:
        list_images(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a:b.png", "a'b\".png", "a,b (3).png", "Höhe 1.png", "x" * 250 + ".png"])
def test_other_names_are_read(tmp_path: Path, rgb: np.ndarray, name: str) -> None:
    Image.fromarray(rgb).save(tmp_path / name, "PNG")
    assert np.array_equal(load_image(list_images(tmp_path)[0]), rgb)


def test_a_header_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    for read in (image_size, load_image):
        with pytest.raises(UserError, match=r"a\.png.*10000000000 pixels"):
            read(tmp_path / "a.png")


def test_exif_orientation_is_applied(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for showing
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png"), np.rot90(rgb, -1))
    for suffix in ("jpg", "tif", "webp", "png"):
        Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", exif=exif)
        assert image_size(tmp_path / f"a.{suffix}") == load_image(tmp_path / f"a.{suffix}").shape[:2] == (17, 12)


def test_a_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    for name in ("cut.jpg", "cut.png", "cut.bmp"):
        truncated(tmp_path / name)
        assert image_size(tmp_path / name) == (64, 64)


@pytest.mark.parametrize("name", ["text.png", "empty.jpg", "absent.png"])
def test_a_header_that_cant_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    if name != "absent.png":
        (tmp_path / name).write_text("no image" if name == "text.png" else "")
    with pytest.raises(UserError, match=name):
        image_size(tmp_path / name)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cut.jpg", truncated),
        ("cut.png", truncated),
        ("cut.webp", truncated),
        ("cut.bmp", truncated),
        ("cut.tif", truncated),
        ("text.png", lambda path: path.write_text("not an image")),
        ("empty.jpg", lambda path: path.write_bytes(b"")),
        ("float.tif", lambda path: Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)),
        ("deep.tif", lambda path: Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(path)),
        ("absent.png", lambda path: None),
        ("folder.png", lambda path: path.mkdir()),
    ],
)
def test_what_is_no_whole_image_is_refused_by_name(tmp_path: Path, name: str, write) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=name) as caught:
        load_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_listing_is_sorted_and_takes_images_only(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("name", ["empty", "absent", "file"])
def test_a_folder_without_images_is_refused_with_the_allowed_suffixes(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{name}.*\.jpg"):
        list_images(tmp_path / name)


def test_committed_splits_cover_every_photograph_once_and_cut_no_series() -> None:
    names = [path.name for path in list_images(DATA / "photos")]
    splits = read_splits(DATA / "photos" / "splits.json", names)
    assert {split: len(listed) for split, listed in splits.items()} == {"train": 147, "validation": 22, "test": 25}
    found = {split: {series(name).split("_")[1] for name in listed} for split, listed in splits.items()}
    assert found["validation"] == {"mountain", "water", "dune", "loc"}
    assert found["test"] == {"city", "forest", "beach"}
    assert not found["train"] & (found["validation"] | found["test"])


def test_manifest_describes_every_photograph() -> None:
    described = json.loads((DATA / "photos" / "MANIFEST.json").read_text())
    assert sorted(entry["file"] for entry in described) == [path.name for path in list_images(DATA / "photos")]
    assert {entry["licence"] for entry in described} == {"public domain"}


GOOD = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["d", "x"]}, "x: listed but not in the folder"),
        ({"train": ["a"]}, "b: in the folder of images but in no split"),
        ({"train": ["a", "b", "b"]}, "b: listed more than once"),
        ({"test": ["d", "a"]}, "a: listed more than once"),
        ({"validation": []}, "validation must be a list of at least one"),
        ({"validation": "c"}, "validation must be a list"),
        ({"extra": ["e"]}, "keys must be exactly train, validation, test"),
    ],
)
def test_faulty_splits_are_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(GOOD))
    assert read_splits(path, list("dcba")) == GOOD
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=message):
        read_splits(path, list("abcd"))


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_splits_that_are_no_json_object_are_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "splits.json").write_text(text)
    with pytest.raises(UserError, match=r"splits\.json"):
        read_splits(tmp_path / "splits.json", ["a"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("es_sea9.jpg", "es_sea"), ("krank_level-01.jpg", "krank_level"), ("IMG (3).png", "IMG"), ("menu.jpg", "menu")],
)
def test_series_is_the_name_without_its_number(name: str, expected: str) -> None:
    assert series(name) == expected


def test_made_splits_keep_series_whole_and_hold_out_about_a_tenth_each() -> None:
    names = [f"{place}{i}.png" for place in "abcdefghij" for i in range(4)] + [f"big{i}.png" for i in range(40)]
    splits = make_splits(names, seed=1)
    assert sorted(name for listed in splits.values() for name in listed) == sorted(names)
    found = [{series(name) for name in listed} for listed in splits.values()]
    assert sum(map(len, found)) == 11  # each of the eleven series is in one split only
    assert "big" in found[0]
    assert (len(splits["validation"]), len(splits["test"])) == (8, 12)  # first multiples of 4 at 10% and 12.5% of 80
    assert splits == make_splits(names[::-1], seed=1)
    assert splits != make_splits(names, seed=2)


def numbers(names: list[str]) -> list[int]:
    return [int(Path(name).stem.removeprefix("IMG_")) for name in names]


@pytest.mark.parametrize("others", [[], ["menu.jpg", "roof.jpg"], [f"{c}.jpg" for c in "abcdefgh"]])
def test_a_camera_folder_holds_out_a_share_in_runs_of_neighbours(others: list[str]) -> None:
    names = [f"IMG_{i:04d}.jpg" for i in range(1, 1999)]
    with pytest.warns(UserWarning, match="IMG…: too many images of one series"):
        splits = make_splits(names + others, seed=0)
    assert sorted(name for listed in splits.values() for name in listed) == sorted(names + others)
    assert 0.08 <= len(splits["validation"]) / len(names) <= 0.16
    assert 0.10 <= len(splits["test"]) / len(names) <= 0.19
    for split in ("validation", "test"):
        found = numbers([name for name in splits[split] if name.startswith("IMG")])
        assert sum(later - earlier > 1 for earlier, later in itertools.pairwise(found)) <= 4


def test_every_folder_of_ten_or_more_gets_its_share_held_out() -> None:
    for count in (3, 4, 10, 19, 30, 57, 200):
        for places in (1, 2, 3, 7):
            names = [f"{'abcdefg'[min(i, places - 1)]}{i}.png" for i in range(count)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                splits = make_splits(names, seed=3)
            assert sorted(name for listed in splits.values() for name in listed) == sorted(names)
            held = min(len(splits["validation"]), len(splits["test"]))
            assert held >= max(1, 0.05 * count, min(3, count // 10)), (count, places)
            assert len(splits["train"]) >= count / 3


def test_names_that_differ_by_case_or_suffix_stay_in_one_split() -> None:
    names = [name for i in range(60) for name in (f"IMG_{i}.jpg", f"img_{i}.PNG")]
    with pytest.warns(UserWarning, match="one series"):
        splits = make_splits(names, seed=0)
    where = {name.lower(): split for split, listed in splits.items() for name in listed}
    assert all(where[f"img_{i}.jpg"] == where[f"img_{i}.png"] for i in range(60))


def test_three_images_fill_three_splits_and_two_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = make_splits(["a.png", "b.png", "c.png"], seed=0)
    assert sorted(len(listed) for listed in splits.values()) == [1, 1, 1]
    with pytest.raises(UserError, match=r"at least 3 images are needed, .*; found: 2"):
        make_splits(["a.png", "b.png"], seed=0)
