"""How well saliencies foretell what a removal does: each group alone, before any training.

    python benchmarks/saliency.py edsr       # after make repro; a minute

Of each group a quarter and a half of the channels go, those of the least saliency, and their readers make up for them.
The table gives the mean squared change of the output on training crops, foretold and measured, and what it costs on the
validation images. pipeline/pruning/reconstruction.py says what a saliency is. To foretell the output's change and not
the loss's, the targets are off by 1 here, up or down by chance.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from pipeline import config
from pipeline.networks import checkpoint
from pipeline.pruning import coupling, reconstruction, removal
from pipeline.training.setup import load_setup

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="of run.networks in params.yaml")
    name = parser.parse_args().network
    params = config.read(ROOT / "params.yaml")
    setup = load_setup(params, name, ROOT / "results")
    baseline, _ = checkpoint.load(ROOT / "results" / "train" / name / "network.pt", params.networks[name].factory)
    baseline.eval()
    groups = coupling.find_groups(baseline, setup.example(baseline))
    draws = torch.Generator().manual_seed(0)

    def off(output: torch.Tensor) -> torch.Tensor:
        return output.detach() - (torch.randint(0, 2, output.shape, generator=draws) * 2 - 1)

    known = reconstruction.moments(baseline, groups, ((batch, off(baseline(batch))) for batch in setup.samples()))
    whole, reference = setup.cost(baseline).mac, setup.validate(baseline)

    def change(other: nn.Module) -> float:
        with torch.no_grad():
            errors = [(other(batch) - baseline(batch)).square().mean().item() for batch in setup.samples()]
        return sum(errors) / len(errors)

    print(f"{name} {params.networks[name].args}, {reference:.3f} dB on validation\n")
    print("| group | channels removed | MACs left (%) | output's change, foretold | measured | validation (dB) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for group in groups.groups:
        for share in (0.25, 0.5):
            count = max(1, int(share * group.channels))
            saliencies = reconstruction.saliencies(baseline, groups, known, {group.name: count})[group.name]
            gone = {group.name: tuple(sorted(range(group.channels), key=saliencies.__getitem__)[:count])}
            small = removal.remove(reconstruction.compensated(baseline, groups, gone, known), groups, gone).eval()
            print(
                f"| {group.name} | {count} of {group.channels} | {100 * setup.cost(small).mac / whole:.1f} "
                f"| {sum(sorted(saliencies)[:count]):.1e} | {change(small):.1e} "
                f"| {setup.validate(small) - reference:+.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
