"""What pruning saved and lost, in one sentence for people and in a few numbers for `dvc exp show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report import tables

RULES = {  # in words, in the paper's order
    "adaptive": "a threshold that rises while iterations hold",
    "depth": "a least number of channels in every group",
    "efficiency": "more pressure where a weight costs most MACs",
    "balance": "more pressure on groups that lag behind",
}


def sentence(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], method: str, network: str, measured: dict[str, Any]
) -> str:
    """What a method has removed, and how its PSNR on the test images has changed.

    rows: the main table's; methods: all that were run; measured: what `latency` has timed of the network.
    """
    by_solution = {row["solution"]: row for row in rows if row["network"] == network}
    row, smallest = by_solution[method], min(methods, key=lambda name: by_solution[name]["mac"])
    if row["mac_percent"] == 100:
        text = f"**{network}, method {method}: nothing was removed**, as no iteration held: see its path."
    else:
        text = (
            f"**{network}, method {method}: {100 - row['mac_percent']:.0f}% of the MACs removed**, "
            f"BW −{100 - row['bw_percent']:.0f}%; test PSNR {_compared(row, 'baseline')}, "
            f"{_compared(row, 'control')}. {_worst(row)} {_timed(measured, method)}"
        )
    text = _misled(by_solution) + text
    if by_solution[smallest]["mac"] < row["mac"]:
        text += f" Method {smallest} removed more: {100 - by_solution[smallest]['mac_percent']:.1f}%."
    return text


def _misled(by_solution: dict[str, dict[str, Any]]) -> str:
    """What leads where the baseline is no better than its input: then no change of it means anything."""
    given = next((row for row in by_solution.values() if "mac" not in row), None)
    if given is None or by_solution["baseline"]["psnr"] > given["psnr"]:
        return ""
    return (
        f"**This baseline restores nothing: its test PSNR of {by_solution['baseline']['psnr']:.2f} dB is no better "
        f"than that of its input ({given['solution']}), {given['psnr']:.2f} dB. What follows says nothing until it is "
        "trained longer, or with another rate.** "
    )


def _worst(row: dict[str, Any]) -> str:
    """The test image that changes worst."""
    difference = row["against_baseline"]
    name, change = tables.escaped(difference["worst_name"]), f"{difference['worst']:+.3f}".replace("-", "−")
    return f"The worst single image against the baseline, {name}: {change} dB."


def _compared(row: dict[str, Any], other: str) -> str:
    """The change against the baseline or the control, and what its interval allows to say."""
    difference = row[f"against_{other}"]
    change = tables.change(difference).replace("-", "−").replace(" [", " dB [")
    return f"{change} against the {other} ({_judged(difference)})"


def _judged(difference: dict[str, float]) -> str:
    """What the 95% interval of a change says."""
    if difference["low"] == difference["high"]:
        return "one image has no interval"
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "0 lies within the interval: no difference measured"


def _timed(measured: dict[str, Any], method: str) -> str:
    """The time that a method's network takes of the baseline's at the largest size, on each runtime."""
    side = measured["side"]
    percents = [
        f"{row['runtime']} {100 * row['ratio']:.0f}%" for row in measured["networks"]
        if (row["network"], row["side"]) == (method, side)
    ]  # fmt: skip
    return f"Time at {side}×{side}, of the baseline's: {', '.join(percents)}."


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
