"""Prepared splits as folders: whole or absent, equal bytes for equal content, mapped when they are read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chains import ROOT

from pipeline.data.raw import Exposures
from pipeline.data.storage import Prepared, gathered, load_split, save_split
from pipeline.errors import UserError
from pipeline.prepare.pairs import Making, make, photographs

PHOTOS = [ROOT / "data" / "photos" / f"es_{name}.jpg" for name in ("city0", "forest1", "sea9")]
LOW_LIGHT = Making("low_light", 2, 96, Exposures(), seed=1, fixed=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_streaming_a_image_at_a_time_writes_the_bytes_of_the_whole_split(tmp_path: Path) -> None:
    whole = gathered(*make(photographs(PHOTOS), LOW_LIGHT))
    save_split(tmp_path / "new" / "streamed", whole)
    save_split(tmp_path / "streamed", *make(photographs(PHOTOS), LOW_LIGHT))
    assert contents(tmp_path / "new" / "streamed") == contents(tmp_path / "streamed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "streamed"]  # nothing temporary is left
    back = load_split(tmp_path / "streamed")
    assert back.keys() == whole.keys()
    assert all(np.array_equal(back[key], whole[key]) and back[key].dtype == whole[key].dtype for key in whole)
    assert all(isinstance(back[key], np.memmap) for key in ("high", "raw"))
    assert not back["high"].flags.writeable


def test_no_more_than_one_image_is_asked_for_before_it_is_written(tmp_path: Path) -> None:
    split, images = make(photographs(PHOTOS), Making("super_resolution", 2, 96))

    def watched() -> Iterator[Prepared]:
        for number, piece in enumerate(images):
            (temporary,) = tmp_path.glob(".train.*.tmp")
            written = sum(path.stat().st_size for path in temporary.glob("*.npy"))
            assert written >= number * (256 * 256 * 3 + 128 * 128 * 3) - 2 * 2**17  # less two files' buffers
            yield piece

    save_split(tmp_path / "train", split, watched())
    assert load_split(tmp_path / "train")["high"].shape == (3 * 256 * 256, 3)


def test_the_index_changes_with_a_single_level_of_a_single_pixel(tmp_path: Path) -> None:
    split = gathered(*make(photographs(PHOTOS[:1]), Making("super_resolution", 2, 96)))
    save_split(tmp_path / "a", split)
    changed = split["high"].copy()
    changed[5, 1] ^= 1
    save_split(tmp_path / "b", split | {"high": changed})
    first, second = (json.loads((tmp_path / name / "index.json").read_text()) for name in "ab")
    assert first["content"]["low"] == second["content"]["low"]
    assert first["content"]["high"] != second["content"]["high"]


def test_a_broken_image_leaves_the_old_split_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    before = contents(tmp_path / "train")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(PHOTOS[1].read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as an image"):
        save_split(tmp_path / "train", *make(photographs([PHOTOS[0], cut]), LOW_LIGHT))
    assert contents(tmp_path / "train") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jpg", "train"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.data.storage.os.fsync", full)
    with pytest.raises(UserError, match=r"train can't be written: No space left on device; a writable folder"):
        save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".train.999999.tmp").mkdir()
    (tmp_path / ".train.999999.tmp" / "high.npy").write_bytes(b"half")
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("file", ["high.npy", "index.json"])
@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY cut", b"{}", b'{"content": {}, "sizes": "many"}'])
def test_a_file_that_is_no_part_of_a_split_is_refused_by_name(tmp_path: Path, file: str, content: bytes | None) -> None:
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    (tmp_path / "train" / file).unlink()
    if content is not None:
        (tmp_path / "train" / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"train/{file}") as caught:
        load_split(tmp_path / "train")
    assert "\n" not in str(caught.value)


def test_a_cut_array_is_refused_by_name(tmp_path: Path) -> None:
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    path = tmp_path / "train" / "high.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train/high\.npy"):
        load_split(tmp_path / "train")


def test_a_split_without_its_arrays_is_refused_by_their_names(tmp_path: Path) -> None:
    save_split(tmp_path / "train", {"task": np.array("low_light"), "scale": np.array(2)})
    with pytest.raises(UserError, match=r"train/index\.json has no names, sizes"):
        load_split(tmp_path / "train")
    named = {"names": np.array(["a"]), "sizes": np.array([[8, 8]])}
    save_split(tmp_path / "train", {"task": np.array("low_light"), "scale": np.array(2)} | named)
    with pytest.raises(UserError, match=r"train/index\.json lacks high, exposures or raw, which low_light needs"):
        load_split(tmp_path / "train")


@pytest.mark.parametrize("file", ["high.npy", "low.npy", "index.json"])
def test_a_single_changed_byte_is_refused_by_its_files_name(tmp_path: Path, file: str) -> None:
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), Making("super_resolution", 2, 96)))
    path = tmp_path / "train" / file
    whole = path.read_bytes()
    places = [5, 70, 90, len(whole) // 2, len(whole) - 1]
    if file == "index.json":
        places = [whole.index(b"128") + 1, whole.index(b"es_city0"), whole.index(b'"digest": "') + 12]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match=rf"train/{file}.* the stage that writes it must run again"):
            load_split(tmp_path / "train")
    path.write_bytes(whole)
    load_split(tmp_path / "train")


def test_a_hole_in_an_array_is_refused(tmp_path: Path) -> None:
    save_split(tmp_path / "train", *make(photographs(PHOTOS[:1]), LOW_LIGHT))
    with open(tmp_path / "train" / "raw.npy", "r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))
    with pytest.raises(UserError, match=r"train/raw\.npy: isn't as it was written"):
        load_split(tmp_path / "train")


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("high", lambda a: a.astype(np.float32), r"high\.npy: holds float32 .* it must be uint8"),
        ("high", lambda a: a[:-1], r"high\.npy: holds uint8 \(\d+, 3\), but by"),
        ("high", lambda a: a.T.copy(), r"high\.npy: holds uint8 \(3, "),
        ("low", lambda a: a.astype(np.uint16), r"low\.npy: holds uint16"),
        ("low", lambda a: a[:, :1], r"low\.npy: holds uint8 \(\d+, 1\)"),
        ("sizes", lambda a: a[:, :1], r"index\.json: sizes"),
        ("sizes", lambda a: -a, r"index\.json: sizes"),
        ("scale", lambda a: a * 2, r"high\.npy: holds uint8"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused_by_name(
    tmp_path: Path, key: str, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    split = gathered(*make(photographs(PHOTOS[:1]), Making("super_resolution", 2, 96)))
    save_split(tmp_path / "train", split | {key: change(split[key])})
    with pytest.raises(UserError, match=said):
        load_split(tmp_path / "train")
