"""Measure how long the baseline and one pruned network take here, and how much memory: no bits to repeat."""

from __future__ import annotations

from pipeline import config
from pipeline.files import write_json
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, network_of


def latency(params: config.Params, network: str) -> None:
    """Time one network's baseline and the network of report.method side by side, at each of latency.sides."""
    network_settings, settings = params.networks[network], params.latency
    with runs.stage("latency", network, params={"sides": settings.sides, "repeats": settings.repeats}) as run:
        import torch

        from pipeline import checks, cost
        from pipeline.latency import layer_times, network_times
        from pipeline.networks import checkpoint
        from pipeline.training.setup import example

        torch.set_num_threads(params.threads)
        method, side, width = params.report.method, max(settings.sides), network_times.simd_width()
        baseline = network_of(RESULTS / "train" / network / "network.pt", network_settings, pruned=False)
        checks.check_sides(network_settings, settings.sides, baseline)
        pruned, meta = checkpoint.load(RESULTS / "finetune" / network / method / "network.pt", network_settings.factory)
        nets = {"baseline": baseline, method: pruned}
        image = example(network_settings, params.train[network], baseline)
        nets[f"{method}, to {width}"] = network_times.aligned(baseline, meta["kept"], image, width)
        channels = image.shape[1]
        macs = {name: cost.measure(net, (side, side), channels).mac for name, net in nets.items()}
        if macs[f"{method}, to {width}"] in (macs[method], macs["baseline"]):  # one of them again: nothing to measure
            del nets[f"{method}, to {width}"]
        rows, left_out = network_times.measure(nets, settings.sides, channels, settings.repeats, params.threads)
        timings = {
            "processor": network_times.processor(),
            "simd_width": width,
            "threads": params.threads,
            "mac_percent": {name: 100 * mac / macs["baseline"] for name, mac in macs.items()},
            "networks": rows,
            "left_out": left_out,
            "side": side,  # of `layers`
            "layers": layer_times.measure({"baseline": baseline, method: pruned}, side, channels, settings.repeats),
        }
        write_json(RESULTS / "latency" / network / "latency.json", timings)
        run.artifact(RESULTS / "latency" / network / "latency.json")
        largest = [row for row in rows if row["side"] == side and row["network"] == method]
        run.metrics({f"time_percent_{row['runtime']}": 100 * row["ratio"] for row in largest})


if __name__ == "__main__":
    main(latency, "network")
