"""SID's raw pairs: real raw files through LibRaw, whatever corner of the mosaic is red."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from raw_files import BGGR, GRBG, RGGB, write_compressed_arw, write_dng

from pipeline.data.raw import PACKING
from pipeline.data.storage import gathered
from pipeline.errors import UserError
from pipeline.prepare import sid
from pipeline.prepare.pairs import Making, Source, make, measure

MAKING = Making("low_light", 2, 16)


@pytest.fixture
def mosaic() -> np.ndarray:
    return np.random.default_rng(0).integers(512, 16384, (32, 48)).astype(np.uint16)


def test_samples_are_packed_in_sids_order_and_not_changed(tmp_path: Path, mosaic: np.ndarray) -> None:
    packed = sid.read_packed(write_dng(tmp_path / "a.ARW", mosaic))
    assert (packed.dtype, packed.shape) == (np.int16, (4, 16, 24))
    for plane, (dy, dx) in zip(packed, PACKING, strict=True):
        assert np.array_equal(plane, mosaic[dy::2, dx::2])


@pytest.mark.parametrize(("pattern", "top", "left"), [(RGGB, 0, 0), (GRBG, 0, 1), (BGGR, 1, 1)])
def test_every_bayer_pattern_is_shifted_so_that_cells_begin_with_red(
    tmp_path: Path, mosaic: np.ndarray, pattern: tuple[int, ...], top: int, left: int
) -> None:
    path = write_dng(tmp_path / "a.dng", mosaic, pattern)
    assert sid.place(path) == ((32 - top) // 2, (48 - left) // 2, top, left)
    assert np.array_equal(sid.read_packed(path)[0], mosaic[top:32:2, left:48:2][: (32 - top) // 2, : (48 - left) // 2])


@pytest.mark.parametrize("pattern", [RGGB, GRBG, BGGR])
def test_targets_are_developed_where_their_samples_are(tmp_path: Path, pattern: tuple[int, ...]) -> None:
    light = np.full((32, 48), 0.02)
    light[10:22, 16:32] = 0.8
    gains = np.tile(np.array([0.5, 1.0, 0.5])[np.array(pattern).reshape(2, 2)], (16, 24))  # grey to this camera
    path = write_dng(tmp_path / "long.dng", 512 + 15871 * light * gains, pattern)
    _, _, top, left = sid.place(path)
    target = sid.read_target(path)
    assert target.dtype == np.uint16
    assert target.shape[:2] == tuple(2 * side for side in sid.place(path)[:2])
    bright = target[..., 1] > 0.6 * target[..., 1].max()
    rows, columns = np.nonzero(bright)
    assert (rows.mean(), columns.mean()) == pytest.approx((15.5 - top, 23.5 - left), abs=0.5)


def test_a_target_is_rawpys_image_with_the_cameras_white_balance(tmp_path: Path, mosaic: np.ndarray) -> None:
    import rawpy

    path = write_dng(tmp_path / "long.ARW", mosaic)
    with rawpy.imread(str(path)) as raw:
        settings = {"use_camera_wb": True, "half_size": False, "no_auto_bright": True, "output_bps": 16}
        assert np.array_equal(sid.read_target(path), raw.postprocess(**settings))


def test_a_cameras_orientation_doesnt_turn_the_target_away_from_the_mosaic(tmp_path: Path, mosaic: np.ndarray) -> None:
    upright = sid.read_target(write_dng(tmp_path / "a.dng", mosaic))
    turned = sid.read_target(write_dng(tmp_path / "b.dng", mosaic, orientation=6))
    assert np.array_equal(upright, turned)


def test_exposure_ratios_come_from_the_names_and_end_at_300() -> None:
    ratios = [
        sid.exposure_ratio(Path(f"00001_00_{short}s.ARW"), Path(f"00001_00_{long}s.ARW"))
        for short, long in (("0.1", "10"), ("0.04", "10"), ("0.033", "10"), ("0.1", "30"))
    ]
    assert ratios == pytest.approx([100, 250, 300, 300])


@pytest.mark.parametrize("name", ["00001_00.ARW", "00001_00_0s.ARW", "00001_00_0.1.ARW"])
def test_a_name_without_a_time_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"the name doesn't say the exposure time"):
        sid.exposure_ratio(Path(name), Path("00001_00_10s.ARW"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("a.ARW b.ARW ISO1 F8\nc.ARW\n", "line 2 has one file"), ("\n", "lists no pair"), (None, "No such file")],
)
def test_a_faulty_list_is_refused_by_its_line(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "Sony_val_list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"Sony_val_list\.txt.*{said}"):
        sid.read_list(path)


def test_what_is_no_raw_file_is_refused_by_name(tmp_path: Path, mosaic: np.ndarray) -> None:
    whole = write_dng(tmp_path / "whole.ARW", mosaic).read_bytes()
    for name, content in (("text.ARW", b"no raw file"), ("cut.ARW", whole[:-1000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: cannot be read as a raw file \(.+\)"):
            sid.read_packed(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.ARW: cannot be read as a raw file \(No such file or directory\)"):
        sid.place(tmp_path / "none.ARW")


def test_another_cameras_black_level_or_range_is_refused(tmp_path: Path, mosaic: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"a\.dng: its black level is 64, but that of SID's Sony camera, 512"):
        sid.read_packed(write_dng(tmp_path / "a.dng", mosaic, black=64))
    with pytest.raises(UserError, match=r"b\.dng: has samples of 40000, but at most 16383"):
        sid.read_packed(write_dng(tmp_path / "b.dng", np.full((32, 48), 40000), white=65535))


@pytest.mark.parametrize("above", [26, 400])
def test_samples_above_white_are_white_unless_they_are_of_another_bit_depth(tmp_path: Path, above: int) -> None:
    mosaic = np.full((300, 300), 600)
    mosaic[0, :26] = 20000  # as defect samples of a real Sony file
    mosaic[1:].flat[:above] = 17000 if above == 400 else 16384  # where the converter ends a little above
    packed = sid.read_packed(write_dng(tmp_path / "a.dng", mosaic, white=16383))
    assert packed.max() == 16383
    assert np.count_nonzero(packed == 16383) == 26 + above


def test_a_dark_frame_of_sixteen_bits_is_told_by_its_header(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.dng: its header gives white as 65535, but 16383 \(14 bits\) is needed"):
        sid.place(write_dng(tmp_path / "a.dng", np.full((32, 48), 600), white=65535))


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_a_compressed_arw_that_is_cut_short_isnt_read_as_whole(tmp_path: Path, cut: int) -> None:
    """LibRaw fills up what is missing, without an error."""
    path = write_compressed_arw(tmp_path / "a.ARW")
    assert sid.place(path) == (32, 32, 0, 0)
    path.write_bytes(path.read_bytes()[:-cut])
    for read in (sid.place, sid.read_packed, sid.read_target):
        with pytest.raises(UserError, match=r"a\.ARW: cannot be read as a raw file \(its samples end at byte \d+, but"):
            read(path)


def test_nothing_but_the_sentence_is_said_of_a_damaged_raw_file(
    tmp_path: Path, mosaic: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_dng(tmp_path / "a.ARW", mosaic)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.ARW: cannot be read"):
        sid.place(path)
    print("later", file=sys.stderr)
    assert capfd.readouterr() == ("", "later\n")


LINE = "short/1_0.1s.ARW long/1_10s.ARW"


@pytest.mark.parametrize(
    "content",
    [
        LINE.encode(),
        b"\xef\xbb\xbf" + LINE.encode() + b" ISO200 F8\r\n\r\n",
        b"# a comment\n\n  # another, indented\n\t" + LINE.replace(" ", "\t").encode() + b"\tISO200 F8 more",
        b"short\\1_0.1s.ARW .\\long\\1_10s.ARW\r",
    ],
)
def test_a_list_is_read_as_editors_write_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "Sony_val_list.txt"
    path.write_bytes(content)
    (pair,) = sid.read_list(path)
    assert (pair.short, pair.long) == (tmp_path / "short/1_0.1s.ARW", tmp_path / "long/1_10s.ARW")
    assert pair.ratio == pytest.approx(100)


def test_a_lists_absolute_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "Sony_val_list.txt"
    path.parent.mkdir()
    path.write_text(f"{tmp_path}/1_0.1s.ARW ../1_10s.ARW")
    (pair,) = sid.read_list(path)
    assert (pair.short, pair.long.resolve()) == (tmp_path / "1_0.1s.ARW", tmp_path / "1_10s.ARW")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_list_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "Sony_val_list.txt"
    path.write_bytes(LINE.encode(encoding))
    with pytest.raises(UserError, match=r"Sony_val_list\.txt: cannot be read as a list .*UTF-16"):
        sid.read_list(path)


def test_exposures_of_one_time_are_a_pair_and_exchanged_ones_are_not() -> None:
    assert sid.exposure_ratio(Path("1_00_10s.ARW"), Path("1_01_10s.ARW")) == 1
    with pytest.raises(UserError, match=r"1_00_10s\.ARW is exposed for 10 s and 1_00_0\.1s\.ARW for 0\.1 s, but"):
        sid.exposure_ratio(Path("1_00_10s.ARW"), Path("1_00_0.1s.ARW"))


def pair(folder: Path, short: np.ndarray, long: np.ndarray, pattern: tuple[int, ...] = RGGB) -> Source:
    paths = write_dng(folder / "s_0.1s.ARW", short), write_dng(folder / "l_10s.ARW", long, pattern)
    return Source(paths[0].name, paths[1], paths[0], 100.0)


def test_exposures_of_other_sizes_or_mosaics_dont_fit(tmp_path: Path, mosaic: np.ndarray) -> None:
    assert measure(pair(tmp_path, mosaic, mosaic), MAKING) == (16, 24)
    for other in (pair(tmp_path / "a", mosaic, mosaic[:30]), pair(tmp_path / "b", mosaic, mosaic, GRBG)):
        with pytest.raises(UserError, match=r"s_0\.1s\.ARW: doesn't fit .*l_10s\.ARW"):
            measure(other, MAKING)


def test_a_shared_long_exposure_is_developed_and_kept_once(tmp_path: Path, mosaic: np.ndarray) -> None:
    first = pair(tmp_path, mosaic, mosaic)
    second = Source("s_0.04s.ARW", first.target, write_dng(tmp_path / "s_0.04s.ARW", mosaic // 2 + 256), 250.0)
    split = gathered(*make([first, second], MAKING))
    assert split["high"].shape == (32 * 48, 3)
    assert split["shown"].tolist() == [0, 0]
    assert split["ratio"].tolist() == [100.0, 250.0]
    assert len(split["raw"]) == 2 * 32 * 48
