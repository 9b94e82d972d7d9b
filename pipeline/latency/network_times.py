"""What networks take on this machine: seconds and memory, measured side by side.

MACs removed are not time saved, so both are measured. Runs are interleaved: one of each network, then again, so that
what slows the machine slows them all; figures are medians and ranges, and ratios are taken within a round.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config, cost, export
from pipeline.errors import UserError
from pipeline.latency import layer_times
from pipeline.networks import duplicate
from pipeline.networks.checkpoint import Kept
from pipeline.pruning import coupling, importance, removal, rules
from pipeline.training.device import release_memory

Call = Callable[[Tensor], Any]
CHILD_SECONDS = 300


def measure(
    networks: dict[str, nn.Module], sides: Sequence[int], channels: int, repeats: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Latency and memory of networks on one image of side × side input pixels, for each side and each runtime there is.

    networks: by name; the first is the baseline, which ratios refer to. Runtimes: torch and onnxruntime on `threads`
    CPU threads, and cuda where there is one. Each row: runtime, side, network, seconds (median), low and high (the
    range), ratio (median over rounds of its time to the baseline's), memory (bytes beyond what the process held, at
    their peak; on the CPU measured in a child process; None where that failed). Second: runtimes that were left out,
    each with the reason.
    """
    rows: list[dict[str, Any]] = []
    calls_of, left_out = runtimes(networks, channels, threads)
    for runtime, calls in calls_of.items():
        seeded = torch.Generator().manual_seed(0)
        images = {side: torch.rand((1, channels, side, side), generator=seeded) for side in sides}
        # Before anything is timed: allocators keep what a run has asked for, and the next would seem to need nothing.
        ask = memory_cuda if runtime == "cuda" else memory
        peaks = {(side, name): ask(call, image) for side, image in images.items() for name, call in calls.items()}
        for side, image in images.items():
            times = interleaved({name: partial(call, image) for name, call in calls.items()}, repeats)
            first = next(iter(times.values()))
            for name, own in times.items():
                ratios = [mine / base for mine, base in zip(own, first, strict=True)]
                rows.append({
                    "runtime": runtime, "side": side, "network": name, "seconds": statistics.median(own),
                    "low": min(own), "high": max(own), "ratio": statistics.median(ratios),
                    "memory": peaks[side, name],
                })  # fmt: skip
    return rows, left_out


def timings(
    baseline: nn.Module,
    pruned: nn.Module,
    kept: Kept,
    method: str,
    example: Tensor,
    settings: config.Latency,
    threads: int,
) -> dict[str, Any]:
    """What latency.json holds: the times of a baseline, of its pruned network, and of that with aligned widths.

    kept: of the pruned network's checkpoint. example: [1, channels, side, side], which the network is traced with.
    """
    width, side, channels = simd_width(), max(settings.sides), example.shape[1]
    rounded = f"{method}, to {width}"
    nets = {"baseline": baseline, method: pruned, rounded: aligned(baseline, kept, example, width)}
    macs = {name: cost.measure(net, (side, side), channels).mac for name, net in nets.items()}
    if macs[rounded] in (macs[method], macs["baseline"]):  # one of them again: nothing to measure
        del nets[rounded]
    rows, left_out = measure(nets, settings.sides, channels, settings.repeats, threads)
    return {
        "processor": processor(),
        "simd_width": width,
        "threads": threads,
        "mac_percent": {name: 100 * mac / macs["baseline"] for name, mac in macs.items()},
        "networks": rows,
        "left_out": left_out,
        "side": side,  # of `layers`
        "layers": layer_times.measure({"baseline": baseline, method: pruned}, side, channels, settings.repeats),
    }


def aligned(baseline: nn.Module, kept: Kept, example: Tensor, multiple: int) -> nn.Module:
    """What `prune.align` would have left of a network: the widths of a pruned one, rounded up to a multiple.

    kept: the pruned network's, from its checkpoint. Channels come back that went, as many as it takes; the weights are
    the baseline's, which is all that a time depends on. Raises UserError if the baseline's forward can't be traced.
    """
    coupled = coupling.find_groups(baseline, example, norms=True)
    removed = {}
    for group in coupled.groups:
        slot = group.slots[0]
        places = kept.get(slot.tensor, {}).get(slot.dim)
        if places is None:
            continue
        gone = [channel for channel, index in enumerate(slot.index) if not set(index) <= set(places)]
        step = rules.channel_step(importance.units(group), multiple)
        keep = min(group.channels, rules.round_up(group.channels - len(gone), step))
        removed[group.name] = gone[: group.channels - keep]
    return removal.remove(baseline, coupled, {name: gone for name, gone in removed.items() if gone}).eval()


def runtimes(
    networks: dict[str, nn.Module], channels: int, threads: int
) -> tuple[dict[str, dict[str, Call]], dict[str, str]]:
    """For each runtime of this machine, a function of an image for each network; and why one was left out."""
    calls_of = {"torch": {name: on_torch(network.cpu().float().eval(), "cpu") for name, network in networks.items()}}
    left_out = {}
    try:
        calls_of["onnxruntime"] = {name: on_onnxruntime(net, channels, threads) for name, net in networks.items()}
    except UserError as error:  # not every network can be written as ONNX
        left_out["onnxruntime"] = str(error)
    if torch.cuda.is_available():
        # copies: a module moves as it stands, and the CPU's calls go on with theirs
        calls_of["cuda"] = {name: on_torch(duplicate(network), "cuda") for name, network in networks.items()}
    return calls_of, left_out


def on_torch(network: nn.Module, device: str) -> Call:
    network = network.to(device)

    def call(image: Tensor) -> None:
        with torch.no_grad():
            network(image.to(device, copy=True))  # a forward may change its input
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def on_onnxruntime(network: nn.Module, channels: int, threads: int) -> Call:
    import onnxruntime

    example, _, _ = export.input_shapes(network, (channels,))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    content = export.to_onnx(network, example, Path("the network"))
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input": image.numpy()})


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call in each of `repeats` rounds, after one round that isn't counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def memory(call: Call, image: Tensor) -> int | None:
    """Bytes that a call holds at its peak beyond what the process held before, measured in a fork of it.

    None where there can be no child, or it fails, is killed for its memory, or takes longer than CHILD_SECONDS.
    """
    release_memory()  # else the call would reuse what trainings left, and seem to need nothing
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no memory, or too many processes
        os.close(reader)
        os.close(writer)
        return None
    if not child:
        code = 1
        try:
            signal.alarm(CHILD_SECONDS)  # ends the child, also when nobody waits for it any more
            torch.set_num_threads(1)  # the parent's threads aren't in the fork: a second one would wait for them
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            call(image)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(writer, str(1024 * (peak - before)).encode())  # Linux counts in KiB
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    return int(told) if status == 0 and told else None


def memory_cuda(call: Call, image: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(image)
    return torch.cuda.max_memory_allocated() - before


def simd_width() -> int:
    """How many float32 numbers torch computes at once on this processor: the width of its SIMD registers."""
    return {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 4)


def processor() -> str:
    """The processor's name, as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unnamed processor"
