"""How much of published restoration networks can be removed: traced or not, MACs left at half, equal to the masked one.

    python3 -m venv archs && archs/bin/pip install -r requirements.txt -r benchmarks/requirements.txt
    archs/bin/python benchmarks/architectures.py             # an hour on one core; it goes on after a stop
    archs/bin/python benchmarks/architectures.py SPAN PLKSR  # measures these anew

An environment of its own, because the collections bring much along: Spandrel with its extra architectures,
super-image and torchSR. The networks are built by name with fresh weights, small where their arguments allow; nothing
is downloaded. Of several outputs the largest is taken. Each network is measured in a process of its own, with one
thread, that is stopped after --limit seconds of processor time. Torch-Pruning gets a quarter of it, because where it
isn't done in seconds it wasn't in minutes.

Of every group that `find_groups` finds, half of the channels are removed, by chance. *MACs left* are those of 2-D
convolutions (pipeline/cost.py) and linear layers, in percent; products of two computed tensors aren't counted.
*Possible* is what would be left if every convolution and linear layer lost half of its inputs and outputs, but for the
network's own: colours, and what becomes the picture without another layer. A grouped one loses half of its groups once.
*Difference* is the largest one between the smaller and the masked network's output, as a share of the output's largest
value, in float64 (float32 where a forward can't do that), with weights drawn anew, at another size than the traced one.
*With prune.norms* are the MACs left where normalisations over channels lose channels too; such a network is another
one than the masked network, and the pipeline's quality gate judges it.
Torch-Pruning (Fang et al., CVPR 2023) removes half of every group by its own magnitudes. It is told which layers make
the picture, and nothing else by hand; version 1.6.1 fails at a PixelShuffle in front of a layer ("index 64 is out of
bounds"). Its network *works* if it gives an output of the same shape; what it computes isn't compared with anything.

Written to benchmarks/results/architectures.csv (a line a network) and .md (the table and its summary).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from layers import called, macs, makers, possible
from published import ATTENTION, Make, collections, shapes, suited
from torch import nn

from pipeline import cost
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError, first_line
from pipeline.files import write_text
from pipeline.networks import folded
from pipeline.progress import Progress
from pipeline.pruning import coupling, rehearsal, removal, tracing

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "architectures.csv"
EQUAL = {"float64": 1e-10, "float32": 1e-4}
CLOSE = 1.5  # points of the MACs: as good as what is possible
# How a network is pruned -> the field that says why it wasn't, and what part of --limit it gets.
METHODS = {"ours": ("untraced", 1), "norms": ("", 1), "theirs": ("theirs_fails", 4)}


@dataclass(frozen=True)
class Row:
    """One network. Figures are 0 or nan where they couldn't be measured."""

    collection: str
    name: str
    kind: str  # "convolutional" or "attention"
    side: int = 0  # pixels of the square input
    built: str = ""  # why it couldn't be built or run; empty if it could
    untraced: str = ""  # why no groups were found; empty if they were
    seconds: float = math.nan  # of processor time, of find_groups
    groups: int = 0
    left: float = math.nan  # % of the MACs
    with_norms: float = math.nan  # % of the MACs, where normalisations over channels take part
    possible: float = math.nan  # % of the MACs
    difference: float = math.nan  # of the smaller network to the masked one
    effect: float = math.nan  # of the masked network to the whole one
    precision: str = ""  # in which they were computed
    whole: str = ""  # what most channels that stay whole have as a reason
    theirs: float = math.nan  # Torch-Pruning: % of the MACs
    theirs_fails: str = ""

    @property
    def traced(self) -> bool:
        return not self.built and not self.untraced

    @property
    def wrong(self) -> bool:
        return self.groups > 0 and not self.difference <= EQUAL.get(self.precision, 0.0)


