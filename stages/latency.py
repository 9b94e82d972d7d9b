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

        from pipeline import checks
        from pipeline.latency import network_times
        from pipeline.networks import checkpoint
        from pipeline.training.setup import example

        torch.set_num_threads(params.threads)
        method, path = params.report.method, RESULTS / "latency" / network / "latency.json"
        sides = network_settings.sides(settings.sides)
        fitted = settings.model_copy(update={"sides": sides})
        baseline = network_of(RESULTS / "train" / network / "network.pt", network_settings, pruned=False)
        checks.check_sides(network, network_settings, settings.sides, baseline)
        pruned, meta = checkpoint.load(RESULTS / "finetune" / network / method / "network.pt", network_settings.factory)
        image = example(network_settings, params.train[network], baseline)
        timings = network_times.timings(baseline, pruned, meta["kept"], method, image, fitted, params.threads)
        write_json(path, timings)
        run.artifact(path)
        largest = [row for row in timings["networks"] if (row["side"], row["network"]) == (timings["side"], method)]
        run.metrics({f"time_percent_{row['runtime']}": 100 * row["ratio"] for row in largest})


if __name__ == "__main__":
    main(latency, "network")
