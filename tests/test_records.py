"""Results that were edited or damaged: each reader gives the same typed values, or one sentence about the file."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import records
from pipeline.data.storage import load_split, save_split
from pipeline.errors import UserError
from pipeline.files import read_json, stage_of, write_csv, write_json, write_sealed, write_text
from pipeline.pruning import iterations
from pipeline.report import pictures

QUALITY = {"psnr": 30.0, "ssim": 0.9}
SET = {"psnr": 30.0, "ssim": 0.9, "psnr_y": 32.0, "ssim_y": 0.95}


def solution(psnr: float, share: int | None = None) -> dict[str, Any]:
    """Of a baseline with 30 dB and a control with 30.5 dB; share: of the baseline's costs, in percent."""
    row: dict[str, Any] = {"psnr": psnr, "ssim": 0.9}
    for name, other in (("baseline", 30.0), ("control", 30.5)):
        mean = psnr - other
        row[f"against_{name}"] = {"mean": mean, "low": mean - 1, "high": mean + 1, "worst": mean - 2, "worst_name": "a"}
    if share is not None:
        for key, whole in {"mac": 2000, "weights": 400, "activations": 100, "bw": 500}.items():
            row |= {key: whole * share // 100, f"{key}_percent": float(share)}
    return row


def iteration(number: int, verdict: str, lineage: int, mac: int, **more: Any) -> iterations.Iteration:
    common = {"thresholds": {"g": 0.5}, "removed": {"g": 1}, "channels": {"g": 4}, "widths": {"head": 8, "tail": 3}}
    figures_ = {"weights": 400, "activations": 100, "bw": 500, "psnr": 30.0, "ssim": 0.9} | more
    return iterations.Iteration(number, verdict, "said", lineage, mac=mac, **common, **figures_)


LOG = [
    iteration(0, "accepted", 0, 2000),
    iteration(1, "rejected", 1, 1800, psnr=float("nan"), psnr_change=float("nan")),
    iteration(2, "accepted", 1, 1000),
]


def timed(network: str, seconds: float, memory: int | None = 4096) -> dict[str, Any]:
    return {"runtime": "torch", "side": 64, "network": network, "seconds": seconds, "low": seconds, "high": 2 * seconds,
            "ratio": seconds / 0.5, "memory": memory}  # fmt: skip


def spent(network: str, share: float) -> list[dict[str, Any]]:
    head = {"layer": "head", "mac": 200, "bw": 50, "inputs": 3, "outputs": 8}
    return [{"network": network, "seconds": 0.1, "ratio": share, **row} for row in (head, {"layer": "everything else"})]


TRIALS = [
    {
        "trial": 0,
        "state": "complete",
        "params": {"a": 1.0, "b": 2},
        "mac_percent": 50.0,
        "feasible": True,
        "psnr_change": 0,
    },
    {"trial": 1, "state": "fail", "params": {}, "reason": "it broke"},
    {"trial": 2, "state": "pruned", "params": {"a": 1.5, "b": 2}, "mac_percent": 70.0},
]
MADE: dict[str, Any] = {
    "train/net/metrics.json": {**QUALITY, "input_psnr": 28.0},
    "train/net/curve.csv": "step,psnr,loss\n2,29.5,0.1\n4,30.0,\n",
    "control/net/curve.json": [
        {"steps": 3 * n, "psnr": 30.0 + n / 8, "ssim": 0.75, "image_psnr": [29.0 + n / 8, 31.0 + n / 8],
         "image_ssim": [0.5, 1.0]} for n in range(3)
    ],
    "control/net/end.json": {"steps": 10, **QUALITY, "image_psnr": [QUALITY["psnr"]] * 2,
                             "image_ssim": [QUALITY["ssim"]] * 2},
    "analyze/net/groups.json": {
        "groups": [{"name": "g", "channels": 8, "producers": ["head"], "readers": ["tail"], "mac_per_channel": 2.5}],
        "frozen": ["tail stays whole"],
    },
    "analyze/net/layers.csv": "layer,channels,mac,weights,mac_per_weight\nhead,8,1000,200,5.0\ntail,3,1000,200,5.0\n",
    "prune/net/D/log.json": [asdict(one) for one in LOG],
    "prune/net/D/path.csv": "number,verdict,mac,psnr_change\n0,accepted,2000,0\n1,rejected,1800,nan\n"
                            "2,accepted,1000,0\n",
    "finetune/net/D/metrics.json": {"mac_percent": 50.0, "bw_percent": 50.0, **QUALITY, "psnr_change": -0.1,
                                    "ssim_change": 0.0, "steps": 13},
    "finetune/net/D/attempts.json": ["iteration 2: holds"],
    "finetune/net/D/end.json": {"steps": 13, **QUALITY, "image_psnr": [QUALITY["psnr"]] * 2,
                                "image_ssim": [QUALITY["ssim"]] * 2},
    "evaluate/net/metrics.json": {"input": solution(28.0), "baseline": solution(30.0, 100),
                                  "control": solution(30.5, 100), "D": solution(30.25, 50)},
    "evaluate/net/sets.json": {"Set5": {"images": 5, **dict.fromkeys(("input", "baseline", "control", "D"), SET)}},
    "evaluate/net/widths.json": {"baseline": {"head": 8, "tail": 3}, "control": {"head": 8, "tail": 3},
                                 "D": {"head": 5, "tail": 3}},
    "evaluate/net/samples.json": {"largest loss": ["a.png", -0.5], "median": ["b.png", 0.0],
                                  "largest gain": ["c.png", 0.5]},
    "evaluate/net/images.csv": "image,solution,psnr,ssim,psnr_change\n" + "".join(
        f"{name},{solution},30.0,0.9,{change}\n" for solution in ("baseline", "D")
        for name, change in (("a.png", -0.5), ("b.png", 0.00004), ("c.png", 0.5), ("d.png", 0.25))),
    "latency/net/latency.json": {
        "processor": "one", "simd_width": 8, "threads": 1, "side": 64, "left_out": {"onnxruntime": "no"},
        "mac_percent": {"baseline": 100.0, "D": 50.0, "D, to 8": 75.0},
        "networks": [timed("baseline", 0.5), timed("D", 0.25, None)],
        "layers": [*spent("baseline", 1.0), *spent("D", 0.5)],
    },
    "prepare/net/sets/names.json": ["Set5"],
    "search/net-D/trials.json": TRIALS,
}  # fmt: skip

READERS: dict[str, Callable[[Path], Any]] = {
    "train/net/metrics.json": lambda results: records.read(results / "train/net/metrics.json", records.Baseline),
    "train/net/curve.csv": lambda results: records.rows(results / "train/net/curve.csv", records.CurveRow),
    "control/net/curve.json": lambda results: records.control(results, "net", 3, 2),
    "control/net/end.json": lambda results: records.control(results, "net"),
    "analyze/net/groups.json": lambda results: records.groups(results, "net"),
    "analyze/net/layers.csv": lambda results: records.layers(results, "net"),
    "prune/net/D/log.json": lambda results: iterations.read_log(results / "prune/net/D/log.json"),
    "prune/net/D/path.csv": lambda results: records.path_of(results, "net", "D"),
    "finetune/net/D/metrics.json": lambda results: (
        records.read(results / "finetune/net/D/metrics.json", records.Tuned),
        records.path_of(results, "net", "D")[1],
    ),
    "finetune/net/D/attempts.json": lambda results: records.attempts(results / "finetune/net/D/attempts.json"),
    "finetune/net/D/end.json": lambda results: records.ended(results, "net", "D", 2),
    "evaluate/net/metrics.json": lambda results: records.solutions(results, "net", ["D"]),
    "evaluate/net/sets.json": lambda results: records.sets(results, "net", ["D"]),
    "evaluate/net/widths.json": lambda results: records.widths(results, "net", ["D"]),
    "evaluate/net/samples.json": lambda results: records.samples(results, "net", "D"),
    "latency/net/latency.json": lambda results: records.latency(results, "net", "D"),
    "prepare/net/sets/names.json": lambda results: records.test_sets(results / "prepare/net/sets"),
    "prepare/net/train/index.json": lambda results: load_split(results / "prepare/net/train"),
    "search/net-D/trials.json": lambda results: records.trials(results / "search/net-D"),
}


def images() -> dict[str, np.ndarray]:
    """A split of two images for super-resolution by 2: 2×3 and 4×2 input pixels."""
    sizes = np.array([[2, 3], [4, 2]])
    pixels = int(sizes.prod(axis=1).sum())
    return {
        "task": np.array("super_resolution"), "names": np.array(["a.png", "b.png"]), "scale": np.array(2),
        "sizes": sizes, "low": np.zeros((pixels, 3), np.uint8), "high": np.zeros((4 * pixels, 3), np.uint8),
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Every file that a stage reads of another's, small."""
    folder = tmp_path / "results"
    for name, content in MADE.items():
        (write_text if isinstance(content, str) else write_json)(folder / name, content)
    (folder / "prepare/net/sets/Set5").mkdir()
    save_split(folder / "prepare/net/train", images())
    for one in LOG:
        if one.verdict == "accepted":
            write_text(folder / f"prune/net/D/networks/accepted-{one.number:03d}.pt", "tensors")
    return folder


def said(read: Callable[[], Any], file: str) -> str:
    """The sentence of a read that must be refused."""
    with pytest.raises(UserError) as caught:
        read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert file in sentence
    assert len(sentence) < 900
    return sentence


@pytest.mark.parametrize("file", READERS)
def test_whole_results_are_read(results: Path, file: str) -> None:
    assert READERS[file](results)


def test_a_damaged_value_is_said_with_file_key_what_is_needed_and_the_command(results: Path) -> None:
    path = results / "control/net/curve.json"
    curve = copy.deepcopy(MADE["control/net/curve.json"])
    curve[1]["psnr"] = "x"
    write_json(path, curve)
    assert said(lambda: records.control(results, "net"), "curve.json") == (
        f"{path}: entry 1, psnr is 'x' but should be a valid number; dvc repro -s -f control@net makes it anew"
    )


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("results/prune/edsr/D/networks/accepted-000.pt", "prune@edsr-D"),
        ("results/prepare/edsr/sets/names.json", "prepare@edsr"),
        ("/data/results/x/results/train/results/curve.csv", "train@results"),
        ("results/train/train/curve.csv", "train@train"),
        ("results/report/table.md", ""),
        ("results/search/edsr-D/trials.json", ""),
        ("/data/evaluate/edsr/x.json", ""),
    ],
)
def test_the_stage_that_writes_a_file_is_named_as_dvc_names_it(file: str, stage: str) -> None:
    assert stage_of(Path(file)) == stage


