"""Measure how long the original and the last method's network take here, and how much memory: no bits to repeat."""

from __future__ import annotations

from pipeline import config, tracking
from pipeline.files import write_json
from stages.command import main
from stages.common import RESULTS


def latency(params: config.Params, network: str) -> None:
    """Time one network's baseline and the network of the last of run.methods side by side, at each of latency.sides."""
    wanted, asked = params.networks[network], params.latency
    with tracking.stage("latency", network, params={"sides": asked.sides, "repeats": asked.repeats}) as run:
        import torch

        from pipeline import checkpoint, cost, job, layer_times
        from pipeline import latency as measured

        torch.set_num_threads(params.threads)
        method, side, lanes = params.run.methods[-1], max(asked.sides), measured.lanes()
        original, _ = checkpoint.load(RESULTS / "train" / network / "network.pt", wanted.factory)
        job.check_sides(wanted, asked.sides, original)
        pruned, meta = checkpoint.load(RESULTS / "finetune" / network / method / "network.pt", wanted.factory)
        nets = {"baseline": original, method: pruned}
        image = job.example(wanted, params.train[network], original)
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
