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

        from pipeline import checkpoint, layer_times
        from pipeline import latency as measured

        torch.set_num_threads(params.threads)
        paths = {"baseline": RESULTS / "train" / network}
        method = params.run.methods[-1]
        paths[method] = RESULTS / "finetune" / network / method
        nets = {name: checkpoint.load(path / "network.pt", wanted.factory)[0] for name, path in paths.items()}
        channels = 4 if wanted.task == "low_light" else 3
        rows = measured.measure(nets, asked.sides, channels, asked.repeats, params.threads)
        found = {
            "processor": measured.processor(),
            "lanes": measured.lanes(),
            "threads": params.threads,
            "side": max(asked.sides),  # of `layers`
            "networks": rows,
            "layers": layer_times.measure(nets, max(asked.sides), channels, asked.repeats),
        }
        write_json(RESULTS / "latency" / network / "latency.json", found)
        run.artifact(RESULTS / "latency" / network / "latency.json")
        largest = [row for row in rows if row["side"] == max(asked.sides) and row["network"] != "baseline"]
        run.metrics({f"time_{row['runtime']}_{row['network']}": row["ratio"] for row in largest})


if __name__ == "__main__":
    main(latency, "network")
