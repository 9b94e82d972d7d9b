"""Look at the baseline's architecture: costs by layer, coupled groups, magnitudes."""

from __future__ import annotations

import sys

from pipeline import config, tracking
from pipeline.files import write_csv, write_json
from stages.command import main
from stages.common import RESULTS


def analyze(params: config.Params, network: str) -> None:
    """Write one baseline's costs by layer and its coupled groups."""
    with tracking.stage("analyze", network, params={"size": params.analyze[network].size}) as run:
        from pipeline import checkpoint, coupling, magnitudes
        from pipeline.job import load_job

        job = load_job(params, network, RESULTS)
        net, _ = checkpoint.load(RESULTS / "train" / network / "network.pt", params.networks[network].factory)
        spent, found = job.cost(net), coupling.find_groups(net, job.example(net))
        reference = magnitudes.reference_magnitudes(net, found)
        original = {group.name: group.channels for group in found.groups}
        groups = []
        for group, state in zip(
            found.groups, magnitudes.group_states(net, spent, found, reference, original), strict=True
        ):
            ranked = sorted(state.magnitudes)
            groups.append({
                "name": group.name, "channels": group.channels, "producers": list(group.producers),
                "readers": list(group.readers), "mac_per_channel": state.mac, "weights_per_channel": state.weights,
                "magnitude": {"least": ranked[0], "median": ranked[len(ranked) // 2], "largest": ranked[-1]},
            })  # fmt: skip
        for sentence in found.frozen:
            print(f"analyze {network}: {sentence}", file=sys.stderr)
        if not groups:
            print(f"analyze {network}: no channel can be removed, so pruning will change nothing", file=sys.stderr)
        folder = RESULTS / "analyze" / network
        write_json(folder / "groups.json", {"groups": groups, "frozen": list(found.frozen)})
        rows = [
            (layer.name, layer.out_channels, layer.mac, layer.weights, layer.activations, layer.bw,
             f"{layer.mac_per_weight:.1f}")
            for layer in spent.layers
        ]  # fmt: skip
        header = ("layer", "channels", "mac", "weights", "activations", "bw", "mac_per_weight")
        write_csv(folder / "layers.csv", [header, *rows])
        totals = {"mac": spent.mac, "weights": spent.weights, "activations": spent.activations, "bw": spent.bw}
        write_json(folder / "metrics.json", totals)
        run.metrics(totals)
        for name in ("groups.json", "layers.csv"):
            run.artifact(folder / name)


if __name__ == "__main__":
    main(analyze, "network")
