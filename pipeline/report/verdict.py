"""What pruning saved and lost: a sentence and three numbers for people, and a few numbers for `dvc exp show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import records
from pipeline.evaluation.solutions import REFERENCES
from pipeline.report import tables

RULES = {  # in words, in the paper's order
    "adaptive": "removes more after an accepted iteration, less after a rejected one",
    "depth": "keeps a least number of channels in every group",
    "efficiency": "takes more where a weight costs most MACs",
    "balance": "takes more from groups that have lost little",
}


@dataclass(frozen=True)
class Tile:
    """One of the three numbers that say what was saved."""

    saved: str  # 54% less
    what: str  # computing (MACs)
    figures: str  # before and after, with their unit


def sentence(rows: Sequence[dict[str, Any]], methods: Sequence[str], method: str, network: str) -> str:
    """What a method has saved, and how its PSNR on the test images has changed: plus is better.

    rows: the main table's; methods: all that were run.
    """
    by_solution = {row["solution"]: row for row in rows if row["network"] == network}
    row, smallest = by_solution[method], min(methods, key=lambda name: by_solution[name]["mac"])
    name = tables.escaped(network)
    if row["mac_percent"] == 100:
        text = (
            f"**{name}: method {method} removed nothing**: no smaller network passed the gate, or prune.target_mac "
            "asks for none. Its path says which."
        )
    else:
        worst, image = row["against_baseline"]["worst"], tables.escaped(row["against_baseline"]["worst_name"])
        text = (
            f"**{name} computes {less(row['mac_percent'])}. {_outcome(row)}** {_compared(row, 'baseline')}, "
            f"{_compared(row, 'control')}; {tables.signed(worst)} dB against the baseline on "
            f"the worst image, {image}."
        )
        if "psnr_change" in row:
            text += f" On the validation images, by which the gate let it pass: {tables.signed(row['psnr_change'])} dB."
    text = _misled(by_solution) + text + _scale(by_solution)
    if by_solution[smallest]["mac"] < row["mac"]:
        text += f" Method {smallest} computes still less: {less(by_solution[smallest]['mac_percent'])}."
    return text


def tiles(rows: Sequence[dict[str, Any]], method: str, network: str, measured: records.Latency) -> list[Tile]:
    """Computing, memory traffic and time. measured: what `latency` has timed of the network, at its largest size."""
    by_solution = {row["solution"]: row for row in rows if row["network"] == network}
    row, before = by_solution[method], by_solution["baseline"]
    timed = {(one["runtime"], one["network"]): one for one in measured["networks"] if one["side"] == measured["side"]}
    runtimes = [runtime for runtime, name in timed if name == method]
    spent = [
        f"{runtime}: {tables.short(1e3 * timed[runtime, 'baseline']['seconds'])} → "
        f"{tables.short(1e3 * timed[runtime, method]['seconds'])} ms"
        + (f", {less(100 * timed[runtime, method]['ratio'])}" if number else "")
        for number, runtime in enumerate(runtimes)
    ]
    return [
        Tile(
            less(row["mac_percent"]), "computing (MACs)",
            f"{tables.short(before['mac'] / 1e9)} → {tables.short(row['mac'] / 1e9)} billion multiply-adds",
        ),
        Tile(
            less(row["bw_percent"]), "memory traffic (BW)",
            f"{tables.short(before['bw'] / 1e6)} → {tables.short(row['bw'] / 1e6)} million numbers read and written",
        ),
        Tile(less(100 * timed[runtimes[0], method]["ratio"]), "time, measured", "; ".join(spent)),
    ]  # fmt: skip


def less(percent: float) -> str:
    """What is kept, in percent, as what was saved: `54% less`."""
    saved = round(100 - percent)
    return "no less" if saved == 0 else f"{saved}% less" if saved > 0 else f"{-saved}% more"


def _outcome(row: dict[str, Any]) -> str:
    """Whether quality changed, as far as both comparisons show it."""
    judged = {_judged(row[f"against_{other}"]) for other in REFERENCES}
    if judged == {WORSE, BETTER}:
        return "Its quality rose against one and fell against the other:"
    if WORSE in judged:
        return "Its quality fell on average:"
    if judged == {BETTER}:
        return "Its quality rose on average:"
    return "No loss on average:" if ONE not in judged else "Its quality, on one image:"


def _scale(by_solution: dict[str, dict[str, Any]]) -> str:
    """What a dB is worth here: what the network gained before pruning."""
    given = next((row for row in by_solution.values() if "mac" not in row), None)
    if given is None or by_solution["baseline"]["psnr"] <= given["psnr"]:
        return ""
    gained = by_solution["baseline"]["psnr"] - given["psnr"]
    return f" For scale: before pruning, the network was {gained:.2f} dB better than its input ({given['solution']})."


def _misled(by_solution: dict[str, dict[str, Any]]) -> str:
    """What leads where the baseline is no better than its input: then no change of it means anything."""
    given = next((row for row in by_solution.values() if "mac" not in row), None)
    if given is None or by_solution["baseline"]["psnr"] > given["psnr"]:
        return ""
    return (
        f"**This baseline restores nothing: it has {by_solution['baseline']['psnr']:.2f} dB, its input "
        f"({given['solution']}) {given['psnr']:.2f} dB. What follows says nothing until it is trained longer, or with "
        "another rate.** "
    )


def _compared(row: dict[str, Any], other: str) -> str:
    """The mean change against the baseline or the control, and what its interval allows to say."""
    difference = row[f"against_{other}"]
    return f"{tables.signed(difference['mean'])} dB against the {other} ({_judged(difference)})"


WORSE, BETTER, ONE, NONE = "a loss", "a gain", "one image has no interval", "no difference measured"


def _judged(difference: dict[str, float]) -> str:
    """What the 95% interval of a change says."""
    if tables.single(difference):
        return ONE
    if difference["low"] > 0:
        return BETTER
    return WORSE if difference["high"] < 0 else NONE


def headlines(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By network and method, what experiments are compared by: MACs in percent of the baseline's, and changes in dB.

    psnr_change is on validation images against the gate's reference; the other two are on test images.
    """
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["solution"] in methods:
            numbers.setdefault(row["network"], {})[row["solution"]] = {
                "mac_percent": row["mac_percent"],
                "psnr_change": row["psnr_change"],
                "psnr_change_baseline": row["against_baseline"]["mean"],
                "psnr_change_control": row["against_control"]["mean"],
            }
    return numbers


def methods_in_words(methods: dict[str, Sequence[str]]) -> str:
    """What each method's rules do: by what they add to those of an earlier method where it has them all."""
    parts: list[str] = []
    for number, (name, rules) in enumerate(methods.items()):
        earlier = [other for other in list(methods)[:number] if set(methods[other]) <= set(rules)]
        base = max(earlier, key=lambda other: len(methods[other]), default=None)
        new = [RULES[rule] for rule in rules if base is None or rule not in methods[base]]
        parts.append(f"**{name}** {', '.join([f'as {base}'] * (base is not None) + new)}")
    return f"Methods: {'; '.join(parts)}."
