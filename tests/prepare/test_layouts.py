"""Folders as people have them: what is found, what is missing or broken, and what is made of it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chains import ROOT, stage
from PIL import Image
from raw_files import write_dng, write_sid
from skimage import data

from pipeline import config
from pipeline.data.dataset import load_images
from pipeline.data.degradations import bicubic_downscale
from pipeline.data.storage import gathered
from pipeline.errors import UserError
from pipeline.prepare import layouts, sid
from pipeline.prepare.images import load_image
from pipeline.prepare.layouts import Listing
from pipeline.prepare.pairs import make

GOOD = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
TASKS = {  # networks that params.yaml doesn't have
    "clean": {"factory": "edsr", "args": {"scale": 1, "blocks": 1, "channels": 4}, "task": "restoration", "scale": 1},
}

LACKING = "; DIV2K has it, and prepare.NETWORK.train, validation and test say which numbers are wanted"


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decoded is written down in the test's folder."""
    monkeypatch.setattr(layouts, "RAW_FILES", tmp_path / ".scratch" / "raw-files.json")
    monkeypatch.setattr(sid, "_seen", {})


def params_of(network: str, section: dict[str, Any]) -> dict[str, Any]:
    """The shipped parameters with one network alone, trained on small patches."""
    values = copy.deepcopy(GOOD)
    values["run"]["networks"], values["prepare"] = [network], {network: section}
    values["networks"] |= TASKS
    for part in (values["train"], values["analyze"], values["retrain"], values["tolerance"], values["finetune"]):
        part[network] = part.get(network) or part["edsr"]
    values["train"][network] = values["train"][network] | {"patch": 8}
    return values


def look(at: Path, network: str, **section: Any) -> Listing:
    path = at / "params.yaml"
    path.write_text(yaml.safe_dump(params_of(network, section)))
    return layouts.find(config.read(path), network)


def named(found: Listing) -> dict[str, list[str]]:
    return {key: [source.name for source in part.sources] for key, part in found.parts.items()}


def crop(number: int, height: int = 64, width: int = 48) -> np.ndarray:
    """A window of a photograph, another for each number."""
    return np.ascontiguousarray(data.astronaut()[8 * number : 8 * number + height, 100 : 100 + width])


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_div2k(folder: Path, small: bool = True) -> Path:
    """DIV2K's tree in miniature: images 1 to 3, 801 and 811, small ones at ×2 if asked for."""
    for k, number in enumerate((1, 2, 3, 801, 811)):
        part, pixels = "train" if number <= 800 else "valid", crop(k)
        save(folder / f"DIV2K_{part}_HR" / f"{number:04d}.png", pixels)
        if small:
            path = folder / f"DIV2K_{part}_LR_bicubic" / "X2" / f"{number:04d}x2.png"
            save(path, 255 - bicubic_downscale(pixels, 2))  # inverted: seen to be read, and not made
    return folder


RANGES = {"train": [1, 3], "validation": [801, 801], "test": [811, 811]}


