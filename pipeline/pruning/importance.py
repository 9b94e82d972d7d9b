"""What the rules see of a network: the importance of coupled channels, and the regularisers that shape it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline import config, cost
from pipeline.pruning import removal, rules
from pipeline.pruning.criteria import PER_MAC, WITHIN, rows


def relative_magnitudes(network: nn.Module, group: removal.Group, reference: dict[str, float]) -> Tensor:
    """[C_g] the largest relative magnitude of each channel over the layers that produce it; differentiable."""
    parts = []
    for slot in group.slots:
        if slot.role == "output":
            weights = rows(network.get_parameter(slot.tensor), slot, group.channels)
            parts.append(weights.abs().mean(dim=1) / reference[slot.tensor])
    return torch.stack(parts).amax(dim=0)


def reference_magnitudes(network: nn.Module, groups: removal.Coupling) -> dict[str, float]:
    """ref_l of every producing layer: the mean |weight| in the baseline, above zero so that u is a number."""
    names = {slot.tensor for group in groups.groups for slot in group.slots if slot.role == "output"}
    return {name: max(network.get_parameter(name).detach().abs().mean().item(), 1e-12) for name in sorted(names)}


def group_states(
    network: nn.Module,
    spent: cost.Cost,
    groups: removal.Coupling,
    reference: dict[str, float],
    baseline: dict[str, int],
    criterion: config.Criterion = "magnitude",
    scores: Mapping[str, tuple[float, ...]] | None = None,
) -> list[rules.GroupState]:
    """What the rules see, measured on a network that costs `spent`; baseline: channels that each group has there.

    Importances are relative magnitudes; with the scores of another criterion (`criteria.scores`), the ranks of these.
    """
    result = []
    for group in groups.groups:
        mac, weights = cost.channel_saving(spent, group)
        importances = tuple(relative_magnitudes(network, group, reference).detach().cpu().tolist())
        result.append(rules.GroupState(group.name, importances, baseline[group.name], mac, weights, units(group)))
    if scores is not None:
        ranked = ranks(result, scores, criterion)
        result = [replace(state, importances=ranked[state.name]) for state in result]
    return result


def ranks(
    states: Sequence[rules.GroupState],
    scores: Mapping[str, tuple[float, ...]],
    criterion: config.Criterion = "saliency",
) -> dict[str, tuple[float, ...]]:
    """Group name -> [C_g] the channels' places in the order of their scores, from 0 to 2.

    An importance of 0.3 says that the channel and those before it would save 15% of what all channels save, in MACs:
    alpha asks for such a share. The mean over MACs is 1. The order is over all groups; under a criterion of PER_MAC it
    is of the score for each MAC saved, under one of WITHIN each group has its own. Groups without scores are ranked by
    themselves, by magnitude.
    """
    places: dict[str, tuple[float, ...]] = {}
    together: list[tuple[float, str, int, float]] = []  # score, group, channel, MACs
    for state in states:
        own = scores.get(state.name)
        if own is None or criterion in WITHIN:
            alone = state.importances if own is None else own
            places |= _places([(score, state.name, channel, 1.0) for channel, score in enumerate(alone)])
        else:
            unit = state.mac or 1.0 if criterion in PER_MAC else 1.0
            together += [(score / unit, state.name, channel, state.mac) for channel, score in enumerate(own)]
    return places | _places(together)


def _places(channels: list[tuple[float, str, int, float]]) -> dict[str, tuple[float, ...]]:
    """Twice the share of the MACs that come before each channel, half of its own included."""
    total = sum(mac for *_, mac in channels) or 1.0
    before, places = 0.0, dict[str, dict[int, float]]()
    for _, name, channel, mac in sorted(channels):
        places.setdefault(name, {})[channel] = 2 * (before + mac / 2) / total
        before += mac
    return {name: tuple(place for _, place in sorted(by.items())) for name, by in places.items()}


def units(group: removal.Group) -> tuple[int, ...]:
    """How many channels a layer has for one of the group's, each number once, over the layers that make or read it."""
    return tuple(sorted({len(slot.index[0]) for slot in group.slots if slot.role in ("output", "input")}))


@dataclass(frozen=True)
class Regulariser:
    """`sparsity`: group lasso over coupled channels, each group weighted by its share of the MACs under `efficiency`.
    `imbalance`: variance over groups of their mean relative magnitude, under `balance`.
    """

    groups: removal.Coupling
    reference: dict[str, float]
    shares: dict[str, float]  # weights of the groups in the lasso, 1 on average
    sparsity: float
    imbalance: float

    def __call__(self, network: nn.Module) -> Tensor:
        """[] what is added to the loss."""
        total = torch.zeros((), device=next(network.parameters()).device)
        if self.sparsity:
            for group in self.groups.groups:
                produced = [
                    rows(network.get_parameter(slot.tensor), slot, group.channels)
                    for slot in group.slots
                    if slot.role == "output"
                ]
                norms = torch.cat(produced, dim=1).square().sum(dim=1).add(1e-12).sqrt()
                total = total + self.sparsity * self.shares[group.name] * norms.sum()
        if self.imbalance:
            means = [relative_magnitudes(network, group, self.reference).mean() for group in self.groups.groups]
            total = total + self.imbalance * torch.stack(means).var(correction=0)
        return total


def regulariser(
    groups: removal.Coupling, reference: dict[str, float], shares: dict[str, float], settings: config.Settings, active
) -> Regulariser | None:
    """The regulariser of a method, or none where there is nothing to shrink."""
    imbalance = settings.imbalance if "balance" in active else 0.0
    if not groups.groups or not (settings.sparsity or imbalance):
        return None
    return Regulariser(groups, reference, shares, settings.sparsity, imbalance)


def lasso_shares(states: list[rules.GroupState], active) -> dict[str, float]:
    """Weights of the groups in the group lasso, 1 on average: under `efficiency`, by what the group's channels cost."""
    if "efficiency" not in active:
        return {group.name: 1.0 for group in states}
    costs = {group.name: group.mac * len(group.importances) for group in states}
    mean = sum(costs.values()) / len(costs) or 1.0  # linear layers alone have no MACs here
    return {name: value / mean for name, value in costs.items()}
