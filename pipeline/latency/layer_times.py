"""Where the time of a network goes, layer by layer, and why a layer takes more of it than its MACs let expect."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pipeline import cost

OUTSIDE = "everything else"
SLOW = 1.15  # a layer that takes more than so many times its share of the MACs is named


def measure(networks: dict[str, nn.Module], side: int, channels: int, repeats: int) -> list[dict[str, Any]]:
    """Time of each convolution in torch on the CPU, beside what it costs, on one image of side × side input pixels.

    networks: by name, on the CPU; the first is the baseline, which ratios refer to; they run in turns. Rows by network,
    in the order of the baseline's layers: network, layer, seconds (median over rounds), ratio (median over rounds of
    its time to the baseline's), mac (MAC), bw (elements: weights, inputs and outputs), inputs and outputs (channels).
    The last row of each network, layer OUTSIDE, is what these leave of the whole: pooling, activations, sums, copies,
    and convolutions that aren't modules of their own.
    """
    image = torch.rand((1, channels, side, side), generator=torch.Generator().manual_seed(0))
    costs = {name: {layer.name: layer for layer in cost.measure(net, (side, side), channels).layers}
             for name, net in networks.items()}  # fmt: skip
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    with ExitStack() as stack, torch.no_grad():
        clocks = {name: stack.enter_context(_clocked(net)) for name, net in networks.items()}
        for number in range(repeats + 1):
            for name, net in networks.items():
                clocks[name].clear()
                fresh = image.clone()  # a forward may change its input
                began = time.perf_counter()
                net(fresh)
                whole = time.perf_counter() - began
                if number:  # the first round isn't counted
                    rounds[name].append(clocks[name] | {"whole": whole})
    first = next(iter(networks))
    known = [layer for layer in costs[first] if all(layer in costs[n] and layer in rounds[n][0] for n in networks)]
    for seconds in (one for own_rounds in rounds.values() for one in own_rounds):
        seconds[OUTSIDE] = seconds["whole"] - sum(seconds[layer] for layer in known)
    rows = []
    for name, own_rounds in rounds.items():
        for layer in (*known, OUTSIDE):
            own, base = [one[layer] for one in own_rounds], [one[layer] for one in rounds[first]]
            ratios = [mine / other for mine, other in zip(own, base, strict=True)]
            row = {"network": name, "layer": layer, "seconds": statistics.median(own),
                   "ratio": statistics.median(ratios)}  # fmt: skip
            if layer != OUTSIDE:
                spent = costs[name][layer]
                row |= {"mac": spent.mac, "bw": spent.bw, "inputs": spent.in_channels, "outputs": spent.out_channels}
            rows.append(row)
    return rows


@contextmanager
def _clocked(network: nn.Module) -> Iterator[dict[str, float]]:
    """Seconds that each convolution has taken since the dictionary was last emptied.

    Each second counts once: for the inner of two nested layers, and for the first of those that share a kernel, under
    whose name `cost` counts them too.
    """
    times: dict[str, float] = {}
    running: list[tuple[str, float]] = []  # the layers that are being run, and when their clock last started

    def stop(now: float) -> None:
        if running:
            name, began = running[-1]
            times[name] = times.get(name, 0.0) + now - began

    def enter(name: str) -> None:
        stop(now := time.perf_counter())
        running.append((name, now))

    def leave() -> None:
        stop(now := time.perf_counter())
        running.pop()
        if running:
            running[-1] = (running[-1][0], now)

    first: dict[int, str] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kernel = module._parameters.get("weight")  # a computed one is its module's own
            known = first.setdefault(id(module if kernel is None else kernel), name)
            hooks.append(module.register_forward_pre_hook(lambda *_, n=known: enter(n)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def falling_short(rows: Sequence[Mapping[str, Any]], network: str, simd_width: int) -> list[dict[str, Any]]:
    """The layers of a pruned network that take more than SLOW times their share of the MACs, slowest first, and why.

    rows: from `measure`. Of each layer: layer, mac, bw and time (shares of the baseline's), seconds over (what it takes
    beyond its share), why (words). Layers that pruning left whole, and those below 1% of the baseline's time, aren't
    named.
    """
    baseline = {row["layer"]: row for row in rows if row["network"] == rows[0]["network"]}
    whole = sum(row["seconds"] for row in baseline.values())
    slow = []
    for row in rows:
        before = baseline[row["layer"]]
        if row["network"] != network or "mac" not in row or before["seconds"] < 0.01 * whole:
            continue
        mac, bw = row["mac"] / before["mac"], row["bw"] / before["bw"]
        if mac < 1 and row["ratio"] > SLOW * mac:
            over = (row["ratio"] - mac) * before["seconds"]  # not by the seconds: their median may be of another round
            slow.append({"layer": row["layer"], "mac": mac, "bw": bw, "time": row["ratio"], "over": over,
                          "why": _why(row, before, bw, simd_width)})  # fmt: skip
    return sorted(slow, key=lambda one: -one["over"])


def _why(row: Mapping[str, Any], before: Mapping[str, Any], bw: float, simd_width: int) -> str:
    """What a layer's shape says of its time."""
    odd = [
        f"{row[key]} {word} channels" for key, word in (("inputs", "input"), ("outputs", "output"))
        if row[key] % simd_width and row[key] < before[key]
    ]  # fmt: skip
    reasons = [f"{' and '.join(odd)}, no multiple of the {simd_width} numbers that are computed at once"] if odd else []
    if row["ratio"] <= SLOW * bw:
        reasons.append(f"what it reads and writes fell to {100 * bw:.0f}% only")
    return f"likely cause: {'; '.join(reasons)}" if reasons else "its shape doesn't tell why"