def test_photographs_of_every_format_and_depth_make_a_split(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for k, suffix in enumerate(("png", "jpg", "tif", "bmp", "webp")):
        save(photos / f"{'abcde'[k]}.{suffix}", crop(k))
    grey16 = (crop(6)[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    save(photos / "f.png", grey16)
    save(photos / "g.png", np.dstack([crop(7), np.full((64, 48), 255, np.uint8)]))
    found = look(tmp_path, "edsr", layout="photographs", folder=str(photos))
    assert not found.errors
    assert sorted(name for names in named(found).values() for name in names) == sorted(p.name for p in photos.iterdir())
    for part in found.parts.values():
        images = load_images(gathered(*make(part.sources, part.making)), "cpu")
        for i, source in enumerate(part.sources):
            target = images.pair(i)[1][0].permute(1, 2, 0).mul(255).round().byte().numpy()
            assert np.array_equal(target, load_image(source.target))


def test_pairs_are_of_one_stem_whatever_their_suffixes(tmp_path: Path) -> None:
    for k, name in enumerate("abcd"):
        save(tmp_path / "set" / "targets" / f"{name}.png", crop(k))
        save(tmp_path / "set" / "inputs" / f"{name}.bmp", 255 - crop(k))
    (tmp_path / "set" / "splits.json").write_text(
        json.dumps({"train": ["a.png", "c.png"], "validation": ["b.png"], "test": ["d.png"]})
    )
    found = look(tmp_path, "clean", layout="paired", folder=str(tmp_path / "set"))
    assert (found.errors, named(found)["train"]) == ([], ["a.png", "c.png"])
    assert found.parts["train"].inputs == "inputs read"
    part = found.parts["train"]
    images = load_images(gathered(*make(part.sources, part.making)), "cpu")
    for given, target in (images.pair(1), images.batch(0, 0, 4, 8)):
        assert given.shape == target.shape
        assert np.allclose(given.numpy(), 1 - target.numpy(), atol=1e-6)


def test_errors_of_pairs_are_all_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for k, name in enumerate("abcd"):
        save(folder / "targets" / f"{name}.png", crop(k))
        save(folder / "inputs" / f"{name}.png", bicubic_downscale(crop(k), 2))
    save(folder / "inputs" / "b.png", crop(1)[:20, :20])
    save(folder / "inputs" / "e.png", crop(4))
    (folder / "inputs" / "c.png").unlink()
    (folder / "inputs" / "d.png").write_bytes(b"no image")
    save(folder / "inputs" / "a.bmp", crop(0))
    found = look(tmp_path, "edsr", layout="paired", folder=str(folder))
    text = "\n".join(found.errors)
    assert len(found.errors) == 5, text
    assert "has the same stem" in text
    assert f"{folder}/targets/c.png: has no partner of the same name in {folder}/inputs" in text
    assert f"{folder}/inputs/e.png: has no partner of the same name in {folder}/targets" in text
    assert "inputs/b.png: the input has 20×20 pixels, but its target b.png with scale 2 needs 24×32" in text
    assert "inputs/d.png: cannot be read as an image" in text


@pytest.mark.parametrize("small", [True, False])
def test_div2k_is_read_as_it_unpacks_and_small_images_made_where_there_are_none(tmp_path: Path, small: bool) -> None:
    folder = write_div2k(tmp_path / "DIV2K", small)
    found = look(tmp_path, "edsr", layout="div2k", folder=str(folder), **RANGES)
    assert found.errors == []
    assert named(found) == {
        "train": ["0001.png", "0002.png", "0003.png"],
        "validation": ["0801.png"],
        "test": ["0811.png"],
    }
    part = found.parts["train"]
    assert part.inputs == ("inputs read" if small else "inputs made here: bicubic, 1/2 of each side")
    given = load_images(gathered(*make(part.sources, part.making)), "cpu").pair(1)[0][0].permute(1, 2, 0) * 255
    expected = bicubic_downscale(crop(1), 2)
    assert np.array_equal(given.round().byte().numpy(), 255 - expected if small else expected)


def test_div2ks_small_images_serve_super_resolution_alone(tmp_path: Path) -> None:
    folder = str(write_div2k(tmp_path / "DIV2K"))
    for network, more in (("clean", {"noise": 15.0}), ("sid", {"ratio": [100.0, 100.0]})):
        found = look(tmp_path, network, layout="div2k", folder=folder, **RANGES, **more)
        assert found.errors == []
        assert all(source.input is None for part in found.parts.values() for source in part.sources)
        assert "made here" in found.parts["train"].inputs


def test_what_div2k_lacks_is_named_with_where_it_comes_from(tmp_path: Path) -> None:
    folder = write_div2k(tmp_path / "DIV2K")
    (folder / "DIV2K_train_HR" / "0002.png").unlink()
    (folder / "DIV2K_train_LR_bicubic" / "X2" / "0003x2.png").unlink()
    shutil.rmtree(folder / "DIV2K_valid_HR")
    found = look(tmp_path, "edsr", layout="div2k", folder=str(folder), **RANGES)
    assert found.errors == [
        f"{folder}/DIV2K_train_HR/0002.png: there is no such file{LACKING}",
        f"{folder}/DIV2K_train_LR_bicubic/X2/0003x2.png: there is no such file{LACKING}",
        f"{folder}/DIV2K_valid_HR: there is no such folder; it comes from https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    ]
    assert named(found)["train"] == ["0001.png"]
    absent = look(tmp_path, "edsr", layout="div2k", folder=str(tmp_path / "none"))
    assert absent.errors == [
        f"{tmp_path}/none: there is no such folder; it comes from https://data.vision.ee.ethz.ch/cvl/DIV2K/"
    ]


def test_sid_is_read_as_it_unpacks(tmp_path: Path) -> None:
    folder = write_sid(tmp_path / "SID")
    found = look(tmp_path, "sid", layout="sid", folder=str(folder))
    assert found.errors == []
    assert named(found) == {
        "train": ["00001_00_0.04s.ARW", "00001_00_0.1s.ARW"],
        "validation": ["20001_00_0.033s.ARW"],
        "test": ["10001_00_0.1s.ARW"],
    }
    assert [source.ratio for source in found.parts["train"].sources] == pytest.approx([250, 100])
    part = found.parts["test"]
    split = gathered(*make(part.sources, part.making))
    assert part.bytes == sum(split[key].nbytes for key in ("high", "raw"))
    images = load_images(split, "cpu")
    given, target = images.pair(0)
    assert (given.shape, target.shape) == ((1, 4, 24, 24), (1, 3, 48, 48))
    assert images.ratio.tolist() == [300]
    darkest, brightest = given.mean(dim=1).flatten().argmin(), given.mean(dim=1).flatten().argmax()
    seen = target.mean(dim=1)[:, ::2, ::2].flatten()
    assert seen[darkest] < seen[brightest]  # of one scene
    assert images.batch(0, 0, 2, 8)[0].shape == (2, 4, 8, 8)


def test_what_sid_lacks_and_what_is_broken_is_named(tmp_path: Path) -> None:
    folder = write_sid(tmp_path / "SID")
    (folder / "Sony/short/00001_00_0.1s.ARW").unlink()
    (folder / "Sony/long/20001_00_10s.ARW").write_bytes(b"no raw file")
    (folder / "Sony_test_list.txt").unlink()
    found = look(tmp_path, "sid", layout="sid", folder=str(folder))
    text = "\n".join(found.errors)
    assert len(found.errors) == 3, text
    assert f"{folder}/Sony/short/00001_00_0.1s.ARW: there is no such file; {folder}/Sony_train_list.txt: line 2" in text
    assert f"{folder}/Sony/long/20001_00_10s.ARW: cannot be read as a raw file" in text
    assert f"{folder}/Sony_test_list.txt: cannot be read as a list of raw files (No such file" in text
    shutil.rmtree(folder / "Sony")
    text = "\n".join(look(tmp_path, "sid", layout="sid", folder=str(folder)).errors)
    assert f"{folder}/Sony/short: there is no such folder; it comes from https://github.com/cchen156/" in text


def test_a_broken_long_exposure_is_named_once(tmp_path: Path) -> None:
    folder = write_sid(tmp_path / "SID")
    (folder / "Sony/long/00001_00_10s.ARW").write_bytes(b"no raw file")
    assert len(look(tmp_path, "sid", layout="sid", folder=str(folder)).errors) == 1


def test_test_sets_are_found_by_name_and_their_errors_too(tmp_path: Path) -> None:
    for k, name in enumerate(("baby", "bird")):
        save(tmp_path / "Set5" / f"{name}.png", crop(k, 45, 47))
    save(tmp_path / "Set14" / "tiny.png", crop(0, 20, 20))
    sets = {"Set5": str(tmp_path / "Set5"), "Set14": str(tmp_path / "Set14"), "B100": str(tmp_path / "none")}
    found = look(tmp_path, "edsr", layout="photographs", folder=str(ROOT / "data/photos"), test_sets=sets)
    assert named(found)["sets/Set5"] == ["baby.png", "bird.png"]
    assert found.parts["sets/Set5"].sizes == [(22, 23)] * 2
    assert len(found.errors) == 2
    assert found.errors[0].startswith(f"test_sets.B100: {tmp_path}/none: there is no such folder")
    assert "Set14/tiny.png: the image has 20×20 pixels (all usable), but each side needs at least 24" in found.errors[1]


def prepare(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for name in ("pipeline", "stages"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return stage(folder, "prepare", *words)


def test_the_check_lists_everything_and_writes_nothing(tmp_path: Path) -> None:
    write_div2k(tmp_path / "DIV2K")
    (tmp_path / "DIV2K/DIV2K_train_HR/0002.png").write_bytes(b"broken")
    (tmp_path / "DIV2K/DIV2K_valid_HR/0811.png").unlink()
    section = {"layout": "div2k", "folder": "DIV2K", **RANGES}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_of("edsr", section)))
    began = time.monotonic()
    done = prepare(tmp_path, "--check")
    assert time.monotonic() - began < 60
    assert done.returncode == 2
    assert "train: 2 images, 48×64 pixels; inputs read" in done.stdout
    assert "test: no image that can be used" in done.stdout
    assert "missing or broken: DIV2K/DIV2K_valid_HR/0811.png: there is no such file" in done.stdout
    assert "missing or broken: DIV2K/DIV2K_train_HR/0002.png: cannot be read as an image" in done.stdout
    assert "official archives: https://data.vision.ee.ethz.ch/cvl/DIV2K/" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    real = prepare(tmp_path, "edsr")
    assert real.returncode == 2
    assert f"DIV2K/DIV2K_valid_HR/0811.png: there is no such file{LACKING} (1 more: python -m" in real.stderr
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]

    for k, path in enumerate(("DIV2K/DIV2K_train_HR/0002.png", "DIV2K/DIV2K_valid_HR/0811.png")):
        save(tmp_path / path, crop(5 + k))
    shutil.rmtree(tmp_path / "results")
    done = prepare(tmp_path, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "missing" not in done.stdout
    assert not (tmp_path / "results").exists()


def test_a_folder_too_large_for_the_disk_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.files import room

    monkeypatch.chdir(tmp_path)
    room(Path("results"), 1000)
    with pytest.raises(UserError, match=r"results: 1,000,000,000,000\.0 MB are needed on this disk, which has"):
        room(Path("results"), 10**18)


@pytest.mark.parametrize("side", ["short", "long"])
def test_a_raw_file_of_another_camera_is_found_before_anything_is_packed(tmp_path: Path, side: str) -> None:
    folder = write_sid(tmp_path / "SID")
    name = {"short": "00001_00_0.1s.ARW", "long": "00001_00_10s.ARW"}[side]
    write_dng(folder / "Sony" / side / name, np.full((48, 48), 600), black=64)
    errors = look(tmp_path, "sid", layout="sid", folder=str(folder)).errors
    assert len(errors) == 1
    assert f"{name}: its black level is 64" in errors[0]


SHORT, LONG = "./Sony/short/20001_00_0.033s.ARW", "./Sony/long/20001_00_10s.ARW"


@pytest.mark.parametrize(
    ("split", "line", "said"),
    [
        ("val", f"{SHORT} {LONG} ISO200 F8", "Sony_val_list.txt: line 2 has 20001_00_0.033s.ARW again, as "),
        ("val", "Sony/./short/../short/20001_00_0.033s.ARW " + LONG, "Sony_val_list.txt: line 2 has 20001_00_0.033s"),
        ("val", SHORT.replace("/", "\\") + " " + LONG, "Sony_val_list.txt: line 2 has 20001_00_0.033s.ARW again"),
        ("test", f"{SHORT} {LONG}", "Sony_test_list.txt: line 2 has 20001_00_0.033s.ARW again, as "),
        ("train", f"./Sony/short/10001_00_0.1s.ARW {LONG}", "_val_list.txt: line 1 has the long exposure 20001_00_10s"),
        ("val", f"./Sony/long/20001_00_10s.ARW {LONG}", "line 2 has 20001_00_10s.ARW as the short exposure, but"),
        ("val", f"{LONG} {SHORT}", "line 2: 20001_00_10s.ARW is exposed for 10 s and 20001_00_0.033s.ARW for 0.033 s"),
        ("val", f"{SHORT} long.ARW", "line 2: long.ARW: the name doesn't say the exposure time"),
        ("val", SHORT.replace("033", "1") + " ./Sony/long/" + 300 * "x" + "_10s.ARW", "_val_list.txt: line 2 names it"),
    ],
)
def test_no_pair_serves_twice_and_the_sentence_names_list_and_line(
    tmp_path: Path, split: str, line: str, said: str
) -> None:
    folder = write_sid(tmp_path / "SID")
    with (folder / f"Sony_{split}_list.txt").open("a") as file:
        file.write(line)
    errors = look(tmp_path, "sid", layout="sid", folder=str(folder)).errors
    assert any(said.replace("long.ARW:", f"{folder}/long.ARW:") in error for error in errors), errors


def test_a_raw_file_is_decoded_once_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = write_sid(tmp_path / "SID"), []
    checked = sid._checked
    monkeypatch.setattr(sid, "_checked", lambda path, raw: opened.append(path.name) or checked(path, raw))
    for _ in range(3):
        monkeypatch.setattr(sid, "_seen", {})  # as another process
        assert look(tmp_path, "sid", layout="sid", folder=str(folder)).errors == []
    assert sorted(opened) == sorted(path.name for path in folder.glob("Sony/*/*"))
    write_dng(folder / "Sony/long/10001_00_30s.ARW", np.full((48, 48), 600), black=64)
    assert len(look(tmp_path, "sid", layout="sid", folder=str(folder)).errors) == 1
    layouts.RAW_FILES.write_text('{"x": [1]}')
    assert len(look(tmp_path, "sid", layout="sid", folder=str(folder)).errors) == 1


def test_the_check_finds_what_only_decoding_shows(tmp_path: Path) -> None:
    """A JPEG and a PNG that are cut short have whole headers."""
    for k in range(6):
        save(tmp_path / "photos" / f"a{k}.png", crop(k))
        Image.fromarray(crop(k)).save(tmp_path / "photos" / f"b{k}.jpg")
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params_of("edsr", {"layout": "photographs", "folder": str(tmp_path / "photos")})))
    assert layouts.find(config.read(path), "edsr", pixels=True).errors == []
    for name in ("a1.png", "b2.jpg"):
        whole = (tmp_path / "photos" / name).read_bytes()
        (tmp_path / "photos" / name).write_bytes(whole[: len(whole) // 2])
    found = layouts.find(config.read(path), "edsr", pixels=True)
    assert sorted(Path(error.partition(":")[0]).name for error in found.errors) == ["a1.png", "b2.jpg"]
