"""The report's tables and figures, from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline.data.dataset import Images
from pipeline.evaluation import crops, metrics
from pipeline.files import read_csv, write_csv, write_json, write_text
from pipeline.report import figures, pictures, tables

GATE = config.Gate(reference="baseline", max_psnr_drop=0.0, max_ssim_drop=0.0)


def difference(mean: float, worst_name: str = "a.png") -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.25, "high": mean + 0.5, "worst": mean - 1, "worst_name": worst_name}


def solution(psnr: float, **more: Any) -> dict[str, Any]:
    """Of a baseline with 30 dB and a control with 30.25 dB."""
    against = {"against_baseline": difference(psnr - 30), "against_control": difference(psnr - 30.25)}
    return {"psnr": psnr, "ssim": 0.9} | against | more


def point(steps: int, psnr: float, apart: float = 1.0) -> dict[str, Any]:
    """Validation quality on two images, so many dB from their mean."""
    return {"steps": steps, "psnr": psnr, "ssim": 0.9, "image_psnr": [psnr - apart, psnr + apart],
            "image_ssim": [0.9, 0.9]}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One network, one method: costs halved, 0.125 dB better than the baseline on test images."""
    costs = {"mac": 1000, "weights": 100, "activations": 50, "bw": 150}
    whole = costs | {f"{key}_percent": 100.0 for key in costs}
    half = {key: value // 2 for key, value in costs.items()} | {f"{key}_percent": 50.0 for key in costs}
    found = {
        "input": solution(28.0),
        "baseline": solution(30.0, **whole),
        "control": solution(30.25, **whole),
        "D": solution(30.125, **half),
    }
    found["D"]["against_baseline"] = difference(0.125, 'a "b", c.png')
    write_json(tmp_path / "evaluate/edsr/metrics.json", found)
    write_json(tmp_path / "train/edsr/metrics.json", {"psnr": 31.0, "ssim": 0.9, "input_psnr": 28.5})
    write_json(tmp_path / "control/edsr/curve.json", [point(0, 31.0), point(30, 31.25)])
    write_json(tmp_path / "control/edsr/end.json", point(70, 31.5))
    tuned = {"mac_percent": 50.0, "bw_percent": 50.0, "psnr": 31.5625, "ssim": 0.9}
    tuned |= {"psnr_change": 0.0625, "ssim_change": 0.0}
    tuned["steps"] = 40
    write_json(tmp_path / "finetune/edsr/D/metrics.json", tuned)
    write_json(tmp_path / "finetune/edsr/D/end.json", point(40, 31.5625, 0.5))
    return tmp_path


def test_the_table_has_the_input_the_baseline_the_control_and_each_method(results: Path) -> None:
    table = tables.rows(results, "edsr", ["D"], "super_resolution")
    assert [row["solution"] for row in table] == ["bicubic", "baseline", "control", "D"]
    assert [row.get("psnr_change") for row in table] == [None, None, 0.5, 0.0625]
    assert [row.get("steps") for row in table] == [None, None, 70, 40]
    assert tables.rows(results, "edsr", [], "low_light")[0]["solution"] == "amplified input"


def test_the_table_for_people_gives_changes_with_their_intervals(results: Path) -> None:
    table = tables.rows(results, "edsr", ["D"], "super_resolution")
    text = tables.markdown(table)
    lines = text.splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[5] == (
        "| edsr | D | +0.125 [-0.125, +0.625] | -0.125 [-0.375, +0.375] | 30.125 | 0.9000 "
        "| 50.0 | 50.0 | 50.0 | 50.0 | +0.5625 [+0.062, +1.062] | +0.0625 [-0.438, +0.562] | 40 |"
    )
    assert lines[2].endswith("| 28.000 | 0.9000 |  |  |  |  |  |  |  |")  # bicubic has no costs
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[3:5]]
    assert cells[0][3] == cells[1][4] == ""  # neither is compared with itself
    assert cells[1][3].startswith("+0.250 [")
    assert cells[1][-4:] == ["+0.5000", "", "70", ""]  # the same change on both images: no interval
    text = tables.counted({"edsr": (1020, 1021)}, ["sid", "sony"])
    assert "edsr at 1020×1021 input pixels" in text
    assert "The images of sid and sony are *synthetic low light*" in text
    assert "synthetic" not in tables.counted({}, [])
    assert "against the baseline it allows a drop of 0 dB" in tables.protocol(GATE)
    gain = GATE.model_copy(update={"max_psnr_drop": -0.5})
    assert "against the baseline it asks for a gain of 0.5 dB" in tables.protocol(gain)


def test_a_change_of_one_image_has_no_interval() -> None:
    assert tables.change({"mean": 0.1, "low": 0.1, "high": 0.1}) == "+0.100"
    assert tables.change({"mean": 0.1, "low": -0.1, "high": 0.2}) == "+0.100 [-0.100, +0.200]"
    assert tables.change({"mean": 0.0, "low": 0.0, "high": 0.0}) == "+0.000 [+0.000, +0.000]"  # of equal networks


