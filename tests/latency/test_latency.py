"""Measured time and memory: what is compared with what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from chains import ROOT
from torch import nn

from pipeline import networks
from pipeline.latency import network_times
from pipeline.pruning import coupling, removal
from pipeline.report import times as time_tables
from pipeline.training.device import Machine


def test_calls_take_turns_after_a_round_that_isnt_counted() -> None:
    order: list[str] = []
    times = network_times.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_seconds_are_of_the_call_alone() -> None:
    times = network_times.interleaved({"sleeps": lambda: time.sleep(0.02), "doesn't": lambda: None}, 2)
    assert min(times["sleeps"]) > 0.019
    assert max(times["doesn't"]) < 0.019


def test_memory_is_what_the_call_holds_at_its_peak() -> None:
    def call(image: torch.Tensor) -> None:
        torch.ones(64 * 2**20)  # 256 MiB

    assert 200 * 2**20 < network_times.memory(call, torch.zeros(1)) < 400 * 2**20
    nothing = network_times.memory(lambda image: None, torch.zeros(1))
    assert nothing is not None
    assert nothing < 50 * 2**20


def test_memory_counts_what_a_training_has_left_to_the_process(machine: Machine) -> None:
    def call(image: torch.Tensor) -> None:
        del [torch.ones(2**22) for _ in range(16)][:]  # 16 of 16 MiB

    call(torch.zeros(1))  # its memory stays with this process
    assert 200 * 2**20 < network_times.memory(call, torch.zeros(1)) < 400 * 2**20


def test_memory_that_cant_be_measured_is_unknown_and_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: torch.Tensor) -> None:
        raise RuntimeError

    def killed(image: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out

    assert network_times.memory(fail, torch.zeros(1)) is None
    assert network_times.memory(killed, torch.zeros(1)) is None

    def refused() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refused)
    assert network_times.memory(lambda image: None, torch.zeros(1)) is None


def test_memory_is_measured_where_the_process_has_threads() -> None:
    script = """
import torch
from pipeline import networks
from pipeline.latency import network_times
torch.set_num_threads(2)
net = networks.build("edsr", {"blocks": 1, "channels": 16}).eval()
call, image = network_times.on_torch(net, "cpu"), torch.rand(1, 3, 64, 64)
call(image)  # now there are threads, which a fork doesn't have
print(network_times.memory(call, image) > 2**20)
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=True)
    assert done.stdout == "True\n"


def test_a_runtime_that_cant_take_a_network_is_left_out_with_the_reason() -> None:
    class Bessel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(self.layer(x))

    rows, left_out = network_times.measure({"baseline": Bessel()}, (16,), 3, 1, 1)
    wanted = {"torch", "cuda"} if torch.cuda.is_available() else {"torch"}
    assert {row["runtime"] for row in rows} == wanted
    assert "i0" in left_out["onnxruntime"]


def test_each_runtime_and_size_compares_the_networks_with_the_first() -> None:
    nets = {"baseline": networks.build("edsr", {"blocks": 1, "channels": 8}),
            "D": networks.build("edsr", {"blocks": 1, "channels": 4})}  # fmt: skip
    rows, left_out = network_times.measure(nets, (16, 32), 3, 2, 1)
    assert not left_out
    kinds = ["torch", "onnxruntime"] + ["cuda"] * torch.cuda.is_available()
    assert [(row["runtime"], row["side"], row["network"]) for row in rows] == [
        (kind, side, name) for kind in kinds for side in (16, 32) for name in nets
    ]
    for row in rows:
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["ratio"] == 1 or row["network"] == "D"


def test_the_report_sets_time_beside_macs() -> None:
    common = {"runtime": "torch", "side": 64, "low": 0.001, "high": 0.004}
    rows = [common | {"network": "baseline", "seconds": 0.004, "ratio": 1.0, "memory": 200},
            common | {"network": "D", "seconds": 0.003, "ratio": 0.75, "memory": 100},
            common | {"network": "D, to 8", "seconds": 0.002, "ratio": 0.5, "memory": 150}]  # fmt: skip
    rows[2]["memory"] = None
    measured = {"mac_percent": {"baseline": 100.0, "D": 50.0, "D, to 8": 62.5}, "networks": rows,
                "left_out": {"onnxruntime": "no such operation"}}  # fmt: skip
    assert time_tables.table(measured).splitlines()[2:] == [
        "| torch | 64×64 | D | 50.0 | 75 | 1.50 | 4.00 | 3.00 | 1.00 to 4.00 | 50 |",
        "| torch | 64×64 | D, to 8 | 62.5 | 50 | 0.80 | 4.00 | 2.00 | 1.00 to 4.00 |  |",
        "",
        "onnxruntime was left out: no such operation",
    ]


@pytest.mark.parametrize(
    ("rounded", "said"),
    [
        (76.0, "The widths of D are such multiples already."),
        (100, "bring back all that D removed: the network is too narrow"),
        (81.3, 'leave 81.3% of the MACs: "D, to 8" in the table.'),
    ],
)
def test_the_report_says_what_alignment_would_leave(rounded: float, said: str) -> None:
    measured = {"simd_width": 8, "mac_percent": {"baseline": 100.0, "D": 76.0, "D, to 8": rounded}}
    assert said in time_tables.alignment(measured, "D")
    untouched = measured | {"mac_percent": {"baseline": 100.0, "D": 100.0, "D, to 8": 100.0}}
    assert time_tables.alignment(untouched, "D") == "Nothing was pruned, so there is no width to round up."


@pytest.mark.parametrize(("multiple", "left"), [(1, (13, 20)), (8, (16, 24)), (5, (15, 20)), (64, (32, 32))])
def test_aligned_has_the_pruned_networks_widths_rounded_up(multiple: int, left: tuple[int, int]) -> None:
    net = networks.build("edsr", {"blocks": 1, "channels": 32})
    image = torch.zeros(1, 3, 16, 16)
    found = coupling.find_groups(net, image)
    trunk = next(group.name for group in found.groups if len(group.producers) > 1)
    removed = {"body.0.conv1": tuple(range(0, 19)), trunk: tuple(range(20, 32))}  # of 32 each
    kept = removal.kept_indices(net, found, removed)
    narrow = network_times.aligned(net, kept, image, multiple)
    assert (narrow.body[0].conv1.out_channels, narrow.head.out_channels) == left
    assert narrow.upsample[0].out_channels == 128  # not pruned, not rounded
    assert narrow(image).shape == (1, 3, 32, 32)
    assert net.head.out_channels == 32


@pytest.mark.parametrize("network", ["edsr", "sid"])
def test_pruned_networks_of_both_kinds_run_in_onnxruntime(network: str) -> None:
    net = networks.build(network, {"blocks": 1, "channels": 4} if network == "edsr" else {"base": 4})
    channels = networks.input_channels(network)
    network_times.on_onnxruntime(net, channels, 1)(torch.rand(1, channels, 32, 48))
