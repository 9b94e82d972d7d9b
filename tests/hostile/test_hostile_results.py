"""Results that were edited or damaged, as the next stage's command meets them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from runner import Hostile, base, check, copied

from pipeline.pruning.iterations import Iteration

CURVE = [
    {"steps": 2 * n, "psnr": 30.0, "ssim": 0.9, "image_psnr": [30.0, 30.0], "image_ssim": [0.9, 0.9]} for n in range(3)
]
LOG = [asdict(Iteration(n, "accepted", "said", n, mac=9 - n, widths={"head": 8}, psnr=30.0)) for n in range(2)]
PRUNED = "results/prune/edsr/D"


def put(file: str, content: Any) -> Callable[[Path], None]:
    """Write one file: bytes as they are, else JSON."""

    def make(folder: Path) -> None:
        path = folder / file
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return make


def pipe(file: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return make


CASES = [
    Hostile(
        "a control's quality that is text", "stages.prune edsr D",
        ("results/control/edsr/curve.json", "entry 1, psnr is 'x'", "number", "dvc repro -s -f control@edsr makes it"),
        make=put("results/control/edsr/curve.json", [CURVE[0], CURVE[1] | {"psnr": "x"}, CURVE[2]]),
    ),
    Hostile(
        "a control that is cut short", "stages.prune edsr D",
        ("results/control/edsr/curve.json", "has 2 points", "retrain.edsr.max_iterations 2 makes 3", "control@edsr"),
        make=put("results/control/edsr/curve.json", CURVE[:2]),
    ),
    Hostile(
        "a control's end that isn't finite", "stages.search",
        ("results/control/edsr/end.json", "psnr is nan", "finite number", "control@edsr"),
        make=put("results/control/edsr/end.json",
                 b'{"psnr": NaN, "ssim": 1, "steps": 8, "image_psnr": [1], "image_ssim": [1]}'),
    ),
    Hostile(
        "a control's curve in a folder's place", "stages.search",
        ("results/control/edsr/curve.json", "it is a folder", "control@edsr"),
        make=lambda folder: [(folder / "results/control/edsr/curve.json").unlink(),
                             (folder / "results/control/edsr/curve.json").mkdir()],
    ),
    Hostile(
        "a control nested without end", "stages.search",
        ("results/control/edsr/curve.json", "isn't JSON", "control@edsr"),
        make=put("results/control/edsr/curve.json", b"[" * 100_000),
    ),
    Hostile(
        "a pruning log whose iterations don't follow one another", "stages.finetune edsr D",
        (f"{PRUNED}/log.json", "entry 1, number is 3 but should be 1", "prune@edsr-D"),
        make=put(f"{PRUNED}/log.json", [LOG[0], LOG[1] | {"number": 3}]),
    ),
    Hostile(
        "a baseline's figures in a list", "stages.search", ("results/train/edsr/metrics.json", "[]", "train@edsr"),
        make=put("results/train/edsr/metrics.json", []),
    ),
    Hostile(
        "a pruning log that is a pipe", "stages.finetune edsr D",
        (f"{PRUNED}/log.json", "no regular file", "prune@edsr-D"),
        make=pipe(f"{PRUNED}/log.json"),
    ),
    Hostile(
        "a network that no log knows", "stages.finetune edsr D",
        (f"{PRUNED}/networks", "accepted-xyz.pt", "prune@edsr-D"),
        make=put(f"{PRUNED}/networks/accepted-xyz.pt", b""),
    ),
    Hostile(
        "an accepted network that is gone", "stages.finetune edsr D",
        (f"{PRUNED}/networks lacks accepted-001.pt", "prune@edsr-D"),
        make=lambda folder: (folder / PRUNED / "networks/accepted-001.pt").unlink(),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Path:
    """A chain's folder with results that are whole as far as the cases read them, and a store."""
    folder = base(tmp_path_factory.mktemp("hostile") / "chain")
    shutil.copy(new_store, folder / "mlflow.db")
    for name, content in {
        "train/edsr/metrics.json": {"psnr": 30.0, "ssim": 0.9, "input_psnr": 28.0},
        "control/edsr/curve.json": CURVE,
        "control/edsr/end.json": CURVE[2] | {"steps": 8},
        "prune/edsr/D/log.json": LOG,
        "prune/edsr/D/networks/accepted-000.pt": "",
        "prune/edsr/D/networks/accepted-001.pt": "",
    }.items():
        path = folder / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_damaged_result_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
    shutil.rmtree(tmp_path / "chain")