def main() -> None:
    parser = Parser(prog="python benchmarks/architectures.py", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of networks; without any, all that have no line yet")
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time for each network and method")
    with guarded("architectures"):
        run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    everything = {(group, name): make for group, names in collections().items() for name, make in names.items()}
    unknown = set(options.names) - {name for _, name in everything}
    if unknown:
        raise UserError(f"{min(unknown)!r} isn't one of {', '.join(name for _, name in sorted(everything))}")
    done = {(row.collection, row.name): row for row in read(TABLE)}
    wanted = [key for name in options.names for key in sorted(everything) if key[1] == name]
    wanted = wanted if options.names else [key for key in sorted(everything) if key not in done]
    progress = Progress("architectures", len(wanted))
    for collection, name in wanted:
        row = Row(collection, name, "attention" if name in ATTENTION.split() else "convolutional")
        for method, (key, share) in METHODS.items():
            if not row.built and (method != "norms" or row.left - row.possible > CLOSE):
                found, fault = apart(everything[collection, name], method, options.limit // share)
                row = replace(row, **(found | ({key: fault} if fault and key else {})))
        done[collection, name] = row
        write(TABLE, [done[key] for key in sorted(done)])
        write_text(TABLE.with_suffix(".md"), summary([done[key] for key in sorted(done)], len(everything)))
        progress.say(f"{name}: {row.built or row.untraced or f'{row.left:.1f}% of {row.possible:.1f}%'}")
        progress.phase_over(1)
    progress.close()
    print(summary([done[key] for key in sorted(done)], len(everything)))


def apart(make: Make, method: str, limit: int) -> tuple[dict[str, Any], str]:
    """What a process of its own finds, as fields of the row, and what went wrong with it; it may hang or crash."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        process = multiprocessing.get_context("fork").Process(target=child, args=(make, method, limit, found))
        process.start()
        process.join(20 * limit)  # of the clock: one that waits for something takes no processor time
        if process.is_alive():
            process.kill()
            process.join()
        fault = ""
        if process.exitcode:
            over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
            fault = f"over {limit} s" if over else f"the process ended with status {process.exitcode}"
        fields = json.loads(found.read_text()) if found.exists() else {}
        return fields, fields.pop("fault", fault)


def child(make: Make, method: str, limit: int, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    torch.manual_seed(0)
    found: dict[str, Any] = {}

    def note(**fields: Any) -> None:
        found.update(fields)
        write_text(path, json.dumps(found))

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            network = make().eval()
            folded.fold(type(network).__name__, network)  # as networks.build does
            side = suited(network)
        except (Exception, SystemExit) as error:
            note(built=fault_of(error))
            return
        note(side=side)
        try:
            {"ours": ours, "norms": with_norms, "theirs": theirs}[method](network, torch.zeros(1, 3, side, side), note)
        except (Exception, SystemExit) as error:
            note(fault=fault_of(error))


def fault_of(error: BaseException) -> str:
    return f"{'' if type(error) in (RuntimeError, UserError) else f'{type(error).__name__}: '}{first_line(error)}"


def ours(network: nn.Module, example: torch.Tensor, note: Callable[..., None]) -> None:
    began = time.process_time()
    try:
        found = coupling.find_groups(network, example)
    except UserError as error:
        note(untraced=re.sub(r"/\S*site-packages/", "", str(error)))
        return
    note(seconds=time.process_time() - began, groups=len(found.groups), whole=common(found.frozen))
    removed = halved(found)
    small = removal.remove(network, found, removed)
    side = example.shape[-1]
    note(left=100 * macs(small, side) / macs(network, side), possible=possible(network, example))
    if not found.groups:
        return
    rehearsed = rehearsal.rehearse(network.requires_grad_(False), torch.rand(example.shape), torch.Generator())
    if rehearsed is None:
        raise UserError("no output is finite with any weights")
    network, image = rehearsed[:2]
    small, masked = removal.remove(network, found, removed), removal.masked(network, found, removed)
    rng = torch.Generator().manual_seed(2)
    for height, width in ((2 * side, side), (side, side)):
        picture = torch.rand(1, 3, height, width, generator=rng).to(image.dtype)
        try:
            whole, expected = result(network, picture), result(masked, picture)
        except Exception:  # some take squares alone
            continue
        made, size = result(small, picture), float(expected.abs().max())
        note(
            difference=float((made - expected).abs().max()) / size, effect=float((whole - expected).abs().max()) / size
        )
        note(precision=str(image.dtype).removeprefix("torch."))
        return


def with_norms(network: nn.Module, example: torch.Tensor, note: Callable[..., None]) -> None:
    """As `prune.norms: true` has it: statistics over channels are then taken over those that are left."""
    found = coupling.find_groups(network, example, norms=True)
    small, side = removal.remove(network, found, halved(found)), example.shape[-1]
    note(with_norms=100 * macs(small, side) / macs(network, side))


def halved(found: removal.Coupling) -> dict[str, list[int]]:
    chance = random.Random(1)
    return {group.name: chance.sample(range(group.channels), group.channels // 2) for group in found.groups}


def result(network: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)  # some add noise
    with torch.no_grad():
        return network(picture.clone())


def theirs(network: nn.Module, example: torch.Tensor, note: Callable[..., None]) -> None:
    """Torch-Pruning: half of every group, but for the layers that make the picture and those that training leaves."""
    tp = importlib.import_module("torch_pruning")
    side = example.shape[-1]
    with torch.no_grad():
        before, expected = macs(network, side), shapes(network(example.clone()))
    try:
        kept = set(makers(network, example))
    except Exception:  # it can't be traced by torch.export: the last layer then
        kept = {called(network, example)[-1]}
    kept |= {name.rpartition(".")[0] for name in tracing.untrained(network)}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    try:
        with cost.quiet():
            pruner = tp.pruner.MagnitudePruner(
                network,
                example.clone(),
                importance=tp.importance.GroupMagnitudeImportance(),
                pruning_ratio=0.5,
                ignored_layers=[module for name, module in network.named_modules() if name and name in kept],
            )
            pruner.step()
            with torch.no_grad():
                made = shapes(network(example.clone()))
        if made != expected:
            raise UserError(f"an output of {made}")
        note(theirs=100 * macs(network, side) / before)
    except (Exception, SystemExit) as error:
        note(theirs_fails=fault_of(error))


def common(frozen: tuple[str, ...]) -> str:
    """The reason that most layers have for staying whole, without where: "the operation bmm: 4 layers, …"."""
    count: Counter[str] = Counter()
    for text in frozen:
        named, _, reason = text.partition(" can't be removed because of ")
        if reason.startswith("the sizes in "):
            reason = "sizes written as numbers"
        count[re.split(r" in |, | \(| and \d+ more|: ", reason)[0]] += named.count(",") + 1
    return "; ".join(f"{reason} ({number})" for reason, number in count.most_common(2))


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)}
    with path.open(encoding="utf-8", newline="") as lines:
        return [Row(**{key: kinds[key](value) for key, value in row.items()}) for row in csv.DictReader(lines)]


def write(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row)] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def summary(rows: list[Row], total: int) -> str:
    """The table and what it comes to; total: the networks that there are."""
    return "\n".join([*overall(rows, total), "", *table(rows)]) + "\n"


def overall(rows: list[Row], total: int) -> Iterator[str]:
    runs = [row for row in rows if not row.built]
    yield (
        f"{len(rows)} of {total} networks measured. {len(runs)} can be built and take one image. "
        f"torch {torch.__version__}; benchmarks/architectures.py says what the figures are.\n"
    )
    for kind in ("convolutional", "attention"):
        own = [row for row in runs if row.kind == kind and row.traced and row.left == row.left]
        if own:
            left, most = statistics.mean(row.left for row in own), statistics.mean(row.possible for row in own)
            close = sum(row.left - row.possible <= CLOSE for row in own)
            yield (
                f"- {kind}, {len(own)} traced: {left:.1f}% of the MACs left on average, {most:.1f}% would be possible; "
                f"{close} are within {CLOSE} points of what is possible."
            )
            if not any(row.left - row.possible > CLOSE and math.isnan(row.with_norms) for row in own):
                opened = [row.left if math.isnan(row.with_norms) else row.with_norms for row in own]
                near = sum(left - row.possible <= CLOSE for left, row in zip(opened, own, strict=True))
                yield (
                    f"- {kind}, with `prune.norms`: {statistics.mean(opened):.1f}% left on average; {near} are within "
                    f"{CLOSE} points of what is possible."
                )
        both = [row for row in runs if row.kind == kind]
        working = [row for row in both if row.theirs == row.theirs]
        if both and working:
            failing = 100 * (len(both) - len(working))
            mean = statistics.mean(row.theirs for row in working)
            counted = (sum(row.theirs for row in working) + failing) / len(both)
            mine = statistics.mean(row.left if row.left == row.left else 100.0 for row in both)
            yield (
                f"- {kind}, Torch-Pruning: a working network of {len(working)} of {len(both)}, with {mean:.1f}% of the "
                f"MACs left on average; all, with 100 for a failure: {counted:.1f}%, against {mine:.1f}% here."
            )
    grouped = [row for row in runs if row.groups]
    wrong = [f"{row.name} ({row.difference:.1e})" for row in grouped if row.wrong]
    equal = f"{len(grouped) - len(wrong)} of {len(grouped)} with removable groups equal their masked network"
    yield f"- {equal}{'; wrong: ' + ', '.join(wrong) if wrong else ''}."
    untraced = [f"{row.name}: {row.untraced}" for row in runs if row.untraced]
    yield f"- Not traced or not measured: {len(untraced)}.{''.join(f'{chr(10)}  - {text}' for text in untraced)}"
    yield "- Not run:" + "".join(f"\n  - {row.name}: {row.built}" for row in rows if row.built)


def table(rows: list[Row]) -> Iterator[str]:
    yield (
        "| collection | network | kind | traced | seconds | groups | MACs left (%) "
        "| with prune.norms (%) | possible (%) | difference "
        "| layers that stay whole: reasons | Torch-Pruning: MACs left (%) |"
    )
    yield f"|{' --- |' * 4}{' ---: |' * 6} --- | --- |"
    for row in rows:
        if row.built:
            continue
        same = row.precision + (" " if row.precision else "") + number(row.difference, ".0e")
        reason = row.whole.replace("|", "/") if not row.left - row.possible <= CLOSE else ""
        theirs = number(row.theirs, ".1f") or f"fails: {row.theirs_fails[:80]}".replace("|", "/")
        yield (
            f"| {row.collection} | {row.name} | {row.kind} | {'yes' if row.traced else 'no'} "
            f"| {number(row.seconds, '.1f')} | {row.groups or ''} | {number(row.left, '.1f')} "
            f"| {number(row.with_norms, '.1f')} "
            f"| {number(row.possible, '.1f')} | {same.removeprefix('float64 ')} | {reason} | {theirs} |"
        )


def number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


if __name__ == "__main__":
    main()
