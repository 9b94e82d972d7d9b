"""Look at the baseline's architecture: costs by layer, coupled groups, importance of channels."""

from __future__ import annotations

import sys

from pipeline import config
from pipeline.files import write_csv, write_json
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, network_of


def analyze(params: config.Params, network: str) -> None:
    """Write one baseline's costs by layer and its coupled groups."""
    with runs.stage("analyze", network, params={"size": params.analyze[network].size}) as run:
        from pipeline.pruning import coupling, importance
        from pipeline.training.setup import load_setup

        setup = load_setup(params, network, RESULTS)
        net = network_of(RESULTS / "train" / network / "network.pt", params.networks[network], pruned=False)
        spent, coupled = setup.cost(net), coupling.find_groups(net, setup.example(net))
        reference = importance.reference_magnitudes(net, coupled)
        channels = {group.name: group.channels for group in coupled.groups}
        groups = []
        for group, state in zip(
            coupled.groups, importance.group_states(net, spent, coupled, reference, channels), strict=True
        ):
            ranked = sorted(state.importances)
            groups.append({
                "name": group.name, "channels": group.channels, "producers": list(group.producers),
                "readers": list(group.readers), "mac_per_channel": state.mac, "weights_per_channel": state.weights,
                "importance": {"least": ranked[0], "median": ranked[len(ranked) // 2], "largest": ranked[-1]},
            })  # fmt: skip
        for sentence in coupled.frozen:
            print(f"analyze {network}: {sentence}", file=sys.stderr)
        if not groups:
            print(f"analyze {network}: no channel can be removed, so pruning will change nothing", file=sys.stderr)
        folder = RESULTS / "analyze" / network
        write_json(folder / "groups.json", {"groups": groups, "frozen": list(coupled.frozen)})
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
