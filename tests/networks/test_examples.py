"""Networks of a user's own: nothing but a factory is given, and all that the pruner does works on them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import topologies
import torch
from pruning_runs import A, D, run
from removals import EXAMPLE, check, random_removal
from torch import nn

from pipeline import checks, config, cost
from pipeline.data.dataset import load_images
from pipeline.data.storage import gathered
from pipeline.networks import build, checkpoint
from pipeline.prepare.pairs import Making, make, photographs
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.prune import Setup
from pipeline.pruning.removal import kept_indices, remove

SRRESNET = ("examples.srresnet:build", {"scale": 2, "blocks": 2, "channels": 6})
DENOISER = ("examples.denoiser:build", {"channels": 4, "blocks": 1})
NETWORKS = [
    SRRESNET,
    DENOISER,
    ("topologies:rcan", {"form": "conv"}),
    ("topologies:rcan", {"form": "linear"}),
    ("topologies:rdn", {}),
    ("topologies:mobilenet", {}),
    ("topologies:imdn", {"split": "chunk"}),
    ("topologies:imdn", {"split": "numbers"}),
]


@pytest.mark.parametrize(("factory", "args"), NETWORKS)
def test_a_network_known_by_its_factory_alone_prunes_counts_saves_and_loads(
    factory: str, args: dict, tmp_path: Path
) -> None:
    network = topologies.unsettle(build(factory, args))
    coupling = check(network)  # pruned = masked, for every group and all at once
    removed = random_removal(coupling, random.Random(5))
    small = remove(network, coupling, removed)
    image = torch.rand(1, 3, 10, 14)
    assert small(image).shape == network(image).shape
    whole, less = (cost.measure(net, (16, 16), 3).mac for net in (network, small))
    assert less < 0.9 * whole
    checkpoint.save(tmp_path / "small.pt", small, factory, args, kept_indices(network, coupling, removed))
    loaded, _ = checkpoint.load(tmp_path / "small.pt", factory)
    assert torch.equal(loaded(image), small(image))


@pytest.mark.parametrize(("factory", "args"), [SRRESNET, DENOISER])
def test_everything_inside_the_examples_can_be_pruned(factory: str, args: dict) -> None:
    network = build(factory, args)
    coupling = find_groups(network, EXAMPLE)
    assert coupling.frozen == ()
    made = {layer for group in coupling.groups for layer in group.producers}
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert set(layers) - made == {layers[-1]}  # the one that makes the image


def test_splits_written_as_numbers_cost_imdn_no_channel() -> None:
    network = topologies.imdn("numbers")
    coupling = find_groups(network, EXAMPLE)
    assert coupling.frozen == ()
    made = {layer for group in coupling.groups for layer in group.producers}
    assert {f"blocks.{block}.layers.{layer}" for block in range(2) for layer in range(3)} < made
    assert {"head", "up.0", "blocks.1.last", "blocks.1.fuse.0", "blocks.1.fuse.1.gate.0"} < made


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 5)])
def test_the_examples_take_any_size(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    for scale in (1, 2, 3, 4):
        enlarged = build("examples.srresnet:build", {"scale": scale, "blocks": 1, "channels": 4}).eval()(image)
        assert enlarged.shape == (2, 3, scale * size[0], scale * size[1])
    assert build(*DENOISER)(image).shape == image.shape


def test_a_fresh_denoisers_blocks_are_the_identity() -> None:
    network = build(*DENOISER)
    features = torch.rand(1, 4, 6, 6)
    assert torch.equal(network.encoder(features), features)


def job_of(setup: Setup, factory: str, args: dict, pictures: dict[str, list[Path]]) -> Setup:
    """The fixtures' setup for an example: super-resolution as it is, or the same pictures with noise to take away."""
    if args.get("scale", 1) == 2:
        return replace(setup, network=config.Network(factory=factory, args=args, task="super_resolution", scale=2))
    network, made = config.Network(factory=factory, args=args, task="restoration", scale=1), {}
    for split, paths in pictures.items():
        making = Making("restoration", scale=1, minimum=24, noise=25.0, fixed=split == "validation")
        made[split] = load_images(gathered(*make(photographs(paths), making)), "cpu")
    return replace(setup, network=network, **made)


@pytest.mark.parametrize("active", [A, D])
@pytest.mark.parametrize(("factory", "args"), [SRRESNET, DENOISER])
def test_the_method_prunes_the_examples(
    factory: str,
    args: dict,
    active: tuple[str, ...],
    setup: Setup,
    settings: config.Settings,
    pictures: dict[str, list[Path]],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network, setup = build(factory, args), job_of(setup, factory, args, pictures)
    checks.check_trainable(setup, network)
    log = run(network, setup, settings, active, tmp_path)
    assert [iteration.verdict for iteration in log] == ["accepted"] * 4
    assert log[-1].mac < log[0].mac
    last, _ = checkpoint.load(sorted(tmp_path.glob("accepted-*.pt"))[-1], factory)
    assert setup.cost(last).mac == log[-1].mac
    assert setup.quality(last).mean_psnr == pytest.approx(log[-1].psnr)