def test_extra_test_sets_have_a_table_of_their_own_with_both_protocols(results: Path) -> None:
    def figures_(psnr: float) -> dict[str, float]:
        return {"psnr": psnr, "ssim": 0.9, "psnr_y": psnr + 2, "ssim_y": 0.95}

    solutions = {name: figures_(30.0 + i) for i, name in enumerate(("input", "baseline", "control", "D"))}
    write_json(results / "evaluate/edsr/sets.json", {"Set5": {"images": 5, **solutions}})
    text = tables.sets_markdown(tables.set_rows(results, "edsr", ["D"], "super_resolution"))
    lines = text.splitlines()
    assert lines[3] == "| edsr | Set5 | 5 | bicubic | 30.000 | 0.9000 | 32.000 | 0.9500 |"
    assert lines[6] == "| edsr | Set5 | 5 | D | 33.000 | 0.9000 | 35.000 | 0.9500 |"
    assert len({line.count("|") for line in lines[1:7]}) == 1
    assert tables.set_rows(results, "edsr", ["D"], "restoration")[0]["solution"] == "input"
    assert tables.sets_markdown([]) == ""


def test_the_table_for_machines_reads_back_whatever_the_names(results: Path) -> None:
    table = tables.rows(results, "edsr", ["D"], "super_resolution")
    write_csv(results / "table.csv", tables.csv(table))
    read = read_csv(results / "table.csv")
    assert [row["solution"] for row in read] == ["bicubic", "baseline", "control", "D"]
    assert read[0]["mac"] == ""
    last = read[3]
    assert (last["mac"], last["weights"], last["bw_percent"], last["steps"]) == ("500", "50", "50.0", "40")
    assert float(last["against_baseline_mean"]) == 0.125
    assert float(last["against_baseline_low"]) == -0.125
    assert [float(last[f"validation_control_{key}"]) for key in ("mean", "low", "high")] == [0.0625, -0.4375, 0.5625]
    assert last["against_baseline_worst_name"] == 'a "b", c.png'
    assert last["against_control_worst_name"] == "a.png"
    assert [row["psnr_change"] for row in read] == ["", "", "0.5", "0.0625"]


def test_the_figures_of_every_image_are_changes_against_the_baseline() -> None:
    scores = {
        name: metrics.Quality(("a,b.png", "c.png"), psnr, (0.5, 0.25))
        for name, psnr in {"baseline": (30.0, 20.0), "D": (30.5, 19.0)}.items()
    }
    assert metrics.image_rows(scores) == [
        ["image", "solution", "psnr", "ssim", "psnr_change"],
        ["a,b.png", "baseline", "30.0000", "0.50000", "0.0000"],
        ["c.png", "baseline", "20.0000", "0.25000", "0.0000"],
        ["a,b.png", "D", "30.5000", "0.50000", "0.5000"],
        ["c.png", "D", "19.0000", "0.25000", "-1.0000"],
    ]


def test_the_busiest_window_is_the_one_with_the_largest_variance() -> None:
    luminance = np.zeros((64, 48))
    luminance[24:40, 16:32] = np.indices((16, 16)).sum(axis=0) % 2 * 255
    assert crops.busiest(luminance, 16) == (24, 16)
    assert crops.busiest(np.zeros((16, 16)), 16) == (0, 0)


def test_a_samples_figure_shows_the_frames_pixels_side_by_side(splits: dict[str, Images], tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), 0.5)

    images = splits["validation"]
    crops.save_frames(tmp_path, images, 1, {"baseline": Half(), "D": Half()})
    target = np.asarray(Image.open(tmp_path / "target.png"))
    assert np.array_equal(target.reshape(-1, 3), images.high[images.first[1] * 4 :].numpy())
    assert (np.asarray(Image.open(tmp_path / "D.png")) == 128).all()

    for name in ("one.png", "two.png"):
        pictures.sample(tmp_path, "D", 24, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    shown = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))[-72:]  # 3 screen pixels for each of 24
    top, left = crops.busiest(target.mean(axis=2), 24)
    assert shown.shape == (72, 5 * 78 - 6, 3)
    assert np.array_equal(shown[::3, :72:3], target[top : top + 24, left : left + 24])
    assert (shown[:, 3 * 78 : 3 * 78 + 72] == 128).all()  # the method
    assert (shown[:, -72:] == 128).all()  # it doesn't differ from the baseline


def test_the_training_curve_needs_only_the_files_of_train_and_control(results: Path, tmp_path: Path) -> None:
    write_text(results / "train/edsr/curve.csv", "step,psnr,loss\n10,29.0,0.1\n20,31.0,0.05\n")
    write_json(results / "control/edsr/curve.json", [point(35 * n, 31 + 0.2 * n) for n in (0, 1)])
    for name in ("one.png", "two.png"):
        figures.training_curves(results, "edsr", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert Image.open(tmp_path / "one.png").size == (768, 464)  # a chart is 480 pixels of the page
