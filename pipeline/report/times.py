"""Measured time and memory beside the counted costs, as Markdown, from what `latency` measured of one network."""

from __future__ import annotations

from pipeline import records
from pipeline.latency import layer_times
from pipeline.report.tables import short

SHOWN = 6  # layers that are named one by one


def table(measured: records.Latency) -> str:
    """Measured time and memory of pruned networks, in percent of the baseline's, beside their percent of the MACs."""
    lines = [
        "| runtime | input | network | MAC (%) | time (%) | time / MAC | baseline (ms) | this one (ms) | range (ms) "
        "| memory (%) |",
        "| --- | --- | --- |" + " ---: |" * 7,
    ]
    baseline = measured["networks"][0]
    for row in measured["networks"]:
        if row["network"] == "baseline":
            baseline = row
            continue
        mac, time = measured["mac_percent"][row["network"]], 100 * row["ratio"]
        memory = ""
        if row["memory"] is not None and baseline["memory"]:
            memory = f"{100 * row['memory'] / baseline['memory']:.0f}"
        lines.append(
            f"| {row['runtime']} | {row['side']}×{row['side']} | {row['network']} | {mac:.1f} "
            f"| {time:.0f} | {time / mac:.2f} | {short(1e3 * baseline['seconds'])} | {short(1e3 * row['seconds'])} "
            f"| {short(1e3 * row['low'])} to {short(1e3 * row['high'])} | {memory} |"
        )
    lines += [f"\n{runtime} was left out: {reason}" for runtime, reason in measured["left_out"].items()]
    return "\n".join(lines) + "\n"


def alignment(measured: records.Latency, method: str) -> str:
    """What `prune.align` would have left of a pruned network on this processor, whose SIMD width it rounds up to."""
    width, percents = measured["simd_width"], measured["mac_percent"]
    rounded = percents[f"{method}, to {width}"]
    if percents[method] == 100:
        return "Nothing was pruned, so there is no width to round up."
    text = (
        f"`prune.align: {width}` rounds every pruned width up to a multiple of the {width} numbers that this processor "
        "computes at once. "
    )
    if rounded == percents[method]:
        return f"{text}The widths of {method} are such multiples already."
    if rounded == 100:
        return f"{text}That would bring back all that {method} removed: the network is too narrow to run faster here."
    return f'{text}It would leave {rounded:.1f}% of the MACs: "{method}, to {width}" in the table.'


def slow_layers(measured: records.Latency, method: str) -> str:
    """Which layers take more time than their share of the MACs, and why; and the time spent outside convolutions."""
    rows, side = measured["layers"], measured["side"]
    slow = layer_times.falling_short(rows, method, measured["simd_width"])
    outside = {row["network"]: row["seconds"] for row in rows if row["layer"] == layer_times.OUTSIDE}
    whole = {name: sum(row["seconds"] for row in rows if row["network"] == name) for name in outside}
    before, after = (f"{1e3 * outside[name]:.1f} of {1e3 * whole[name]:.1f} ms" for name in ("baseline", method))
    lines = [
        f"Layer by layer, in rounds of their own in torch at {side}×{side}: everything else (pooling, activations, "
        f"sums, copies, convolutions that aren't modules) takes {before} before pruning and {after} after.",
        "",
    ]
    if not slow:
        return "\n".join([*lines, f"No layer takes more than {layer_times.SLOW} times its share of the MACs.", ""])
    lines += [f"Layers that take more than {layer_times.SLOW} times their share of the MACs, the costliest first:", ""]
    for layer in slow[:SHOWN]:
        lines.append(
            f"- `{layer['layer']}` keeps {100 * layer['mac']:.0f}% of its MACs and {100 * layer['time']:.0f}% of its "
            f"time ({short(1e3 * layer['over'])} ms too much); {layer['why']}"
        )
    if len(slow) > SHOWN:
        lines.append(f"- and {len(slow) - SHOWN} more that cost less")
    return "\n".join([*lines, ""])
