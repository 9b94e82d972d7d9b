"""Look at the baseline's architecture: costs by layer, coupled groups, importance of channels."""

from __future__ import annotations

import sys

from pipeline import config
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, network_of


def analyze(params: config.Params, network: str) -> None:
    """Write one baseline's costs by layer and its coupled groups."""
    with runs.stage("analyze", network, params={"size": params.analyze[network].size}) as run:
        from pipeline.pruning.analysis import analyze
        from pipeline.training.setup import load_setup

        setup, folder = load_setup(params, network, RESULTS), RESULTS / "analyze" / network
        net = network_of(RESULTS / "train" / network / "network.pt", params.networks[network], pruned=False)
        coupled, spent = analyze(net, setup, folder, params.norms(network))
        for sentence in coupled.frozen:
            print(f"analyze {network}: {sentence}", file=sys.stderr)
        if not coupled.groups:
            print(f"analyze {network}: no channel can be removed, so pruning will change nothing", file=sys.stderr)
        run.metrics({"mac": spent.mac, "weights": spent.weights, "activations": spent.activations, "bw": spent.bw})
        for name in ("groups.json", "layers.csv"):
            run.artifact(folder / name)


if __name__ == "__main__":
    main(analyze, "network")
