"""Measure how long the original and the last method's network take here, and how much memory: no bits to repeat."""

from __future__ import annotations

from pipeline import config
from pipeline.files import write_json
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS


def latency(params: config.Params, network: str) -> None:
    """Time one network's baseline and report.method's network side by side, at each of latency.sides."""
    wanted, asked = params.networks[network], params.latency
    with runs.stage("latency", network, params={"sides": asked.sides, "repeats": asked.repeats}) as run:
        import torch

        from pipeline import checks, cost
        from pipeline.latency import layer_times
        from pipeline.latency import network_times as measured
        from pipeline.networks import checkpoint
        from pipeline.training.setup import example

        torch.set_num_threads(params.threads)
        method, side, lanes = params.report.method, max(asked.sides), measured.lanes()
        original, _ = checkpoint.load(RESULTS / "train" / network / "network.pt", wanted.factory)
        checks.check_sides(wanted, asked.sides, original)
        pruned, meta = checkpoint.load(RESULTS / "finetune" / network / method / "network.pt", wanted.factory)
        nets = {"baseline": original, method: pruned}
        image = example(wanted, params.train[network], original)
        nets[f"{method}, to {lanes}"] = measured.aligned(original, meta["kept"], image, lanes)
        channels = image.shape[1]
        macs = {name: cost.measure(net, (side, side), channels).mac for name, net in nets.items()}
        if macs[f"{method}, to {lanes}"] in (macs[method], macs["baseline"]):  # one of them again: nothing to measure
            del nets[f"{method}, to {lanes}"]
        rows, left_out = measured.measure(nets, asked.sides, channels, asked.repeats, params.threads)
        found = {
            "processor": measured.processor(),
            "lanes": lanes,
            "threads": params.threads,
            "mac_percent": {name: 100 * mac / macs["baseline"] for name, mac in macs.items()},
            "networks": rows,
            "left_out": left_out,
            "side": side,  # of `layers`
            "layers": layer_times.measure({"baseline": original, method: pruned}, side, channels, asked.repeats),
        }
        write_json(RESULTS / "latency" / network / "latency.json", found)
        run.artifact(RESULTS / "latency" / network / "latency.json")
        largest = [row for row in rows if row["side"] == side and row["network"] == method]
        run.metrics({f"time_percent_{row['runtime']}": 100 * row["ratio"] for row in largest})


if __name__ == "__main__":
    main(latency, "network")
