"""Which pruning keeps most: criteria, other ways and other projects, at the same MACs and with the same training.

    python benchmarks/race.py edsr                 # after make repro; hours on one core, and it goes on after a stop
    python benchmarks/race.py edsr --mac-percent 45.8962 --steps 1800
    python benchmarks/race.py edsr --without-teacher
    python benchmarks/race.py edsr --row control --row saliency --row "OTO, HESSO"
    python benchmarks/race.py edsr --at-no-drop --row saliency --row "ModelOpt, FastNAS"

Every criterion of pipeline/pruning/criteria.py removes channels of the chain's baseline once, until what is left has at
most the MACs of the chain's own result (method D). The readers make up for what goes; where a row says "cut alone" they
don't. Each network then gets the fine-tune of params.yaml, for as many steps as D had in all. The control gets the
same with nothing removed. `D in iterations` is the chain's result with its one seed.

Channels go by the rules `adaptive` and `depth`: those below one threshold for all groups, no group below its floor.
Then the most important of them come back one by one, as long as the MACs allow. Validation images alone are looked at.
Median and range are over the seeds of the training (of `random` also of the choice). All train by one cosine, the
control too; D's iterations trained at a constant rate before theirs, with the teacher.

Beside the criteria run `ssl` and `morphnet`, D's architecture and a narrower network from scratch with the baseline's
steps and these together (benchmarks/contestants.py), and other projects, each in an environment that has it
(benchmarks/peers.py). What trains while it prunes has those steps taken off. A row that can't run says why.

--at-no-drop looks for the fewest MACs at which a row loses no more than 0.01 dB against the better of baseline and
control: six halvings between 10% and 90%. Its table also has the rows that were looked for before with as many seeds.

A training that the file below holds isn't made again. Written to benchmarks/results/race-NETWORK.csv (a line a
training), .md (the tables) and -no-drop.png (the drop over MACs, of all rows that were trained at several numbers).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

from contestants import Entry, Field, Task, by_lasso, from_scratch, narrower
from peers import PEERS
from standings import Row, Standings, no_drop_table, picture, read, write
from torch import nn

from pipeline import config, records
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError, first_line
from pipeline.files import digest, write_text
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress
from pipeline.training.recipes import train_final
from pipeline.training.setup import Setup, load_setup

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / ".scratch" / "race"
METHOD = "D"
CUT_ALONE = ("saliency", "magnitude", "random")  # raced without making up, too
FRESH = ("from scratch, D's architecture", "from scratch, narrower")
VARIANTS = ("control", *config.CRITERIA, *(f"{criterion}, cut alone" for criterion in CUT_ALONE),
            "ssl", "morphnet", *PEERS, *FRESH)  # fmt: skip
ALLOWED = 0.01  # dB
HALVINGS, LOWEST, HIGHEST = 6, 10.0, 90.0  # of the MACs in %: where --at-no-drop looks


def main() -> None:
    parser = Parser(prog="python benchmarks/race.py", description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="of run.networks in params.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="of the trainings")
    parser.add_argument("--steps", type=int, help="of each training, in place of as many as D had")
    parser.add_argument("--mac-percent", type=float, help="of the baseline's, at most, in place of what D has left")
    parser.add_argument("--row", action="append", metavar="NAME", help="run this row alone; may be given several times")
    parser.add_argument("--without-teacher", action="store_true", help="the whole loss against the targets")
    parser.add_argument("--at-no-drop", action="store_true", help="look for the fewest MACs at no drop of each --row")
    with guarded("race"):
        race(parser.parse_args())


def race(options: argparse.Namespace) -> None:
    params, name = config.read(ROOT / "params.yaml"), options.network
    if name not in params.run.networks:
        raise UserError(f"network {name!r} isn't in run.networks, which has {', '.join(params.run.networks)}")
    for option, least in (("seeds", 1), ("steps", 8)):
        if (given := getattr(options, option)) is not None and given < least:
            raise UserError(f"--{option} is {given}; at least {least} is allowed")
    if options.mac_percent is not None and not 0 < options.mac_percent < 100:
        raise UserError(f"--mac-percent is {options.mac_percent:g}; a number between 0 and 100 is allowed")
    for row in options.row or ():
        if row not in VARIANTS:
            raise UserError(f"--row {row!r} isn't there; there are {'; '.join(VARIANTS)}")
    if options.at_no_drop and not options.row:
        raise UserError("--at-no-drop wants the rows to look at: --row NAME, once for each")
    rivals = Race.of(params, name, options.steps, options.mac_percent, options.without_teacher)
    ending, text = "-no-teacher" if options.without_teacher else "", ""
    if options.at_no_drop:
        rivals.begin(["control"], options.seeds)
        rivals.begin(options.row, options.seeds, HALVINGS)
        text = rivals.no_drop(options.row, options.seeds)
        write_text(RESULTS / f"race-{name}-no-drop{ending}.md", text)
        if lines := rivals.standings().lines():
            title = f"{name}, {rivals.recipe.steps} steps each, seeds: {options.seeds}"
            picture(lines, ALLOWED, title, RESULTS / f"race-{name}-no-drop{ending}.png")
    else:
        variants = options.row or VARIANTS
        rivals.begin(variants, options.seeds)
        for seed in range(1, options.seeds + 1):
            for variant in variants:
                rivals.row(variant, seed, rivals.target)
                text = rivals.table()
                write_text(RESULTS / f"race-{name}{ending}.md", text)
    rivals.progress.close()
    print(text)


@dataclass
class Race:
    """One network's race: what all rows share, and the rows that are done."""

    name: str
    field: Field
    setup: Setup
    recipe: config.Finetune
    tuned: records.Tuned | None  # D's result, where it had the same training
    target: float  # MACs in % of the baseline's
    identity: str  # of the baseline
    psnr: float  # of the baseline, dB
    done: list[Row]
    progress: Progress

    @classmethod
    def of(
        cls, params: config.Params, name: str, steps: int | None, mac_percent: float | None, without_teacher: bool
    ) -> Race:
        file = ROOT / "results" / "train" / name / "network.pt"
        if not file.exists():
            raise UserError(f"{file} isn't there: make repro trains the baseline")
        setup = load_setup(params, name, ROOT / "results")
        baseline = checkpoint.load(file, params.networks[name].factory)[0].to(setup.machine.device).eval()
        metrics = ROOT / "results" / "finetune" / name / METHOD / "metrics.json"
        tuned: records.Tuned = records.read(metrics, records.Tuned)
        total = steps or tuned["steps"]
        recipe = params.finetune[name].model_copy(update={"steps": total})
        if without_teacher:
            recipe = recipe.model_copy(update={"teacher": 0.0})
        target = round(tuned["mac_percent"] if mac_percent is None else mac_percent, 4)
        field = Field.of(baseline, setup, params.settings(METHOD, name))
        alike = total == tuned["steps"] and target == round(tuned["mac_percent"], 4)
        same = tuned if alike and not without_teacher else None
        done, identity = read(RESULTS / f"race-{name}.csv"), digest(file)[:12]
        progress, psnr = Progress(f"race {name}", 0), setup.validate(baseline)
        return cls(name, field, setup, recipe, same, target, identity, psnr, done, progress)

    def begin(self, variants: list[str] | tuple[str, ...], seeds: int, each: int = 1) -> None:
        """Old failures are tried again: what was missing may be installed."""
        self.done = [row for row in self.done if not (row.failure and row.variant in variants)]
        self.progress.extend(sum(self.planned(variant) for variant in variants) * seeds * each)

    def planned(self, variant: str) -> int:
        return self.recipe.steps + (self.setup.recipe.steps if variant in FRESH else 0)

    def known(self, target: float | None = None) -> list[Row]:
        """The rows of this training, those of one target or of all."""
        key = (self.recipe.teacher, self.recipe.steps, self.identity)
        ours = [row for row in self.done if (row.teacher, row.steps, row.baseline) == key]
        return [row for row in ours if target is None or row.target == target]

    def kept(self, variant: str, seed: int, target: float) -> Row | None:
        """A training that was made before. One failure stands for all seeds."""
        for row in self.known(target):
            if row.variant == variant and (row.seed == seed or row.failure):
                return row
        return None

    def row(self, variant: str, seed: int, target: float) -> Row:
        """What a row comes to with at most `target` percent of the MACs; trained, unless it was before."""
        if (done := self.kept(variant, seed, target)) is not None:
            self.progress.phase_over(self.planned(variant))
            return done
        base = self.progress.base
        row = Row(variant, seed, self.recipe.teacher, self.recipe.steps, target, *4 * (math.nan,), self.identity)
        try:
            row = self.trained(row)
            change = f"{row.mac_percent:.1f}% of the MACs, {row.psnr - self.psnr:+.4f} dB"
        except UserError as error:
            row = replace(row, failure=str(error).partition(", at /")[0])
        except Exception as error:  # whatever another project's code raises
            row = replace(row, failure=f"fails: {type(error).__name__}: {first_line(error)}")
        self.progress.say(f"{variant}, seed {seed}: {row.failure or change}")
        self.progress.base = base + self.planned(variant)
        self.done.append(row)
        write(RESULTS / f"race-{self.name}.csv", self.done)
        return row

    def trained(self, row: Row) -> Row:
        own = replace(self.setup, seed=row.seed * 1_000_003)
        scratch = SCRATCH / f"{self.name}-{self.identity}"
        scratch.mkdir(parents=True, exist_ok=True)
        task = Task(self.field.baseline, own, self.recipe, row.target / 100 * self.field.spent.mac, scratch)
        entry = self.entry(row.variant, task)
        mac, before = (
            100 * self.setup.cost(entry.network).mac / self.field.spent.mac,
            self.setup.validate(entry.network),
        )
        state = SCRATCH / (
            f"{self.name}-{self.identity}-{row.variant}-{row.seed}-{row.teacher:g}-{row.steps}-{row.target:g}.pt"
        )
        began = time.monotonic()
        train_final(entry.network, own, entry.recipe, state, self.progress, self.field.baseline)
        seconds = time.monotonic() - began
        state.unlink(missing_ok=True)
        cut = math.nan if row.variant in FRESH else before
        psnr = self.setup.validate(entry.network)
        return replace(row, mac_percent=mac, psnr_cut=cut, psnr=psnr, seconds=seconds)

    def entry(self, variant: str, task: Task) -> Entry:
        if variant in PEERS:
            return PEERS[variant](task)
        if variant in ("ssl", "morphnet"):
            return by_lasso(self.field, task, weighted=variant == "morphnet")
        if variant in FRESH:
            return from_scratch(self.pruned() if variant == FRESH[0] else narrower(task), task)
        if variant == "control":
            return Entry(duplicate(task.baseline), task.recipe)
        # what a criterion chooses hangs on the seed under `random` alone: the others' rows start from one network
        chooser = task if variant.startswith("random") else replace(task, setup=self.setup)
        return Entry(self.field.smaller(variant, chooser), task.recipe)

    def pruned(self) -> nn.Module:
        file = ROOT / "results" / "finetune" / self.name / METHOD / "network.pt"
        return checkpoint.load(file, self.setup.network.factory)[0]

    def standings(self, target: float | None = None) -> Standings:
        """The rows of one target or of all."""
        controls = {row.seed: row.psnr for row in self.known() if row.variant == "control" and not row.failure}
        return Standings(self.known(target), self.psnr, controls)

    def table(self) -> str:
        return self.head() + self.standings(self.target).table(self.tuned)

    def no_drop(self, variants: list[str], seeds: int) -> str:
        """The table of these rows, and of those that were looked for before with as many seeds."""
        seen = range(1, seeds + 1)
        for seed in seen:
            self.row("control", seed, self.target)
        found = {variant: self.fewest(variant, seen, self.row) for variant in variants}
        for variant in dict.fromkeys(row.variant for row in self.known()):
            if variant != "control" and variant not in found:
                with contextlib.suppress(LookupError):
                    found[variant] = self.fewest(variant, seen, self.before)
        return self.head() + no_drop_table(found, self.standings(), HIGHEST)

    def before(self, variant: str, seed: int, target: float) -> Row:
        """A training that was made before. LookupError where it wasn't."""
        if (row := self.kept(variant, seed, target)) is None:
            raise LookupError
        return row

    def fewest(
        self, variant: str, seeds: Iterable[int], row: Callable[[str, int, float], Row]
    ) -> tuple[list[Row], str]:
        """The rows, one a seed, of the fewest MACs, to about a point, at which the median drop is allowed.

        Without any, why the last one failed, if it did. A target at which one seed fails isn't held.
        """
        low, high, found, failure = LOWEST, HIGHEST, [], ""
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rows = [row(variant, seed, middle) for seed in seeds]
            failure = next((each.failure for each in rows if each.failure), "")
            if not failure and statistics.median(map(self.standings().drop, rows)) <= ALLOWED:
                high, found = middle, rows
            else:
                low = middle
        return found, failure

    def head(self) -> str:
        return (
            f"{self.name}: baseline {self.psnr:.3f} dB on validation; {self.recipe.steps} steps each, "
            f"{self.recipe.teacher:g} of the loss against the baseline's output; changes in dB on validation, "
            "medians over the seeds.\n\n"
        )


if __name__ == "__main__":
    main()