CONTRADICTIONS: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("control/net/curve.json", (1, "steps"), 4, "entry 1, steps is 4 but should be 3"),
    ("control/net/end.json", ("steps",), 5, "steps is 5 but"),
    ("control/net/curve.json", (1, "psnr"), 31.0, "entry 1, psnr is 31, but its images' mean is another"),
    ("control/net/curve.json", (2, "image_ssim"), [0.75], "entry 2, image_ssim has 1 entries, but there are 2 images"),
    ("evaluate/net/metrics.json", ("D", "mac"), 900, "D, mac_percent is 50 but mac is 45% of the baseline's"),
    ("evaluate/net/metrics.json", ("D", "psnr"), 31.0, "D, against_baseline, mean is 0.25 but psnr differs by 1"),
    ("evaluate/net/metrics.json", ("D", "against_control", "low"), 5.0, "low is above high"),
    ("evaluate/net/widths.json", ("D", "head"), 9, "D, head is 9, but the layer has 8 channels"),
    ("evaluate/net/widths.json", ("D", "neck"), 9, "D has other layers than"),
    ("evaluate/net/samples.json", ("median", 1), -0.75, "median is -0.75, but 4e-05 in"),
    ("evaluate/net/samples.json", ("median",), ["d.png", 0.25], "isn't the median of"),
    ("evaluate/net/samples.json", ("median", 0), "z.png", "median is 'z.png', of which"),
    ("evaluate/net/samples.json", ("largest gain",), ["a.png", -0.5], "has the change -0.5, but"),
    ("evaluate/net/samples.json", ("best",), ["c.png", 0.5], "best is ['c.png', 0.5] but"),
    (
        "finetune/net/D/metrics.json",
        ("mac_percent",),
        20.0,
        "mac_percent is 20, which no iteration of",
    ),
    ("latency/net/latency.json", ("networks", 1, "network"), "E", "networks, entry 1, network is 'E'"),
    ("latency/net/latency.json", ("networks", 0, "side"), 32, "networks, entry 1 has no baseline before it"),
    ("latency/net/latency.json", ("side",), 32, "networks has no row of D at the side 32"),
    ("latency/net/latency.json", ("layers", 2, "layer"), "neck", "layers has other layers of baseline than of D"),
    ("latency/net/latency.json", ("layers", 1, "mac"), 5, "layers, entry 1 has costs where it should have none"),
    ("latency/net/latency.json", ("simd_width",), 16, "mac_percent has no D, to 16"),
    ("prepare/net/sets/names.json", (0,), "Set14", "names Set14, but the folders are Set5"),
    (
        "prepare/net/train/index.json",
        ("sizes", 0, 0),
        3,
        "index.json isn't as it was written; dvc repro -s -f prepare@net",
    ),
    ("prepare/net/train/index.json", ("names", 0), None, "names, entry 0 is None but should be a valid string"),
    ("prepare/net/train/index.json", ("task",), "low_light", "lacks exposures or raw, which low_light needs"),
    ("prepare/net/train/index.json", ("task",), "restoration", "scale is 2, but restoration has 1"),
    ("prepare/net/train/index.json", ("scale",), 3, "index.json isn't as it was written; dvc repro -s -f prepare@net"),
    ("prepare/net/train/index.json", ("shown",), [0, 2], "shown should number the targets from 0 on"),
    ("prepare/net/train/index.json", ("ratio",), [100.0], "ratio has 1 entries, but names has 2"),
    ("prune/net/D/log.json", (2, "number"), 1, "entry 2, number is 1 but should be 2"),
    ("prune/net/D/log.json", (2, "lineage"), 2, "entry 2, lineage is 2, but 1 accepted iterations lie before"),
    ("prune/net/D/log.json", (2, "psnr"), float("nan"), "entry 2 has quality that is no number"),
    ("prune/net/D/log.json", (2, "mac"), 2001, "entry 2 isn't a part of the baseline"),
    ("prune/net/D/log.json", (0, "verdict"), "rejected", "should be 'accepted': the baseline"),
    (
        "search/net-D/trials.json",
        (0, "mac_percent"),
        150.0,
        "entry 0, mac_percent is 150.0 but should be less than or equal",
    ),
]


