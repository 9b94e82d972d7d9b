"""Reading photographs of every allowed kind, and dividing them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.photographs import image_size, list_images, load_image, make_splits, read_splits, series
from pipeline.errors import UserError

DATA = Path(__file__).parents[1] / "data"


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
        (tmp_path / name).write_text("no picture" if name == "text.png" else "")
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
        ("text.png", lambda path: path.write_text("not a picture")),
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


def test_names_without_series_are_divided_by_image_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="by image"):
        splits = make_splits([f"{i:04d}.png" for i in range(100)], seed=0)
    assert {split: len(listed) for split, listed in splits.items()} == {"train": 77, "validation": 10, "test": 13}


def test_three_images_fill_three_splits_and_two_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = make_splits(["a.png", "b.png", "c.png"], seed=0)
    assert sorted(len(listed) for listed in splits.values()) == [1, 1, 1]
    with pytest.raises(UserError, match="2 images"):
        make_splits(["a.png", "b.png"], seed=0)
