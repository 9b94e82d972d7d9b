"""How much each channel of a group matters: the literature's criteria, each a function of what it looks at.

A score says in which order channels go, and its unit is the criterion's own. `importance.ranks` makes scores of all
criteria but `magnitude` comparable: an importance is twice the share of the MACs that go before a channel. What makes a
channel are the rows of all kernels that compute it and its entries in biases and norms; a coupled channel has several
kernels.

    magnitude   mean |w| of a kernel, relative to the layer's in the baseline; importance.relative_magnitudes
    saliency    change of the loss that remains when readers make up for the channel; reconstruction.saliencies
    l1, l2, random, taylor, obd, apoz, variance, mac_taylor: below
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.errors import UserError
from pipeline.networks import duplicate
from pipeline.pruning import reconstruction
from pipeline.pruning.removal import Coupling, Group, Slot
from pipeline.training.setup import Setup

WITHIN = ("l1", "l2", "random", "apoz")  # say nothing of another layer's channels: each group is ranked by itself
PER_MAC = ("saliency", "mac_taylor")  # ranked by the score for each MAC that the channel's removal saves
SLOPES = ("taylor", "mac_taylor", "obd", "variance")  # need gradients


def l1(kernels: Sequence[Tensor]) -> Tensor:
    """[C_g] the sum of |w|; kernels: [C_g, n] of each layer that makes the channels. A coupled channel has their sum.

    Source: Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017); summed over coupled layers as in DepGraph
    (Fang et al., CVPR 2023).
    """
    return torch.stack([kernel.abs().sum(dim=1) for kernel in kernels]).sum(dim=0)


def l2(kernels: Sequence[Tensor]) -> Tensor:
    """[C_g] the Euclidean norm over all weights, those of coupled layers together; kernels as for `l1`.

    Source: He et al., Soft Filter Pruning (IJCAI 2018). It is the norm that the group lasso (`sparsity`) shrinks.
    """
    return torch.cat(list(kernels), dim=1).square().sum(dim=1).sqrt()


def random(channels: int, seed: int) -> Tensor:
    """[C_g] evenly drawn numbers. Source: Mittal et al., Recovering from Random Pruning (WACV 2018)."""
    return torch.rand(channels, generator=torch.Generator().manual_seed(seed))


def taylor(products: Tensor) -> Tensor:
    """[C_g] the mean over images of the squared first-order change of the loss when the channel is set to zero.

    products: [images, C_g], gradient × weight summed over all that makes the channel, coupled layers too: they go at
    once, and what their gradients say may cancel. For a convolution with its bias that sum is the one of gradient ×
    activation of Molchanov et al. (ICLR 2017); squared as in Molchanov et al. (CVPR 2019, equation 8).
    `mac_taylor` is the same score, ranked for each MAC saved, as Yang et al. (Energy-Aware Pruning, CVPR 2017) rank
    layers by the energy that they cost.
    """
    return products.square().mean(dim=0)


def obd(parameters: Sequence[Tensor], squares: Sequence[Tensor]) -> Tensor:
    """[C_g] ½ Σ h w², with the curvature h taken from the empirical Fisher information: the mean squared gradient.

    parameters: [C_g, n] of all that makes the channels; squares: the mean over images of their squared gradients. The
    sum is over coupled layers too. Source: LeCun et al., Optimal Brain Damage (NIPS 1989), for single weights.
    """
    pairs = zip(parameters, squares, strict=True)
    return torch.stack([(square * own.square()).sum(dim=1) for own, square in pairs]).sum(dim=0) / 2


def variance(products: Tensor) -> Tensor:
    """[C_g] the variance over images of the output's sensitivity to the channel.

    products: [images, C_g], the derivative of the output's mean value to a factor on the channel, coupled layers
    together. Source: Engelbrecht, A New Pruning Heuristic Based on Variance Analysis of Sensitivity Information (IEEE
    TNN 2001). His units all lie between 0 and 1; channels have scales of their own, hence the factor.
    """
    return products.var(dim=0, correction=0)


def apoz(zeros: Sequence[Tensor]) -> Tensor:
    """[C_g] the share of a channel's values that aren't zero; zeros: [C_g] shares of zeros, one for each reader.

    Counted where layers read the channel, so behind its ReLU; a coupled channel has its readers' mean. Source: Hu et
    al., Network Trimming (2016): the average percentage of zeros, of which the largest goes first.
    """
    return 1 - torch.stack(list(zeros)).mean(dim=0)


def scores(
    criterion: config.Criterion,
    network: nn.Module,
    coupling: Coupling,
    setup: Setup,
    limits: Mapping[str, int],
    known: reconstruction.Known | None = None,
) -> dict[str, tuple[float, ...]] | None:
    """Group name -> [C_g] each channel's score, the lowest of which goes first; None for `magnitude`, which has none.

    limits: group name -> the most channels that may go at once, and known: `reconstruction.moments`, both for
    `saliency`. A group of which a criterion can say nothing is missing: under `saliency` one that a layer reads which
    isn't `readable`, under `apoz` one that isn't behind a ReLU. The network is left as it is.
    """
    if criterion == "magnitude":
        return None
    if criterion == "saliency":
        assert known is not None
        return reconstruction.saliencies(network, coupling, known, limits)
    found: dict[str, Tensor] = {}
    if criterion == "apoz":
        shares = zero_shares(network, coupling, setup.samples())
        found = {name: apoz(zeros) for name, zeros in shares.items() if any(share.any() for share in zeros)}
    elif criterion in SLOPES:
        slopes = measured(network, coupling, setup.sample_pairs(), of_loss=criterion != "variance")
        for name, seen in slopes.items():
            found[name] = (
                obd(seen.parameters, seen.squares) if criterion == "obd"
                else variance(seen.products) if criterion == "variance" else taylor(seen.products)
            )  # fmt: skip
    else:
        for group in coupling.groups:
            kernels = [rows(tensor, slot, group.channels) for slot, tensor in _made(network, group, ("output",))]
            seed = setup.seed + zlib.crc32(f"{group.name} {group.channels}".encode())
            found[group.name] = (
                random(group.channels, seed) if criterion == "random" else l1(kernels) if criterion == "l1"
                else l2(kernels)
            )  # fmt: skip
    return {name: tuple(score.detach().cpu().double().tolist()) for name, score in found.items()}


def check(criterion: config.Criterion, network: nn.Module, coupling: Coupling, example: Tensor, name: str) -> None:
    """UserError for a criterion that has nothing to go by in this network, which is called `name` in params.yaml.

    example: an input of the network [N, C, H, W]; only its shape counts. Costs one forward.
    """
    if criterion != "apoz" or not coupling.groups:
        return
    image = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    if not any(share.any() for zeros in zero_shares(network, coupling, [image]).values() for share in zeros):
        others = [one for one in config.CRITERIA if one != "apoz"]
        raise UserError(
            f"prune.criterion is 'apoz', which counts the zeros that a ReLU makes, but networks.{name} has no channel "
            f"behind a ReLU that can be removed; allowed for it are {', '.join(others)}"
        )


def rows(tensor: Tensor, slot: Slot, channels: int) -> Tensor:
    """[C_g, everything else] the part of a slot's tensor, or of its gradient, that belongs to each channel."""
    moved = tensor.movedim(slot.dim, 0)
    index = [place for row in slot.index for place in row]
    if index != list(range(moved.shape[0])):
        moved = moved[torch.tensor(index, device=moved.device)]
    return moved.reshape(channels, -1)


