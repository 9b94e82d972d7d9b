"""What can be pruned of a baseline, and where its costs lie: the files of `analyze`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.cost import Cost
from pipeline.files import write_csv, write_json
from pipeline.pruning import coupling, importance
from pipeline.pruning.removal import Coupling
from pipeline.training.setup import Setup

LAYER = ("layer", "channels", "mac", "weights", "activations", "bw", "mac_per_weight")


def analyze(network: nn.Module, setup: Setup, folder: Path, norms: bool) -> tuple[Coupling, Cost]:
    """The coupled groups and the costs of a network; written to groups.json, layers.csv and metrics.json of `folder`.

    norms: whether channels may go that a normalisation takes its statistics over.
    Raises UserError if the network's forward can't be traced.
    """
    spent, coupled = setup.cost(network), coupling.find_groups(network, setup.example(network), norms)
    reference = importance.reference_magnitudes(network, coupled)
    channels = {group.name: group.channels for group in coupled.groups}
    states = importance.group_states(network, spent, coupled, reference, channels)
    groups = []
    for group, state in zip(coupled.groups, states, strict=True):
        ranked = sorted(state.importances)
        groups.append({
            "name": group.name, "channels": group.channels, "producers": list(group.producers),
            "readers": list(group.readers), "mac_per_channel": state.mac, "weights_per_channel": state.weights,
            "importance": {"least": ranked[0], "median": ranked[len(ranked) // 2], "largest": ranked[-1]},
            **({} if group.exact else {"exact": False}),
        })  # fmt: skip
    write_json(folder / "groups.json", {"groups": groups, "frozen": list(coupled.frozen)})
    rows = [
        (layer.name, layer.out_channels, layer.mac, layer.weights, layer.activations, layer.bw,
         f"{layer.mac_per_weight:.1f}")
        for layer in spent.layers
    ]  # fmt: skip
    write_csv(folder / "layers.csv", [LAYER, *rows])
    totals = {"mac": spent.mac, "weights": spent.weights, "activations": spent.activations, "bw": spent.bw}
    write_json(folder / "metrics.json", totals)
    return coupled, spent