@pytest.mark.parametrize(("file", "keys", "value", "sentence"), CONTRADICTIONS)
def test_figures_that_contradict_each_other_are_said(
    results: Path, file: str, keys: tuple[str | int, ...], value: Any, sentence: str
) -> None:
    content = json.loads((results / file).read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write_json(results / file, content)
    assert sentence in said(lambda: READERS[file](results), file.rsplit("/", 2)[1])


@pytest.mark.parametrize("content", ["0,rejected,9,0\n", "1,accepted,9,0\n", "0,accepted,9,0\n1,rejected,10,0\n"])
def test_a_path_that_no_pruning_takes_is_said(results: Path, content: str) -> None:
    write_text(results / "prune/net/D/path.csv", f"number,verdict,mac,psnr_change\n{content}")
    assert "isn't the log of a pruning" in said(lambda: records.path_of(results, "net", "D"), "path.csv")


def test_accepted_networks_are_those_of_the_log(results: Path) -> None:
    folder = results / "prune/net/D"
    made = [folder / "networks" / name for name in ("accepted-000.pt", "accepted-002.pt")]
    assert iterations.accepted_networks(folder) == made
    surplus = folder / "networks/accepted-xyz.pt"
    surplus.touch()
    sentence = said(lambda: iterations.accepted_networks(folder), "networks")
    assert "holds accepted-xyz.pt, unlike what" in sentence
    assert sentence.endswith("dvc repro -s -f prune@net-D makes it anew")
    surplus.unlink()
    made[1].unlink()
    os.mkfifo(made[1])
    assert "lacks accepted-002.pt" in said(lambda: iterations.accepted_networks(folder), "networks")
    made[1].unlink()
    assert "lacks accepted-002.pt" in said(lambda: iterations.accepted_networks(folder), "networks")
    made[0].unlink()
    assert "holds no accepted-*.pt" in said(lambda: iterations.accepted_networks(folder), "networks")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "isn't JSON"),
        (b'{"a": 1', "isn't JSON"),
        (b'{"a": 1, "a": 2}', "isn't JSON: key 'a' stands twice in an object"),
        (b'{"a": "\xff"}', "isn't JSON"),
        ('{"a": 1}'.encode("utf-16"), "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"1" * 5000, "isn't JSON"),
        (b"\x00" * 64, "isn't JSON"),
    ],
)
def test_what_isnt_json_is_said(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert sentence in said(lambda: read_json(tmp_path / "x.json"), "x.json")


def test_a_byte_order_mark_before_json_or_csv_is_no_fault(results: Path) -> None:
    for file in ("train/net/metrics.json", "train/net/curve.csv"):
        whole = READERS[file](results)
        (results / file).write_bytes(b"\xef\xbb\xbf" + (results / file).read_bytes())
        assert READERS[file](results) == whole


@pytest.mark.parametrize("file", READERS)
def test_what_stands_in_a_files_place_is_said_at_once(results: Path, file: str) -> None:
    path = results / file
    path.unlink()
    assert "No such file" in said(lambda: READERS[file](results), path.name)
    path.mkdir()
    assert "it is a folder" in said(lambda: READERS[file](results), path.name)
    path.rmdir()
    os.mkfifo(path)  # opened, it would be waited for
    assert "it is no regular file" in said(lambda: READERS[file](results), path.name)
    path.unlink()
    path.symlink_to(path)
    assert "symbolic links" in said(lambda: READERS[file](results), path.name)


def test_a_layers_name_may_hold_what_csv_is_made_of(results: Path) -> None:
    names = ["a,b", 'c"d', "e\nf"]
    rows = [(name, 8, 1000, 200, "5.0") for name in names]
    write_csv(results / "analyze/net/layers.csv", [("layer", "channels", "mac", "weights", "mac_per_weight"), *rows])
    assert [row["layer"] for row in records.layers(results, "net")] == names


def test_names_that_arent_unicode_are_read(results: Path) -> None:
    path = results / "prepare/net/train/index.json"
    write_sealed(
        path,
        {key: value for key, value in read_json(path).items() if key != "digest"} | {"names": ["a\udcff.png", "b.png"]},
    )
    assert list(load_split(path.parent)["names"]) == ["a\udcff.png", "b.png"]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((14, 3), np.int16), "low.npy: holds int16 (14, 3), but by index.json it must be uint8 (14, 3)"),
        (np.zeros((15, 3), np.uint8), "low.npy: holds uint8 (15, 3)"),
        (np.zeros((3, 14), np.uint8).T, "low.npy: holds uint8 (14, 3)"),
        (np.array([None]), "low.npy: cannot be read as a prepared split"),
    ],
)
def test_an_array_of_another_form_is_said(results: Path, array: np.ndarray, sentence: str) -> None:
    folder = results / "prepare/net/train"
    np.save(folder / "low.npy", array, allow_pickle=True)
    assert sentence in said(lambda: load_split(folder), "low.npy")


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("D", lambda path: Image.new("RGB", (8, 9)).save(path), "has other sides than target.png"),
        ("D", lambda path: Image.new("L", (8, 8)).save(path), "it isn't a PNG of RGB"),
        ("input", lambda path: Image.new("RGB", (8, 8)).save(path, "JPEG"), "it isn't a PNG of RGB"),
        ("target", lambda path: path.write_bytes(path.read_bytes()[:-30]), "it is damaged"),
        ("target", lambda path: path.write_bytes(b""), "it is damaged"),
        ("baseline", lambda path: [path.unlink(), path.mkdir()], "it is damaged"),
        ("baseline", lambda path: [path.unlink(), os.mkfifo(path)], "it is damaged"),
        ("baseline", lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_frame_that_cant_be_shown_beside_the_others_is_said(
    tmp_path: Path, name: str, make: Callable[[Path], Any], sentence: str
) -> None:
    rng = np.random.default_rng(0)
    for each in ("target", "input", "baseline", "D"):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"{each}.png")
    pictures.sample(tmp_path, "D", 8, tmp_path / "whole.png")
    make(tmp_path / f"{name}.png")
    assert sentence in said(lambda: pictures.sample(tmp_path, "D", 8, tmp_path / "out.png"), f"{name}.png")
    assert not (tmp_path / "out.png").exists()