@dataclass(frozen=True)
class Slopes:
    """Of one group: what makes its channels, and the gradients of it, from one backward pass for each image."""

    parameters: list[Tensor]  # [C_g, n] each
    squares: list[Tensor]  # [C_g, n] each: the mean over images of the squared gradient
    products: Tensor  # [images, C_g]: the sum over all parameters of gradient × value


def measured(
    network: nn.Module, coupling: Coupling, pairs: Iterable[tuple[Tensor, Tensor]], of_loss: bool
) -> dict[str, Slopes]:
    """Slopes of the training loss, mean absolute error, or else of the output's mean; pairs: batches [N, ...].

    Of parameters that training doesn't change the gradient is 0. A copy is measured whose weights lie as those of a
    loaded one do, as `reconstruction.moments` does.
    """
    network = duplicate(network).eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    made = {group.name: _made(network, group, ("output", "channel")) for group in coupling.groups}
    names = {slot.tensor for slots in made.values() for slot, _ in slots}
    trained = {name: one for name, one in network.named_parameters(remove_duplicate=False) if name in names}
    trained = {name: one for name, one in trained.items() if one.requires_grad}
    squares = {name: torch.zeros_like(one) for name, one in trained.items()}
    products: dict[str, list[Tensor]] = {group.name: [] for group in coupling.groups}
    images = 0
    with torch.enable_grad():
        for inputs, targets in pairs:
            for image, target in zip(inputs.split(1), targets.split(1), strict=True):
                output = network(image)
                value = (output - target).abs().mean() if of_loss else output.mean()
                found = torch.autograd.grad(value, list(trained.values()), allow_unused=True) if trained else ()
                slopes = {name: slope for name, slope in zip(trained, found, strict=True) if slope is not None}
                images += 1
                for name, slope in slopes.items():
                    squares[name] += slope.square()
                for group in coupling.groups:
                    parts = [
                        rows(tensor.detach() * slopes[slot.tensor], slot, group.channels).sum(dim=1)
                        for slot, tensor in made[group.name] if slot.tensor in slopes
                    ]  # fmt: skip
                    none = [torch.zeros(group.channels, device=output.device)]
                    products[group.name].append(torch.stack(parts or none).sum(dim=0))
    result = {}
    for group in coupling.groups:
        slots = [(slot, tensor) for slot, tensor in made[group.name] if slot.tensor in trained]
        result[group.name] = Slopes(
            [rows(tensor.detach(), slot, group.channels) for slot, tensor in slots] or none_of(group),
            [rows(squares[slot.tensor] / images, slot, group.channels) for slot, _ in slots] or none_of(group),
            torch.stack(products[group.name]),
        )
    return result


