"""Whether fewer MACs are less time: EDSR-baseline and SID at full width against pruned ones, aligned or not.

    python benchmarks/latency.py

EDSR "A" has what Table 1 of the ICIP 2019 paper prints for methods A to C: 286 of the 1,024 channels inside the blocks
gone, spread evenly here. SID's widths aren't printed: every group keeps 65%, which leaves the 42% of the MACs that the
paper has under D. "to 8" and "to 16" keep a multiple of that in every layer, rounded up; EDSR's are the same. Weights
are fresh: they don't change the time. Networks run in turns; ratios are medians over rounds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from pipeline import networks
from pipeline.cost import measure
from pipeline.latency import layer_times, network_times
from pipeline.pruning import coupling, removal, rules

SIDES, REPEATS = (256, 384), 5


def pruned(network: nn.Module, kept: dict[str, int]) -> nn.Module:
    """The network with only the first channels of each group left, as many as said."""
    groups = coupling.find_groups(network, example(network))
    removed = {g.name: tuple(range(kept[g.name], g.channels)) for g in groups.groups if kept[g.name] < g.channels}
    return removal.remove(network, groups, removed).eval()


def example(network: nn.Module) -> torch.Tensor:
    return torch.zeros(1, channels(network), 64, 64)


def channels(network: nn.Module) -> int:
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels


def variants() -> dict[str, dict[str, nn.Module]]:
    edsr = networks.build("edsr", networks.PAPER_ARGS["edsr"]).eval()
    sid = networks.build("sid", networks.PAPER_ARGS["sid"]).eval()
    inside = [f"body.{block}.conv1" for block in range(16)]
    whole = {g.name: g.channels for g in coupling.find_groups(edsr, example(edsr)).groups}
    gone = {name: 18 if number < 14 else 17 for number, name in enumerate(inside)}  # 14 · 18 + 2 · 17 = 286
    narrow = {name: count - gone.get(name, 0) for name, count in whole.items()}
    part = {g.name: round(0.65 * g.channels) for g in coupling.find_groups(sid, example(sid)).groups}
    return {
        "edsr": {"baseline": edsr, "A": pruned(edsr, narrow), "A, to 8": pruned(edsr, aligned(narrow, 8))},
        "sid": {"baseline": sid, "65%": pruned(sid, part), "65%, to 8": pruned(sid, aligned(part, 8)),
                "65%, to 16": pruned(sid, aligned(part, 16))},
    }  # fmt: skip


def aligned(kept: dict[str, int], multiple: int) -> dict[str, int]:
    return {name: rules.round_up(count, multiple) for name, count in kept.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{network_times.processor()}, {network_times.simd_width()} numbers at once, one thread\n")
    print("| network | variant | MAC (%) | runtime | input | time (%) | time / MAC | range (ms) |")
    print("| --- | --- | ---: | --- | --- | ---: | ---: | --- |")
    for network, nets in variants().items():
        macs = {name: measure(net, (256, 256), channels(net)).mac for name, net in nets.items()}
        share = {name: macs[name] / macs["baseline"] for name in nets}
        rows, _ = network_times.measure(nets, SIDES, channels(nets["baseline"]), REPEATS, 1)
        for row in rows:
            name = row["network"]
            print(
                f"| {network} | {name} | {100 * share[name]:.1f} | {row['runtime']} | {row['side']}×{row['side']} "
                f"| {100 * row['ratio']:.1f} | {row['ratio'] / share[name]:.2f} "
                f"| {1e3 * row['low']:.0f} to {1e3 * row['high']:.0f} |",
                flush=True,
            )
        layers(network, nets)


def layers(network: str, nets: dict[str, nn.Module]) -> None:
    """Name the layers that take much more time than their MACs let expect, and say why."""
    rows = layer_times.measure(nets, SIDES[0], channels(nets["baseline"]), REPEATS)
    for name in list(nets)[1:]:
        outside = next(r for r in rows if r["network"] == name and r["layer"] == layer_times.OUTSIDE)
        print(f"\n{network}, {name}: {layer_times.OUTSIDE} {100 * outside['ratio']:.0f}% of the time; above "
              f"{layer_times.SLOW} times their share of the MACs in torch, the costliest first:")  # fmt: skip
        for one in layer_times.falling_short(rows, name, network_times.simd_width()):
            print(f"- {one['layer']}: MAC {100 * one['mac']:.0f}%, time {100 * one['time']:.0f}%, "
                  f"{1e3 * one['over']:.1f} ms beyond; {one['why']}")  # fmt: skip


if __name__ == "__main__":
    main()
