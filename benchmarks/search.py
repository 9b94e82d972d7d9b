"""Whether the study's sampler beats chance: best feasible MACs by trial, against random search, over several seeds.

    python benchmarks/search.py

The problem is real and cheap: an EDSR with 3 blocks of 12 channels, trained here for a minute on the photographs,
pruned by method D in trials of a few seconds. Both samplers begin with the default parameters and get as many trials.
The last line says what storage and sampling cost a trial.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import optuna
import torch

from pipeline import config, networks
from pipeline.data.dataset import load_images
from pipeline.data.storage import gathered
from pipeline.networks import checkpoint
from pipeline.prepare import splits
from pipeline.prepare.images import list_images
from pipeline.prepare.pairs import Making, make
from pipeline.prepare.pairs import photographs as sources
from pipeline.pruning import gate
from pipeline.study import slots
from pipeline.study.sampler import Proposals, distributions, gaussian_process
from pipeline.study.storage import open_study
from pipeline.study.trial import Outcome, Problem, Report, Values, measure
from pipeline.study.worker import work
from pipeline.training.device import choose
from pipeline.training.loop import fit
from pipeline.training.setup import Setup

ROOT = Path(__file__).parents[1]
SEEDS, TRIALS = 4, 14
ALLOWED = 0.1  # dB; so small a network has nothing to spare, and a fine-tune of seconds wins nothing back


def small_problem(folder: Path) -> Problem:
    """A trained baseline and how it is pruned; validation on eight images."""
    params = config.read(ROOT / "params.yaml")
    machine = choose("cpu", 1, "auto")
    photos = ROOT / "data" / "photos"
    paths = {path.name: path for path in list_images(photos)}
    divided = splits.read_splits(photos / "splits.json", sorted(paths))
    chosen = {"train": divided["train"], "validation": divided["validation"][:8]}
    making = Making("super_resolution", scale=2, minimum=48)
    images = {
        name: load_images(gathered(*make(sources([paths[x] for x in names]), making)), machine.device)
        for name, names in chosen.items()
    }
    args = {"scale": 2, "blocks": 3, "channels": 12}
    recipe = params.train["edsr"].model_copy(update={"steps": 2000, "validate_every": 2000})
    setup = Setup(
        name="edsr",
        network=config.Network(factory="edsr", args=args, task="super_resolution", scale=2),
        train=images["train"],
        validation=images["validation"],
        recipe=recipe,
        retrain=params.retrain["edsr"].model_copy(update={"max_iterations": 4, "steps": 60}),
        gate=params.gate.model_copy(update={"max_psnr_drop": ALLOWED, "max_ssim_drop": 0.01}),
        tolerance=(params.tolerance["edsr"].psnr, params.tolerance["edsr"].ssim),
        machine=machine,
        size=(1020, 1020),
        seed=1_000_003,
    )
    torch.manual_seed(1)
    network = networks.build("edsr", args)
    fit(network, setup.train, recipe, machine, seed=setup.seed)
    checkpoint.save(folder / "network.pt", network, "edsr", args, {})
    start = setup.quality(network)
    return Problem(
        setup=setup,
        settings=params.settings("D", "edsr").model_copy(update={"max_share": 0.3}),
        active=params.methods["D"].rules,
        recipe=config.Finetune(steps=200, lr=1e-3, lr_final=1e-6),
        baseline=folder / "network.pt",
        target=gate.Target((start,)),
        final=start,
        rivals={"baseline": start.mean_psnr},
        ssim=True,
    )


def best_by_trial(problem: Problem, folder: Path, seed: int, sampler: str) -> tuple[list[float], float, float]:
    """Best feasible MACs (%) after each trial; seconds of the trials themselves, and of all that is around them."""
    space = distributions(config.read(ROOT / "params.yaml").search.space)
    study = open_study(f"sqlite:///{folder / 'search.db'}", f"{sampler}-{seed}", {})
    defaults = {key: getattr(problem.settings, key) for key in space}
    inside = 0.0

    def run(number: int, values: Values, report: Report) -> Outcome:
        nonlocal inside
        began = time.monotonic()
        try:
            return measure(problem, values, folder / f"{sampler}-{seed}-{number}", report)
        finally:
            inside += time.monotonic() - began

    make = gaussian_process if sampler == "default" else lambda s: optuna.samplers.RandomSampler(seed=s)
    began = time.monotonic()
    work(study, run, Proposals(space, seed, defaults, make), TRIALS, problem.constraints)
    around = time.monotonic() - began - inside
    best, path = 100.0, []
    for trial in slots.slots(study, TRIALS).values():
        if trial.state == optuna.trial.TrialState.COMPLETE and slots.feasible(trial):
            best = min(best, slots.kept(trial))
        path.append(best)
    return path, inside, around


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problem = small_problem(folder)
        paths_of: dict[str, list[list[float]]] = {"default": [], "random": []}
        inside = around = 0.0
        for seed in range(1, SEEDS + 1):
            for sampler, paths in paths_of.items():
                path, spent, rest = best_by_trial(problem, folder, seed, sampler)
                paths.append(path)
                if sampler == "default":
                    inside, around = inside + spent, around + rest
                print(f"seed {seed} {sampler}: {path[-1]:.1f}% of the MACs", file=sys.stderr)
        print(f"best feasible MACs (%) by trial: median of {SEEDS} seeds [lowest, highest]")
        print("| trials | " + " | ".join(paths_of) + " |\n| ---: | ---: | ---: |")
        for count in (1, 4, 8, 12, TRIALS):
            cells = []
            for paths in paths_of.values():
                values = [path[count - 1] for path in paths]
                cells.append(f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]")
            print(f"| {count} | " + " | ".join(cells) + " |")
        trials = SEEDS * TRIALS
        print(f"a trial takes {inside / trials:.1f} s here, sampling and storage {around / trials:.2f} s beside it")


if __name__ == "__main__":
    main()
