"""How what is left of a cut network is best trained: variants side by side, on one baseline, with equal steps.

    python benchmarks/retraining.py edsr            # hours on one core; stop it at will, it goes on
    python benchmarks/retraining.py sid --seeds 1

A baseline is trained, every removable group loses the same share of its channels at once, and each variant trains what
is left for the same number of steps on the same images: by which channels go, whether their readers make up for them
(pipeline/pruning/reconstruction.py), how much of the loss is against the baseline's output, and at which rate. The
controls get the same training with nothing removed. The table gives the drop of validation PSNR against the baseline
right after the cut and after the training, the median over seeds of the training, with its range.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from pipeline import config, cost, networks
from pipeline.data.dataset import Images, load_images
from pipeline.data.storage import save_split
from pipeline.evaluation import metrics
from pipeline.files import load_tensors, save_tensors, write_json
from pipeline.prepare import layouts, pairs
from pipeline.pruning import coupling, reconstruction, removal
from pipeline.training.device import Machine, choose
from pipeline.training.loop import Teacher, fit

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".scratch" / "retraining"


@dataclass(frozen=True)
class Case:
    """A network, its baseline's recipe, and how much of every group goes."""

    args: dict[str, int]
    baseline: config.Train
    share: float  # of every group's channels
    steps: int  # of every variant


