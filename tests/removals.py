"""Checks that a network without some of its channels computes what the whole one computes without them."""

from __future__ import annotations

import random

import topologies
import torch
from torch import nn

from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import Coupling, masked, narrow, remove

EXAMPLE = torch.zeros(1, 3, 8, 8)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the largest output


def random_removal(coupling: Coupling, rng: random.Random, leave: int = 1) -> dict[str, list[int]]:
    return {
        group.name: rng.sample(range(group.channels), rng.randint(1, group.channels - leave))
        for group in coupling.groups
        if group.channels > leave
    }


def assert_equals_mask(network: nn.Module, coupling: Coupling, removed: dict, dtype=torch.float64) -> nn.Module:
    """The smaller network equals the masked one, on an image of another size than the traced one."""
    small = remove(network, coupling, removed).to(dtype)
    image = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with torch.no_grad():
        expected = masked(network, coupling, removed).to(dtype)(image)
        result = small(image)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    return small


def check(network: nn.Module, seed: int = 0) -> Coupling:
    """Every group by itself, then all at once, in both precisions; then once more on what is left."""
    network = topologies.unsettle(network)
    coupling = find_groups(network, EXAMPLE)
    rng = random.Random(seed)
    for group in coupling.groups:
        if group.channels > 1:
            gone = rng.sample(range(group.channels), rng.randint(1, group.channels - 1))
            assert_equals_mask(network, coupling, {group.name: gone})
    removed = random_removal(coupling, rng)
    assert_equals_mask(network, coupling, removed)
    assert_equals_mask(network, coupling, removed, torch.float32)
    removed = random_removal(coupling, rng, leave=2)
    small = remove(network, coupling, removed)
    narrowed = narrow(coupling, removed)
    assert narrowed.groups == find_groups(small, EXAMPLE).groups
    assert_equals_mask(small, narrowed, random_removal(narrowed, rng))
    return coupling