# --- at random ----------------------------------------------------------------------------------------------------

ODD = [None, True, 0, -1, 10**30, 10**400, 1e300, float("nan"), float("inf"), "", "x", "1", "\n", [], {}, [[]], 1.5]
CELLS = ["", "x", "nan", "inf", "-1", "0", "1e400", "9" * 30, "1.5", '"', "\0", "a,b"]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*above, key))


def spoiled_json(rng: random.Random, content: bytes) -> bytes:
    """A JSON file with one value dropped, replaced or doubled."""
    value = json.loads(content)
    where = rng.choice(list(places(value)))
    if not where:
        return json.dumps(rng.choice(ODD)).encode()
    place = value
    for key in where[:-1]:
        place = place[key]
    how = rng.choice(["drop", "replace", "replace", "double"])
    if how == "drop":
        del place[where[-1]]
    elif how == "double" and isinstance(place, list):
        place.append(place[where[-1]])
    else:
        place[where[-1]] = rng.choice(ODD)
    return json.dumps(value).encode()


def spoiled_csv(rng: random.Random, content: bytes) -> bytes:
    """A CSV file with one cell replaced, dropped or doubled, or a line dropped."""
    lines = content.decode().splitlines()
    line = rng.randrange(len(lines))
    cells = lines[line].split(",")
    cell = rng.randrange(len(cells))
    how = rng.choice(["replace", "replace", "drop", "double", "line"])
    cells[cell : cell + 1] = {"drop": [], "double": 2 * [cells[cell]]}.get(how, [rng.choice(CELLS)])
    lines[line : line + 1] = [] if how == "line" else [",".join(cells)]
    return "\n".join(lines).encode()


