"""Which criterion chooses channels best: each at the same MACs, with the same training, beside the control.

    python benchmarks/race.py edsr                 # after make repro; an hour on one core, and it goes on after a stop
    python benchmarks/race.py edsr --without-teacher

Every criterion of pipeline/pruning/criteria.py removes channels of the chain's baseline once, until what is left has at
most the MACs of the chain's own result (method D). The readers make up for what goes; where a row says "cut alone" they
don't. Each network then gets the fine-tune of params.yaml, for as many steps as D had in all. The control gets the
same with nothing removed. `D in iterations` is the chain's result with its one seed.

Channels go by the rules `adaptive` and `depth`: those below one threshold for all groups, no group below its floor.
Then the most important of them come back one by one, as long as the MACs allow. Validation images alone are looked at.
Median and range are over the seeds of the training (of `random` also of the choice). All train by one cosine, the
control too; D's iterations trained at a constant rate before theirs, with the teacher. Written to
benchmarks/results/race-NETWORK.csv (a line a training) and .md (the table).
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import sys
import time
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

from torch import nn

from pipeline import config, records
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError
from pipeline.files import digest, write_text
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress
from pipeline.pruning import coupling, criteria, importance, reconstruction, removal, rules
from pipeline.training.recipes import train_final
from pipeline.training.setup import Setup, load_setup

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METHOD = "D"
RULES = ("adaptive", "depth")
CUT_ALONE = ("saliency", "magnitude", "random")  # raced without making up, too


@dataclass(frozen=True)
class Row:
    """One training."""

    variant: str
    seed: int
    teacher: float
    steps: int
    target: float  # % of the baseline's MACs, at most
    mac_percent: float  # of the baseline's
    psnr_cut: float  # dB, validation, before any training
    psnr: float  # dB, validation, after it
    seconds: float  # of the training
    baseline: str  # digest of its file


def main() -> None:
    parser = Parser(prog="python benchmarks/race.py", description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="of run.networks in params.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="of the trainings")
    parser.add_argument("--without-teacher", action="store_true", help="the whole loss against the targets")
    with guarded("race"):
        race(parser.parse_args())


def race(options: argparse.Namespace) -> None:
    params, name = config.read(ROOT / "params.yaml"), options.network
    if name not in params.run.networks:
        raise UserError(f"network {name!r} isn't in run.networks, which has {', '.join(params.run.networks)}")
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; at least 1 is allowed")
    file = ROOT / "results" / "train" / name / "network.pt"
    if not file.exists():
        raise UserError(f"{file} isn't there: make repro trains the baseline")
    setup = load_setup(params, name, ROOT / "results")
    baseline, _ = checkpoint.load(file, params.networks[name].factory)
    tuned: records.Tuned = records.read(ROOT / "results" / "finetune" / name / METHOD / "metrics.json", records.Tuned)
    steps = tuned["steps"]
    recipe = params.finetune[name].model_copy(update={"steps": steps, "validate_every": steps})
    if options.without_teacher:
        recipe = recipe.model_copy(update={"teacher": 0.0})
    field = Field(baseline.eval(), setup, params.settings(METHOD, name), tuned["mac_percent"])

    table = RESULTS / f"race-{name}.csv"
    done = read(table)
    variants = ["control", *config.CRITERIA, *(f"{criterion}, cut alone" for criterion in CUT_ALONE)]
    wanted = [(seed, variant) for seed in range(1, options.seeds + 1) for variant in variants]
    identity = digest(file)[:12]
    target = round(tuned["mac_percent"], 4)

    def ours() -> list[Row]:
        key = (recipe.teacher, steps, target, identity)
        return [row for row in done if (row.teacher, row.steps, row.target, row.baseline) == key]

    made = {(row.seed, row.variant) for row in ours()}
    progress = Progress(f"race {name}", len(wanted) * steps)
    for seed, variant in wanted:
        if (seed, variant) in made:
            progress.phase_over(steps)
            continue
        own = replace(setup, seed=seed * 1_000_003)
        try:
            network = field.smaller(variant, own if variant.startswith("random") else setup)
        except UserError as error:
            progress.say(f"{variant}: {error}")
            progress.phase_over(steps)
            continue
        mac, before = 100 * setup.cost(network).mac / field.whole, setup.validate(network)
        state = (
            ROOT / ".scratch" / "race" / f"{name}-{identity}-{variant}-{seed}-{recipe.teacher:g}-{steps}-{target:g}.pt"
        )
        state.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        train_final(network, own, recipe, state, progress, baseline)
        seconds = time.monotonic() - began
        row = Row(variant, seed, recipe.teacher, steps, target, mac, before, setup.validate(network), seconds, identity)
        done.append(row)
        write(table, done)
        text = summary(ours(), field.psnr, None if options.without_teacher else tuned, name)
        write_text(RESULTS / f"race-{name}{'-no-teacher' if options.without_teacher else ''}.md", text)
        state.unlink(missing_ok=True)
        progress.say(f"{variant}, seed {seed}: {mac:.1f}% of the MACs, {row.psnr - field.psnr:+.4f} dB")
    progress.close()
    print(summary(ours(), field.psnr, None if options.without_teacher else tuned, name))


class Field:
    """The baseline, and what all variants cut it by."""

    def __init__(self, baseline: nn.Module, setup: Setup, settings: config.Settings, mac_percent: float) -> None:
        self.baseline, self.settings = baseline, settings
        self.groups = coupling.find_groups(baseline, setup.example(baseline))
        self.spent, self.psnr = setup.cost(baseline), setup.validate(baseline)
        self.whole = self.spent.mac
        self.most = mac_percent / 100 * self.whole
        self.reference = importance.reference_magnitudes(baseline, self.groups)
        self.known = reconstruction.moments(baseline, self.groups, setup.sample_pairs())

    def smaller(self, variant: str, setup: Setup) -> nn.Module:
        """What a variant trains; UserError where its criterion has nothing to go by."""
        if variant == "control":
            return duplicate(self.baseline)
        word, _, alone = variant.partition(", ")
        criterion = cast(config.Criterion, word)
        criteria.check(criterion, self.baseline, self.groups, setup.example(self.baseline), setup.name)
        removed = self.chosen(criterion, setup)
        network = self.baseline
        if not alone:
            network = reconstruction.compensated(network, self.groups, removed, self.known)
        return removal.remove(network, self.groups, removed).eval()

    def chosen(self, criterion: config.Criterion, setup: Setup) -> removal.Removed:
        """The channels below the lowest threshold at which no more than the allowed MACs are left."""
        settings = self.settings.model_copy(update={"criterion": criterion, "max_share": 1.0})
        channels = {group.name: group.channels for group in self.groups.groups}
        limits = {name: count - rules.group_floor(count, RULES, settings) for name, count in channels.items()}
        scores = criteria.scores(criterion, self.baseline, self.groups, setup, limits, self.known)
        states = importance.group_states(
            self.baseline, self.spent, self.groups, self.reference, channels, criterion, scores
        )
        start, total = rules.State(alpha=0.0, step=0.0), (self.spent.mac, self.spent.weights)

        def below(alpha: float) -> removal.Removed:
            return rules.plan(states, start, alpha, RULES, settings, total).removed

        low, high = 0.0, 1.0
        while self.left(below(high), setup) > self.most and high < 1e3:
            high *= 2
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.left(below(middle), setup) > self.most else (low, middle)
        removed = {name: list(gone) for name, gone in below(high).items()}
        importances = {state.name: state.importances for state in states}
        order = sorted(((importances[name][j], name, j) for name, gone in removed.items() for j in gone), reverse=True)
        for _, name, channel in order:
            fewer = removed | {name: [j for j in removed[name] if j != channel]}
            fewer = {key: gone for key, gone in fewer.items() if gone}
            if self.left(fewer, setup) <= self.most:
                removed = fewer
        return removed

    def left(self, removed: removal.Removed, setup: Setup) -> float:
        return setup.cost(removal.remove(self.baseline, self.groups, removed)).mac if removed else self.whole


def read(path: Path) -> list[Row]:
    """The trainings that are done."""
    if not path.exists():
        return []
    kinds = {"seed": int, "steps": int, "variant": str, "baseline": str}
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            Row(**{key: kinds.get(key, float)(value) for key, value in row.items()}) for row in csv.DictReader(lines)
        ]


def write(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(
        [f"{value:.6g}" if isinstance(value, float) and abs(value) < 20 else f"{value:.4f}" if isinstance(value, float)
         else value for value in astuple(row)]
        for row in rows
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def summary(rows: list[Row], baseline: float, tuned: records.Tuned | None, name: str) -> str:
    """The table, best first; changes in dB on validation."""
    control = {row.seed: row.psnr for row in rows if row.variant == "control"}
    lines = []
    for variant in dict.fromkeys(row.variant for row in rows):
        own = [row for row in rows if row.variant == variant]
        changes = sorted(row.psnr - baseline for row in own)
        against = statistics.median(row.psnr - control[row.seed] for row in own)
        middle = statistics.median(changes)
        lines.append((-middle, f"| {variant} | {own[0].mac_percent:.1f} | {own[0].psnr_cut - baseline:+.4f} "
                      f"| {middle:+.4f} | {changes[0]:+.4f} to {changes[-1]:+.4f} | {against:+.4f} "
                      f"| {len(own)} |"))  # fmt: skip
    if tuned is not None:
        change, against = tuned["psnr"] - baseline, tuned["psnr"] - statistics.median(control.values())
        row = f"| D in iterations | {tuned['mac_percent']:.1f} | | {change:+.4f} | | {against:+.4f} | 1 |"
        lines.append((-change, row))
    steps, teacher = rows[0].steps, rows[0].teacher
    head = (
        f"{name}: baseline {baseline:.3f} dB on validation; {steps} steps each, {teacher:g} of the loss against the "
        "baseline's output; changes in dB on validation, medians over the seeds.\n\n"
        "| channels by | MACs left (%) | at the cut | after training, against the baseline | range "
        "| against the control | seeds |\n| --- | ---: | ---: | ---: | --- | ---: | ---: |\n"
    )
    return head + "\n".join(line for _, line in sorted(lines)) + "\n"


if __name__ == "__main__":
    main()