def none_of(group: Group) -> list[Tensor]:
    """What makes channels of which training changes nothing."""
    return [torch.zeros(group.channels, 1)]


@torch.no_grad()
def zero_shares(network: nn.Module, coupling: Coupling, batches: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Group name -> for each convolution or linear layer that reads the group, [C_g] the share of zeros it reads."""
    network = duplicate(network).eval()
    readers = {
        group.name: [slot for slot in group.slots if slot.role == "input" and slot.tensor.endswith("weight")]
        for group in coupling.groups
    }
    names = dict.fromkeys(slot.module for slots in readers.values() for slot in slots)
    zeros: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def see(name: str, layer: nn.Module, image: Tensor) -> None:
        channels = image.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        zeros[name] = zeros.get(name, 0) + (channels == 0).double().sum(dim=1)
        seen[name] = seen.get(name, 0) + channels.shape[1]

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda layer, inputs, name=name: see(name, layer, inputs[0])
        )
        for name in names
    ]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: [_of_group(zeros[slot.module] / seen[slot.module], slot) for slot in slots if slot.module in seen]
        for name, slots in readers.items()
    }


def _of_group(share: Tensor, slot: Slot) -> Tensor:
    """[C_g] the mean over the places that each of the group's channels has in a layer."""
    return torch.stack([share[list(places)].mean() for places in slot.index])


def _made(network: nn.Module, group: Group, roles: tuple[str, ...]) -> list[tuple[Slot, Tensor]]:
    """What makes the group's channels: kernels (role `output`), biases and norms (`channel`); parameters alone."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return [(slot, parameters[slot.tensor]) for slot in group.slots if slot.role in roles and slot.tensor in parameters]