def bytes_spoiled(rng: random.Random, content: bytes) -> bytes:
    """A file that is cut, or has one bit another way."""
    place = rng.randrange(len(content))
    flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
    return rng.choice([content[:place], content[:place] + flipped + content[place + 1 :]])


@pytest.mark.parametrize("file", READERS)
def test_spoiled_at_random_a_file_gives_values_of_its_types_or_one_sentence(results: Path, file: str) -> None:
    rng, path = random.Random(file), results / file
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        spoil = rng.choice([spoiled_csv if file.endswith("csv") else spoiled_json] * 4 + [bytes_spoiled])
        path.write_bytes(spoil(rng, whole))
        try:
            found = READERS[file](results)
        except UserError as error:
            refused += 1
            sentence = str(error)
            assert str(results) in sentence
            assert re.search(r"\.(json|csv|npy)", sentence)
            assert "\n" not in sentence
            assert len(sentence) < 900
        else:
            for number in (each for each in flat(found) if isinstance(each, float) and file not in NO_FIGURES):
                assert abs(number) <= 1e15
    assert refused > 40  # of 150: the reader does look


NO_FIGURES = ("prune/net/D/log.json", "prune/net/D/path.csv", "search/net-D/trials.json")  # NaN may stand there


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from flat(each)
    else:
        yield value


def test_what_is_delivered_between_two_iterations_has_its_place_there(tmp_path: Path) -> None:
    """Iteration 0 with all MACs and iteration 2 with half of them: 80% lie two fifths of the way."""
    write_text(tmp_path / "prune/net/D/path.csv", MADE["prune/net/D/path.csv"])
    for percent, place in ((50.0, 2), (80.0, 0.8), (100.0, 0)):
        write_json(
            tmp_path / "finetune/net/D/metrics.json", MADE["finetune/net/D/metrics.json"] | {"mac_percent": percent}
        )
        assert records.path_of(tmp_path, "net", "D")[1] == pytest.approx(place)


def test_what_is_delivered_beyond_the_last_accepted_iteration_lies_before_the_refused_one(tmp_path: Path) -> None:
    path = tmp_path / "prune/net/D/path.csv"
    write_text(path, MADE["prune/net/D/path.csv"] + "3,rejected,200,-1\n4,rejected,600,-1\n")
    write_json(tmp_path / "finetune/net/D/metrics.json", MADE["finetune/net/D/metrics.json"] | {"mac_percent": 40.0})
    assert records.path_of(tmp_path, "net", "D")[1] == pytest.approx(2.25)
