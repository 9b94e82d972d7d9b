"""Presets, layouts and tasks run through every stage: two steps each, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import ROOT, SPLITS, checkout, module, run, stage, tiny
from PIL import Image
from raw_files import write_sid

EVERY_STAGE = """
from pathlib import Path
from pipeline import config
from stages import analyze, control, evaluate, finetune, latency, prepare, prune, report, train
params = config.read()
for network in params.run.networks:
    for stage in (prepare.prepare, train.train, analyze.analyze, control.control):
        stage(params, network)
    for method in params.run.methods:
        prune.prune(params, network, method)
        finetune.finetune(params, network, method)
    evaluate.evaluate(params, network)
    if not Path(f"results/latency/{network}/latency.json").exists():
        latency.latency(params, network)
report.report(params)
"""
TIMES: dict[str, bytes] = {}  # latency.json by network: timing it again would take half of the next preset's time

# What any network's may hold. Measuring one takes the time of all other stages: of SID 40 s of processor time.
MEASURED: dict[str, Any] = {
    "processor": "none", "simd_width": 8, "threads": 1, "side": 32, "left_out": {"onnxruntime": "not measured"},
    "mac_percent": {"baseline": 100.0, "D": 50.0, "D, to 8": 100.0},
    "networks": [
        {"runtime": "torch", "side": 32, "network": name, "seconds": seconds, "low": seconds, "high": seconds,
         "ratio": seconds, "memory": 1000}
        for name, seconds in (("baseline", 1.0), ("D", 0.5))
    ],
    "layers": [
        {"network": name, "layer": layer, "seconds": seconds, "ratio": seconds} | costs
        for name, seconds in (("baseline", 1.0), ("D", 0.5))
        for layer, costs in (("head", {"mac": 8, "bw": 8, "inputs": 3, "outputs": 8}), ("everything else", {}))
    ],
}  # fmt: skip


def every_stage(folder: Path) -> None:
    """Run all stages in one process, as 20 starts of Python would take most of the time."""
    (folder / "every_stage.py").write_text(EVERY_STAGE)
    done = module(folder, "every_stage")
    assert done.returncode == 0, done.stdout + done.stderr


# test_chain.py runs small.yaml's networks; standard.yaml and overnight.yaml have them in sizes up to paper.yaml's.
@pytest.mark.long
@pytest.mark.parametrize("preset", ["denoiser.yaml", "paper.yaml", "srresnet.yaml"])
def test_every_stage_of_every_preset_runs(preset: str, tmp_path: Path) -> None:
    """Two steps on small images; networks that another preset has too are timed once."""
    params = tiny(ROOT / "presets" / preset, run__methods=["D"])
    folder = checkout(tmp_path, params)
    times = {folder / f"results/latency/{name}/latency.json": str(params["networks"][name])
             for name in params["run"]["networks"]}  # fmt: skip
    for path, network in times.items():
        if network in TIMES:
            path.parent.mkdir(parents=True)
            path.write_bytes(TIMES[network])
    every_stage(folder)
    TIMES.update({network: path.read_bytes() for path, network in times.items()})
    rows = np.genfromtxt(folder / "results/report/table.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    for network in params["run"]["networks"]:
        assert list(rows["network"]).count(network) == 4
        assert torch.load(folder / f"results/finetune/{network}/D/network.pt", weights_only=True)


@pytest.mark.long
def test_every_layout_and_task_runs_to_the_report(tmp_path: Path) -> None:
    """DIV2K with a test set, real raw pairs, and denoising: two steps each, on trees in miniature.

    Only the denoiser is timed; test_chain.py times the other two.
    """
    params = tiny(ROOT / "params.yaml", run__methods=["D"], run__networks=["edsr", "sid", "clean"])
    params["networks"]["clean"] = {
        "factory": "edsr",
        "args": {"scale": 1, "blocks": 2, "channels": 8},
        "task": "restoration",
        "scale": 1,
    }
    for section in (params["train"], params["analyze"], params["retrain"], params["tolerance"], params["finetune"]):
        section["clean"] = section["edsr"]
    photos = "data/photos"
    params["prepare"] = {
        "edsr": {
            "layout": "div2k", "folder": "DIV2K", "train": [1, 4], "validation": [801, 802], "test": [811, 812],
            "test_sets": {"Set2": "Set2"},
        },
        "sid": {"layout": "sid", "folder": "SID"},
        "clean": {"layout": "photographs", "folder": photos, "noise": 25.0, "test_sets": {"Set2": "Set2"}},
    }  # fmt: skip
    folder = checkout(tmp_path / "clone", params)
    write_sid(folder / "SID")
    names = [name for split in ("train", "validation", "test") for name in SPLITS[split]]
    (folder / "Set2").mkdir()
    for number, name in zip((1, 2, 3, 4, 801, 802, 811, 812), names, strict=True):
        path = folder / f"DIV2K/DIV2K_{'train' if number <= 800 else 'valid'}_HR/{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(folder / photos / name)
        picture.save(path)
        if number > 810:
            picture.save(folder / "Set2" / path.name)
    for name in ("edsr", "sid"):
        path = folder / f"results/latency/{name}/latency.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(MEASURED))
    done = stage(folder, "prepare", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    every_stage(folder)
    text = (folder / "results/report/table.md").read_text()
    assert text.count("\n| clean | input |") == text.count("\n| edsr | bicubic |") == 1
    assert text.count("| Set2 | 2 |") == 8  # input, baseline, control, D, of two networks
    assert "synthetic" not in text
    sets = json.loads((folder / "results/evaluate/edsr/sets.json").read_text())["Set2"]
    metrics = json.loads((folder / "results/evaluate/edsr/metrics.json").read_text())
    assert sets["baseline"]["psnr"] == pytest.approx(metrics["baseline"]["psnr"])  # the same images are its test split
    assert sets["input"]["psnr_y"] > sets["input"]["psnr"]
    clean = json.loads((folder / "results/evaluate/clean/metrics.json").read_text())
    assert clean["input"]["psnr"] == pytest.approx(20.2, abs=0.8)  # 20 log10(255 / 25), and a little for clipping
    assert run(folder, "dvc", "stage", "list", "--name-only").stdout.count("prepare@") == 3
