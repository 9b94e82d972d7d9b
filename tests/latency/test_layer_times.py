"""Where time goes by layer: what is clocked, and what is said of a layer that falls short."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.latency import layer_times


class Slow(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().forward(x)


class SlowOutside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x


def seconds(network: nn.Module) -> dict[str, float]:
    return {row["layer"]: row["seconds"] for row in layer_times.measure({"only": network}, 8, 3, 2)}


def test_a_layers_time_is_its_own_and_the_rest_is_outside() -> None:
    found = seconds(nn.Sequential(nn.Conv2d(3, 3, 1), SlowOutside(), Slow(3, 3, 1)))
    assert list(found) == ["0", "2", layer_times.OUTSIDE]
    assert found["2"] > 0.019 > found["0"]
    assert found[layer_times.OUTSIDE] > 0.019


def test_a_layer_that_is_called_twice_has_taken_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Slow(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    assert seconds(Twice())["layer"] > 0.038


def test_a_convolution_that_is_no_module_of_its_own_is_outside() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(3, 3, 1, 1))
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.nn.functional.conv2d(x, self.kernel))

    assert list(seconds(Functional())) == ["layer", layer_times.OUTSIDE]


def test_a_second_counts_once_where_one_convolution_holds_another() -> None:
    class Outer(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 1)
            self.inner = Slow(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.inner(x))

    found = seconds(nn.Sequential(Outer()))
    assert found["0.inner"] > 0.019 > found["0"]
    assert found[layer_times.OUTSIDE] >= 0


def test_layers_that_share_a_kernel_are_one_as_their_cost_is() -> None:
    tied = nn.Sequential(Slow(3, 3, 1), nn.ReLU(), Slow(3, 3, 1))
    tied[2].weight = tied[0].weight
    found = seconds(tied)
    assert list(found) == ["0", layer_times.OUTSIDE]
    assert found["0"] > 0.038


def test_layers_are_compared_with_the_firsts_and_costs_stand_beside() -> None:
    nets = {"baseline": networks.build("sid", {"base": 8}), "D": networks.build("sid", {"base": 4})}
    rows = layer_times.measure(nets, 32, 4, 2)
    layers = [row["layer"] for row in rows if row["network"] == "baseline"]
    assert [row["layer"] for row in rows if row["network"] == "D"] == layers
    assert len(layers) == 23 + 1
    by_key = {(row["network"], row["layer"]): row for row in rows}
    assert all(row["ratio"] == 1 for row in rows if row["network"] == "baseline")
    conv = by_key["D", "encoder.0.conv2"]
    assert (conv["inputs"], conv["outputs"]) == (4, 4)
    assert conv["mac"] * 4 == by_key["baseline", "encoder.0.conv2"]["mac"] == 8 * 8 * 9 * 32 * 32
    assert conv["bw"] == 4 * 4 * 9 + 2 * 4 * 32 * 32
    assert not nets["D"].encoder[0].conv2._forward_hooks  # nothing is left on the networks


def row(network: str, layer: str, seconds: float, ratio: float, **cost: int) -> dict[str, Any]:
    return {"network": network, "layer": layer, "seconds": seconds, "ratio": ratio, **cost}


def pair(layer: str, ratio: float, mac: int, bw: int, inputs: int, outputs: int) -> list[dict[str, Any]]:
    """A layer of 16 by 16 channels, 100 MACs, 100 elements and 1 s, and what pruning made of it."""
    return [
        row("baseline", layer, 1.0, 1.0, mac=100, bw=100, inputs=16, outputs=16),
        row("D", layer, ratio, ratio, mac=mac, bw=bw, inputs=inputs, outputs=outputs),
    ]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (pair("a", 0.57, 50, 40, 8, 8), None),  # 1.14 times its share is near enough
        (pair("a", 2.0, 100, 100, 16, 16), None),  # whole: it promises nothing
        (
            pair("a", 0.80, 50, 40, 8, 12),
            "likely cause: 12 output channels, no multiple of the 8 numbers that are computed at once",
        ),
        (
            pair("a", 0.80, 50, 40, 12, 9),
            "likely cause: 12 input channels and 9 output channels, no multiple of the 8 numbers that are computed at "
            "once",
        ),
        (pair("a", 0.80, 50, 70, 8, 8), "likely cause: what it reads and writes fell to 70% only"),
        (
            pair("a", 0.80, 50, 70, 12, 8),
            "likely cause: 12 input channels, no multiple of the 8 numbers that are computed at once; "
            "what it reads and writes fell to 70% only",
        ),
        (pair("a", 0.81, 50, 70, 8, 8), "its shape doesn't tell why"),  # 1.157 times what it moves
    ],
)
def test_a_layer_above_its_share_of_the_macs_is_named_with_what_its_shape_says(
    found: list[dict[str, Any]], why: str | None
) -> None:
    told = layer_times.falling_short(found, "D", 8)
    assert [one["why"] for one in told] == ([why] if why else [])


def test_a_width_that_pruning_left_is_no_reason() -> None:
    first = [
        row("baseline", "head", 1.0, 1.0, mac=100, bw=100, inputs=3, outputs=16),
        row("D", "head", 0.9, 0.9, mac=50, bw=40, inputs=3, outputs=8),
    ]
    assert layer_times.falling_short(first, "D", 8)[0]["why"] == "its shape doesn't tell why"


def test_a_slow_layer_costs_time_also_where_the_medians_are_of_other_rounds() -> None:
    """By its ratio, 0.8 of the time at half of the MACs; its seconds alone would say that it is faster than that."""
    rows = pair("a", 0.8, 50, 40, 8, 8)
    rows[1]["seconds"] = 0.4
    assert layer_times.falling_short(rows, "D", 8)[0]["over"] == pytest.approx(0.3)


def test_layers_that_fall_short_come_by_the_seconds_that_they_cost_and_small_ones_are_left_out() -> None:
    long, short = pair("long", 0.7, 50, 50, 8, 8), pair("short", 0.9, 50, 50, 8, 8)
    for one in long:
        one["seconds"] *= 3
    tiny = pair("tiny", 2.0, 50, 50, 8, 8)
    for one in tiny:
        one["seconds"] *= 0.001
    outside = [row("baseline", layer_times.OUTSIDE, 1.0, 1.0), row("D", layer_times.OUTSIDE, 9.0, 9.0)]
    rows = [*(r for p in (short, long, tiny) for r in p), *outside]
    told = layer_times.falling_short([r for r in rows if r["network"] == "baseline"] +
                                     [r for r in rows if r["network"] == "D"], "D", 8)  # fmt: skip
    assert [one["layer"] for one in told] == ["long", "short"]
    assert told[0]["over"] == pytest.approx(3 * 0.7 - 3 * 0.5)
