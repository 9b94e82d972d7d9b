"""The control: the baseline trained on as a pruned network is, with nothing removed; and the rate that this bears."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import Quality
from pipeline.files import read_sealed, write_json, write_sealed
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress, Silent
from pipeline.training import recipes
from pipeline.training.setup import Setup

FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the rates in params.yaml, tried in this order
TRIED_STEPS = 100
BEARABLE = 0.002  # dB that a trial may lose: half of what counts as noise


@dataclass(frozen=True)
class Control:
    """A control, and its validation quality on the way: as records.Point has it."""

    network: nn.Module
    curve: list[dict[str, Any]]  # before the first iteration, which is the baseline, and after each
    end: dict[str, Any]  # after the fine-tune

    @property
    def change(self) -> float:
        """PSNR against the baseline, dB."""
        return self.end["psnr"] - self.curve[0]["psnr"]


def train_control(baseline: nn.Module, setup: Setup, last: config.Finetune, work: Path, progress: Progress) -> Control:
    """Train a copy of the baseline for all iterations and the fine-tune; goes on with what lies in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    net, section, curve = duplicate(baseline), setup.network, []
    if (work / "curve.json").exists():
        try:
            curve = read_sealed(work / "curve.json")["curve"]
            net, _ = checkpoint.load(work / f"{len(curve) - 1:03d}.pt", section.factory)
        except UserError as error:
            curve = []
            progress.say(f"{error}: the control starts anew")
    progress.phase_over(max(0, len(curve) - 1) * setup.iteration_steps)
    for number in range(len(curve), setup.retrain.max_iterations + 1):
        if number:
            net = recipes.train_iteration(net, setup, number, work, progress, baseline)
        curve.append(point(number * setup.iteration_steps, setup.quality(net.to(setup.machine.device))))
        checkpoint.save(work / f"{number:03d}.pt", net, section.factory, section.args, {}, example=setup.example())
        write_sealed(work / "curve.json", {"curve": curve})
    net = recipes.train_final(net, setup, last, work / "finetune.pt", progress, baseline)
    end = point(setup.retrain.max_iterations * setup.iteration_steps + last.steps, setup.quality(net))
    return Control(net, curve, end)


def write(trained: Control, factor: float, setup: Setup, folder: Path) -> None:
    """The files of `control` in `folder`. factor: to the rates of params.yaml, at which it was trained."""
    section, path = setup.network, folder / "network.pt"
    checkpoint.save(path, trained.network, section.factory, section.args, {}, example=setup.example())
    write_json(folder / "curve.json", trained.curve)
    write_json(folder / "end.json", trained.end)
    write_json(folder / "rate.json", {"factor": factor})
    few = {key: trained.end[key] for key in ("steps", "psnr", "ssim")}  # what `dvc metrics` shows
    write_json(folder / "metrics.json", few | {"psnr_change_baseline": trained.change})


def bearable(baseline: nn.Module, setup: Setup, work: Path, progress: Progress) -> float:
    """The factor to the rates of params.yaml at which a finished baseline isn't thrown about.

    A short trial with nothing removed at each of FACTORS, largest first, until one loses no more than BEARABLE; where
    all lose more, the one that loses least, and a line warns.
    """
    start, changes = setup.quality(baseline).mean_psnr, {}
    for factor in FACTORS:
        net = duplicate(baseline)
        gentle = replace(setup, rate=factor, retrain=setup.retrain.model_copy(update={"steps": TRIED_STEPS}))
        recipes.train_iteration(net, gentle, 0, work, Silent(), baseline)
        (work / "000-retrain.pt").unlink(missing_ok=True)
        changes[factor] = setup.quality(net).mean_psnr - start
        if changes[factor] >= -BEARABLE:
            break
    factor = max(changes, key=lambda one: changes[one])
    rates = "as set" if factor == 1 else f"{factor:g} times those set"
    progress.say(
        f"training rates: {rates}; {TRIED_STEPS} steps with nothing removed change PSNR by {changes[factor]:+.4f} dB"
    )
    if changes[factor] < -BEARABLE:
        progress.say(
            f"even these lose {-changes[factor]:.4f} dB: these images or this loss aren't those that the weights were "
            "trained with, and little can be pruned without loss"
        )
    return factor


def point(steps: int, measured: Quality) -> dict[str, Any]:
    """An entry of the curve: validation quality after so many steps, and that of each image."""
    return {
        "steps": steps, "psnr": measured.mean_psnr, "ssim": measured.mean_ssim,
        "image_psnr": list(measured.psnr), "image_ssim": list(measured.ssim),
    }  # fmt: skip
