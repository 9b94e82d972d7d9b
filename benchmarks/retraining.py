"""How what is left of a cut network is best trained: variants side by side, on one baseline, with equal steps.

    python benchmarks/retraining.py edsr            # hours on one core; stop it at will, it goes on
    python benchmarks/retraining.py sid --seed 1    # one seed alone; another process may take another

A baseline is trained on the photographs of params.yaml, and channels go at once. `uniform`: the same share of every
group. `saliency`: the pipeline's choice (rules `adaptive` and `depth`), down to as many MACs. `D, in iterations`: the
first 400 of its steps are four iterations of 100, by the rules of params.yaml, or with other regularisation; its
threshold_scale is the one that ends near the uniform cut's MACs, and no quality refuses an iteration. What is left
then trains for as many steps on the same images, with or without readers that make up for what went; a share of the
loss, or none, is against the baseline's output (`teacher`). The controls get the same training with nothing removed.
From scratch, saliency's architecture and the whole network get the baseline's steps and these.

The table gives the change of validation PSNR against the baseline right after the cut and after the training, the
median over seeds of the training, with its range. Test images aren't read. What there is so far is written to
benchmarks/results/retraining-NETWORK.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from contestants import Field, Task, from_scratch
from torch import nn

from pipeline import config, networks
from pipeline.cli import Parser, guarded
from pipeline.data.dataset import load_images
from pipeline.data.storage import save_split
from pipeline.files import digest, load_tensors, read_json, save_tensors, write_json, write_text
from pipeline.networks import checkpoint, duplicate
from pipeline.prepare import layouts, pairs
from pipeline.progress import Progress
from pipeline.pruning import criteria, gate, prune, reconstruction, removal
from pipeline.training.device import choose
from pipeline.training.loop import fit
from pipeline.training.recipes import train_final
from pipeline.training.setup import Setup

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / ".scratch" / "retraining"
ITERATIONS = config.Retrain(max_iterations=4, steps=100, lr=1e-3, teacher=0.5)


@dataclass(frozen=True)
class Case:
    """A network, its baseline's recipe, and what a uniform cut takes of every group."""

    args: dict[str, int]
    baseline: config.Train
    share: float  # of every group's channels
    steps: tuple[int, int]  # of a variant, of a long one
    scale: float  # prune.threshold_scale with which four iterations of D come to the uniform cut's MACs