CASES = {
    "edsr": Case(
        {"scale": 2, "blocks": 8, "channels": 32},
        config.Train(
            steps=8000, batch=16, patch=24, lr=2e-3, lr_final=1e-6, clip=0.1, average=0.99, validate_every=8000
        ),
        0.25, 3000,
    ),
    "sid": Case(
        {"base": 8},
        config.Train(
            steps=16000, batch=4, patch=48, lr=2e-3, lr_final=1e-5, clip=1.0, average=0.999, validate_every=16000
        ),
        0.35, 6000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to cut and to train on."""

    channels: str  # all, magnitude, random, reconstruction
    makes_up: bool  # whether readers make up for what goes
    teacher: float  # share of the loss
    lr: float  # highest rate of the cosine
    average: float

    def __str__(self) -> str:
        cut = {"all": "control, nothing removed"}.get(self.channels, f"by {self.channels}")
        return f"{cut}{', made up for' if self.makes_up else ''} | {self.teacher:g} | {self.lr:g} | {self.average:g}"


VARIANTS = [
    Variant("all", False, 0.0, 5e-4, 0.999),
    Variant("all", False, 0.5, 5e-4, 0.999),
    Variant("magnitude", False, 0.0, 1e-3, 0.99),
    Variant("random", False, 0.0, 1e-3, 0.99),
    Variant("magnitude", False, 0.5, 1e-3, 0.99),
    Variant("magnitude", False, 0.5, 5e-4, 0.999),
    Variant("magnitude", True, 0.5, 1e-3, 0.99),
    Variant("magnitude", True, 0.5, 5e-4, 0.999),
    Variant("reconstruction", True, 0.0, 5e-4, 0.999),
    Variant("reconstruction", True, 0.5, 5e-4, 0.999),
    Variant("reconstruction", True, 0.9, 5e-4, 0.999),
    Variant("reconstruction", True, 0.5, 1e-3, 0.999),
]


def splits(name: str) -> dict[str, Images]:
    """The training and validation images of the small preset, prepared once."""
    params, prepared = config.read(ROOT / "params.yaml"), {}
    for split in ("train", "validation"):
        folder = WORK / name / split
        if not folder.exists():
            part = layouts.find(params, name).parts[split]
            save_split(folder, *pairs.make(part.sources, part.making))
        prepared[split] = load_images(folder, "cpu")
    return prepared


def baseline(name: str, case: Case, images: Images, machine: Machine) -> nn.Module:
    torch.manual_seed(1)
    network = networks.build(name, case.args)
    path = WORK / name / "baseline.pt"
    if path.exists():
        network.load_state_dict(load_tensors(path))
    else:
        fit(network, images, case.baseline, machine, seed=1_000_003, tick=progress("baseline", case.baseline.steps),
            resume=WORK / name / "baseline-state.pt")  # fmt: skip
        save_tensors(path, network.state_dict())
    return network.eval()


def progress(what: str, steps: int):
    began = time.monotonic()

    def tick(step: int, psnr: float | None) -> None:
        if step % 500 == 0:
            left = (time.monotonic() - began) / step * (steps - step) / 60
            print(f"{what}: step {step}/{steps}, about {left:.0f} min left", file=sys.stderr, flush=True)

    return tick


def smaller(network: nn.Module, case: Case, variant: Variant, known: dict, groups: removal.Coupling) -> nn.Module:
    """What a variant begins with."""
    if variant.channels == "all":
        return copy.deepcopy(network)
    counts = {group.name: round(case.share * group.channels) for group in groups.groups}
    if variant.channels == "reconstruction":
        removed = reconstruction.weakest(network, groups, known, counts)
    else:
        generator = torch.Generator().manual_seed(0)
        removed = {}
        for group in groups.groups:
            ranks = torch.rand(group.channels, generator=generator)
            if variant.channels == "magnitude":
                ranks = magnitude(network, group)
            removed[group.name] = tuple(sorted(ranks.argsort()[: counts[group.name]].tolist()))
    start = reconstruction.compensated(network, groups, removed, known) if variant.makes_up else network
    return removal.remove(start, groups, removed)


def magnitude(network: nn.Module, group: removal.Group) -> torch.Tensor:
    """[C_g] mean |weight| of each channel over the layers that make it (Li et al., 2017, summed over them)."""
    total = torch.zeros(group.channels)
    for slot in group.slots:
        if slot.role == "output":
            rows = network.get_parameter(slot.tensor).detach().movedim(slot.dim, 0)
            total += torch.stack([rows[list(places)].abs().mean() for places in slot.index])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=CASES)
    parser.add_argument("--seeds", type=int, default=3, help="of the variants' trainings")
    options = parser.parse_args()
    name, case = options.network, CASES[options.network]
    machine, images = choose("cpu", 1, "auto"), splits(name)
    network = baseline(name, case, images["train"], machine)
    border = metrics.border("low_light" if name == "sid" else "super_resolution", 2)

    def psnr(one: nn.Module) -> float:
        return metrics.measure(one, images["validation"], border, with_ssim=False).mean_psnr

    reference, side = psnr(network), case.baseline.patch
    channels = 4 if name == "sid" else 3
    groups = coupling.find_groups(network, torch.zeros(1, channels, side, side))
    pairs = (images["train"].batch(step, 5, 8, 2 * side) for step in range(12))
    known = reconstruction.moments(network, groups, pairs)
    total = cost.measure(network, (side, side), channels).mac
    rows: dict[str, dict] = {}
    store = WORK / name / "rows.json"
    if store.exists():
        rows = json.loads(store.read_text(encoding="utf-8"))
    for seed in range(1, options.seeds + 1):
        for variant in VARIANTS:
            key = f"{variant} | {seed}"
            if key in rows:
                continue
            one = smaller(network, case, variant, known, groups)
            start, mac = reference - psnr(one), 100 * cost.measure(one, (side, side), channels).mac / total
            recipe = case.baseline.model_copy(
                update={"steps": case.steps, "lr": variant.lr, "average": variant.average, "validate_every": case.steps}
            )
            began = time.process_time()
            resume = WORK / name / "variant-state.pt"
            fit(one, images["train"], recipe, machine, seed=seed, teacher=Teacher(network, variant.teacher),
                tick=progress(f"{variant}, seed {seed}", case.steps), resume=resume)  # fmt: skip
            seconds = (time.process_time() - began) / case.steps
            rows[key] = {"mac": mac, "start": start, "drop": reference - psnr(one), "seconds": seconds}
            write_json(store, rows)
            resume.unlink(missing_ok=True)
    table(name, case, reference, rows)


def table(name: str, case: Case, reference: float, rows: dict[str, dict]) -> None:
    print(f"{name} {case.args}, baseline {case.baseline.steps} steps, {reference:.3f} dB; {case.steps} steps each\n")
    heads = (
        "channels removed",
        "teacher",
        "rate",
        "average",
        "MACs left (%)",
        "at the cut (dB)",
        "after (dB)",
        "range",
    )
    print(f"| {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for variant in VARIANTS:
        found = [row for key, row in rows.items() if key.startswith(f"{variant} | ")]
        if found:
            drops = sorted(row["drop"] for row in found)
            middle, first = statistics.median(drops), found[0]
            print(f"| {variant} | {first['mac']:.1f} | {first['start']:+.3f} | {middle:+.4f} "
                  f"| {drops[0]:+.4f} to {drops[-1]:+.4f}, {len(drops)} seeds |")  # fmt: skip


if __name__ == "__main__":
    main()