CASES = {
    "edsr": Case(
        {"scale": 2, "blocks": 8, "channels": 32},
        config.Train(
            steps=8000, batch=8, patch=24, lr=2e-3, lr_final=1e-6, clip=0.1, average=0.99, validate_every=8000
        ),
        0.25, (3000, 8000), 0.115,
    ),
    "sid": Case(
        {"base": 8},
        config.Train(
            steps=16000, batch=4, patch=48, lr=2e-3, lr_final=1e-5, clip=1.0, average=0.999, validate_every=16000
        ),
        0.35, (6000, 16000), 0.17,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to cut and to train on."""

    cut: str  # one of the names below
    makes_up: bool = False  # whether readers make up for what goes
    teacher: float = 0.0  # share of the loss
    long: bool = False  # whether it has the longer training

    def __str__(self) -> str:
        return f"{self.cut}{', made up for' if self.makes_up else ''} | {self.teacher:g}"


CONTROL, L1, RANDOM = "control, nothing removed", "uniform, smallest weights", "uniform, random"
SALIENCY = "saliency"
SCRATCH = "saliency's architecture from scratch, after as many steps as the baseline"
ANEW = "control from scratch, after as many steps as the baseline"
D, FREE, STRONG = (f"D, in iterations{of}" for of in ("", " without regularisation", ", a hundred times the sparsity"))
ITERATED = {D: {}, FREE: {"sparsity": 0.0, "imbalance": 0.0}, STRONG: {"sparsity": 1e-3}}  # what D sets differently
VARIANTS = [
    Variant(D, makes_up=True, teacher=0.5),
    Variant(SALIENCY, makes_up=True, teacher=0.5),
    Variant(L1, teacher=0.5),
    Variant(L1),
    Variant(CONTROL, teacher=0.5),
    Variant(D, makes_up=True, teacher=0.5, long=True),
    Variant(CONTROL, teacher=0.5, long=True),
    Variant(RANDOM, teacher=0.5),
    Variant(FREE, makes_up=True, teacher=0.5),
    Variant(STRONG, makes_up=True, teacher=0.5),
    Variant(SCRATCH, teacher=0.5),
    Variant(ANEW, teacher=0.5),
    Variant(SALIENCY, makes_up=True, teacher=0.5, long=True),
    Variant(L1, teacher=0.5, long=True),
    Variant(L1, makes_up=True, teacher=0.5),
    Variant(SALIENCY, makes_up=True),
    Variant(CONTROL),
]


def main() -> None:
    parser = Parser(prog="python benchmarks/retraining.py", description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=CASES)
    parser.add_argument("--seed", type=int, action="append", help="of the variants' trainings; 1, 2 and 3 unless given")
    with guarded("retraining"):
        options = parser.parse_args()
        name, seeds = options.network, options.seed or [1, 2, 3]
        progress = Progress(f"retraining {name}", CASES[name].baseline.steps)
        bench = Bench.of(name, progress)
        progress.extend(len(seeds) * sum(bench.steps(variant) for variant in VARIANTS))
        for variant in VARIANTS:
            for seed in seeds:
                bench.row(variant, seed)
                write_text(RESULTS / f"retraining-{name}.md", bench.table())
        progress.close()
        print(bench.table())


@dataclass(frozen=True)
class Bench:
    """One network's baseline, and what all variants share."""

    case: Case
    setup: Setup
    field: Field
    psnr: float  # of the baseline, dB
    progress: Progress
    work: Path

    @classmethod
    def of(cls, name: str, progress: Progress) -> Bench:
        params, case, work = config.read(ROOT / "params.yaml"), CASES[name], WORK / name
        for split in ("train", "validation"):
            if not (work / split).exists():
                part = layouts.find(params, name).parts[split]
                save_split(work / split, *pairs.make(part.sources, part.making))
        machine = choose("cpu", 1, "auto")
        setup = Setup(
            name=name,
            network=params.networks[name].model_copy(update={"args": case.args}),
            train=load_images(work / "train", machine.device),
            validation=load_images(work / "validation", machine.device),
            recipe=case.baseline,
            retrain=ITERATIONS,
            gate=params.gate,
            tolerance=(99.0, 1.0),  # D's iterations are accepted whatever they lose: the MACs are given
            machine=machine,
            size=params.analyze[name].size,
            seed=1_000_003,
        )
        network = baseline(name, setup, work, progress)
        field = Field.of(network, setup, params.settings("D", name))
        return cls(case, setup, field, setup.validate(network), progress, work)

    def steps(self, variant: Variant) -> int:
        return self.case.steps[variant.long] + (self.case.baseline.steps if variant.cut in (SCRATCH, ANEW) else 0)

    def row(self, variant: Variant, seed: int) -> None:
        """Train a variant and keep its figures, unless that was done before."""
        store, base = self.work / f"rows-{seed}.json", self.progress.base
        rows = read_json(store) if store.exists() else {}
        key = f"{variant} | {self.case.steps[variant.long]}"
        if key not in rows:
            setup = replace(self.setup, seed=(seed + 1) * 1_000_003)
            recipe = config.Finetune(
                steps=self.case.steps[variant.long], lr=1e-3, lr_final=1e-6, teacher=variant.teacher
            )
            scratch = self.work / f"{seed}"
            scratch.mkdir(exist_ok=True)
            task = Task(self.field.baseline, setup, recipe, self.mac(self.uniform(L1)), scratch)
            began = time.process_time()
            network, recipe = self.cut(variant, task)
            at_cut = self.setup.validate(network) - self.psnr
            state = scratch / f"{digest(key)[:12]}.pt"  # its own: another variant's fits the same network
            train_final(network, setup, recipe, state, self.progress, self.field.baseline)
            state.unlink(missing_ok=True)
            rows[key] = {
                "mac_percent": 100 * self.mac(network) / self.field.spent.mac,
                "at_cut": at_cut,
                "after": self.setup.validate(network) - self.psnr,
                "minutes": (time.process_time() - began) / 60,  # of processor time; too few after a stop
            }
            write_json(store, rows)
            self.progress.say(f"{key}, seed {seed}: {rows[key]['after']:+.4f} dB")
        self.progress.base = base + self.steps(variant)

    def mac(self, network: nn.Module) -> int:
        return self.setup.cost(network).mac

    def cut(self, variant: Variant, task: Task) -> tuple[nn.Module, config.Finetune]:
        """What a variant begins its last training with, and that training."""
        if variant.cut == CONTROL:
            return duplicate(task.baseline), task.recipe
        if variant.cut in ITERATED:
            return self.iterated(variant.cut, task)
        if variant.cut in (L1, RANDOM):
            return self.uniform(variant.cut, variant.makes_up), task.recipe
        if variant.cut == ANEW:
            entry = from_scratch(task.baseline, task)
            return entry.network, entry.recipe
        # the choice hangs on no seed but the baseline's
        smaller = self.field.smaller("saliency", replace(task, setup=self.setup))
        if variant.cut == SALIENCY:
            return smaller, task.recipe
        entry = from_scratch(smaller, task)
        return entry.network, entry.recipe

    def uniform(self, cut: str, makes_up: bool = False) -> nn.Module:
        """Without the same share of every group: its channels of least mean |weight|, summed over coupled layers
        (Li et al., ICLR 2017), or any."""
        network, groups, setup = self.field.baseline, self.field.groups, self.setup
        criterion: config.Criterion = "l1" if cut == L1 else "random"
        scores = criteria.scores(criterion, network, groups, setup, {})
        assert scores is not None
        removed = {}
        for group in groups.groups:
            order = torch.tensor(scores[group.name]).argsort(stable=True)
            removed[group.name] = tuple(sorted(order[: round(self.case.share * group.channels)].tolist()))
        if makes_up:
            network = reconstruction.compensated(network, groups, removed, self.field.known)
        return removal.remove(network, groups, removed).eval()

    def iterated(self, cut: str, task: Task) -> tuple[nn.Module, config.Finetune]:
        """By method D in iterations, whose steps are taken off."""
        own: dict[str, float] = {"threshold_scale": self.case.scale, "target_mac": 0.0}
        settings = self.field.settings.model_copy(update=own | ITERATED[cut])
        quality = task.setup.quality(task.baseline)
        folder = task.scratch / cut
        folder.mkdir(exist_ok=True)
        rules = ("adaptive", "depth", "efficiency", "balance")
        log = prune.prune(
            task.baseline, task.setup, settings, rules, gate.Target((quality,)), folder, self.progress
        )  # fmt: skip
        network, _ = checkpoint.load(folder / f"accepted-{len(log) - 1:03d}.pt", self.setup.network.factory)
        spent = ITERATIONS.steps * ITERATIONS.max_iterations
        return network, task.recipe.model_copy(update={"steps": task.recipe.steps - spent})

    def table(self) -> str:
        found = [read_json(path) for path in sorted(self.work.glob("rows-*.json"))]
        args = ", ".join(f"{key} {value}" for key, value in self.case.args.items())
        lines = [
            f"{self.setup.name} ({args}): baseline of {self.case.baseline.steps} steps, {self.psnr:.3f} dB on "
            f"validation, in {'bfloat16' if self.setup.machine.bf16 else 'float32'}; changes in dB against it, medians "
            "over the seeds",
            "",
            "| channels removed | teacher | steps | MACs left (%) | at the cut (dB) | after (dB) | range | seeds "
            "| minutes |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
        ]
        for variant in VARIANTS:
            key = f"{variant} | {self.case.steps[variant.long]}"
            if rows := [row[key] for row in found if key in row]:
                lines.append(f"| {key} | {line(rows)} |")
        return "\n".join(lines) + "\n"


def line(rows: Sequence[dict[str, float]]) -> str:
    """The figures of one variant's seeds."""
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    after = sorted(row["after"] for row in rows)
    spread = f"{after[0]:+.4f} to {after[-1]:+.4f}"
    return (
        f"{median['mac_percent']:.1f} | {median['at_cut']:+.3f} | {median['after']:+.4f} | {spread} | {len(rows)} "
        f"| {median['minutes']:.0f}"
    )


def baseline(name: str, setup: Setup, work: Path, progress: Progress) -> nn.Module:
    torch.manual_seed(1)
    network = networks.build(name, setup.network.args)
    path = work / "baseline.pt"
    if path.exists():
        network.load_state_dict(load_tensors(path))
    else:
        fit(network, setup.train, setup.recipe, setup.machine, seed=setup.seed, tick=progress.tick,
            resume=work / "baseline-state.pt")  # fmt: skip
        save_tensors(path, network.state_dict())
    progress.phase_over(setup.recipe.steps)
    return network.eval()


if __name__ == "__main__":
    main()
