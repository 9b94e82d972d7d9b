"""Blocks that train with several branches, and have a method that makes them one plain kernel.

Known methods: `switch_to_deploy` (RepVGG and what follows it), `reparameterize` (MobileOne), `rep_params` (ECBSR),
which gives kernel and bias of a 3x3 convolution that an activation `act` may follow, and `update_params` (SPAN), which
writes them into the block's `eval_conv`; a leaky ReLU follows that where the block says `has_relu`. What a block's
batch norms do is folded in as evaluation mode does it. A method is taken only where the network computes the same
afterwards.

Sources: Ding et al., RepVGG (CVPR 2021); Vasu et al., MobileOne (CVPR 2023); Zhang et al., Edge-oriented Convolution
Block (ACM MM 2021); Wan et al., Swift Parameter-free Attention Network (CVPRW 2024).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from pipeline.networks import duplicate
from pipeline.networks.rebuilt import aside

METHODS = ("switch_to_deploy", "reparameterize", "rep_params", "update_params")
LEAK = 0.05  # slope of the leaky ReLU in SPAN's blocks
SAME = 1e-9  # of the largest output, in float64
CHANNELS, SIDES = (3, 1, 4), (16, 48, 64, 120, 126, 128)  # of the input: the first that the network takes


def fold(network: nn.Module) -> tuple[int, list[str]]:
    """Make blocks plain by their methods, in place; how many there were, and the names of those that must stay.

    They are tried with noise on their values, so that which ones fold doesn't hang on what they hold: a network that is
    built and one that is trained have the same layers afterwards.
    """
    names = [name for name, module in network.named_modules() if _method(module)]
    if not names:
        return 0, []
    with aside(network), torch.no_grad():
        chosen, left = _chosen(network, names)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        done = _made_plain(network, chosen)
        for module in network.modules():
            module.training = modes.get(module, modes[network])
    return len(done), left


def _method(module: nn.Module) -> str | None:
    """The method of a module's class that makes it plain. (A VAE's `reparameterize` takes arguments: another thing.)"""
    for name in METHODS:
        method = getattr(type(module), name, None)
        if inspect.isfunction(method):
            own = list(inspect.signature(method).parameters.values())[1:]
            if all(one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in own):
                return name
    return None


def _chosen(network: nn.Module, names: list[str]) -> tuple[list[str], list[str]]:
    """Of the blocks by these names, those whose methods leave the network's output as it is, and those that must stay.

    All are tried together, then, where that fails, one by one.
    """
    try:
        with _double():
            shaken = _shaken(duplicate(network).double().eval())
            found = _example(shaken)
            if found is None:
                return [], names
            image, expected = found
            together = _tried(duplicate(shaken), names, image, expected)
            if together is not None:
                return (names if together else []), []
            chosen: list[str] = []
            left: list[str] = []
            for name in names:
                trial = duplicate(shaken)
                if name not in dict(trial.named_modules()):
                    continue
                changed = _tried(trial, [name], image, expected)
                if changed:
                    chosen, shaken = [*chosen, name], trial
                elif changed is None:
                    left.append(name)
            return chosen, left
    except Exception:  # it can't be copied, or a buffer isn't what it seems: whoever uses it says so
        return [], names


def _tried(trial: nn.Module, names: list[str], image: Tensor, expected: list[Tensor]) -> bool | None:
    """Call the blocks' methods, in place; whether that changed them, or None where the output isn't the same."""
    try:
        changed = bool(_made_plain(trial, names))
    except Exception:  # a user's method may raise anything
        return None
    return changed if _same(_answer(trial, image), expected) else None


def _made_plain(network: nn.Module, names: Iterable[str]) -> list[str]:
    """Call the blocks' methods, in place; the names of those that changed.

    A block that another one's method has changed or taken away already isn't called any more.
    """
    blocks = {name: _parameters(network.get_submodule(name)) for name in names}
    done = []
    for name, before in blocks.items():
        block = dict(network.named_modules()).get(name)
        if block is not None and _parameters(block).keys() == before.keys():
            _call(network, name)
            if _settled(network.get_submodule(name), before):
                done.append(name)
    return done


def _parameters(module: nn.Module) -> dict[int, tuple[nn.Parameter, bool]]:
    """By identity, with whether it is trained."""
    return {id(parameter): (parameter, parameter.requires_grad) for parameter in module.parameters()}


def _call(network: nn.Module, name: str) -> None:
    block = network.get_submodule(name)
    method = str(_method(block))
    made = getattr(block, method)()
    layers: dict[str, Any] = {}
    if method == "rep_params":
        kernel, bias = made
        sides = tuple(kernel.shape[2:])
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], sides, padding=(sides[0] // 2, sides[1] // 2))
        conv.weight, conv.bias = nn.Parameter(kernel.clone()), nn.Parameter(bias.clone())
        layers = {"conv": conv, "act": getattr(block, "act", None)}
    elif method == "update_params":
        own: Any = block.eval_conv
        for key, parameter in list(own.named_parameters()):  # new ones: those were written, and not trained
            setattr(own, key, nn.Parameter(parameter.detach()))
        layers = {"eval_conv": own, "act": nn.LeakyReLU(LEAK) if getattr(block, "has_relu", False) else None}
    if layers:
        plain = nn.Sequential()
        for key, layer in layers.items():
            if isinstance(layer, nn.Module):
                plain.add_module(key, layer)
        network.set_submodule(name, plain)


def _settled(block: nn.Module, before: dict[int, tuple[nn.Parameter, bool]]) -> bool:
    """Train what a block has now as it was trained before: many methods detach everything. Whether it has changed."""
    trained = any(flag for _, flag in before.values())
    for key, (parameter, _) in _parameters(block).items():
        parameter.requires_grad_(before[key][1] if key in before else trained)
    return _parameters(block).keys() != before.keys()


def _shaken(network: nn.Module) -> nn.Module:
    """Noise on all that is trained, and on statistics: a branch that is 0 at first would hide what it does."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.numel():
            inputs = parameter.numel() / len(parameter) if parameter.dim() else 1
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
            parameter.add_(0.6 / math.sqrt(inputs) * noise)
    for module in network.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            for statistic, offset in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                statistic.copy_(torch.rand(statistic.shape, generator=generator, dtype=torch.float64) + offset)
    return network


def _example(network: nn.Module) -> tuple[Tensor, list[Tensor]] | None:
    """An image that the network takes, and what it makes of it."""
    for channels in CHANNELS:
        for side in SIDES:
            image = torch.rand((1, channels, side, side), generator=torch.Generator().manual_seed(0))
            if made := _answer(network, image):
                return image, made
    return None


def _answer(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The tensors that a network makes; none where it fails."""
    network.eval()
    torch.manual_seed(0)
    try:
        # each run has its own image: a forward may change it
        return [leaf for leaf in tree_leaves(network(image.clone())) if isinstance(leaf, Tensor)]
    except Exception:  # a user's forward may raise anything
        return []


def _same(made: list[Tensor], expected: list[Tensor]) -> bool:
    if [one.shape for one in made] != [one.shape for one in expected]:
        return False
    return all(
        torch.allclose(one, other, rtol=0, atol=SAME * other.abs().max().item())
        for one, other in zip(made, expected, strict=True)
    )


@contextlib.contextmanager
def _double() -> Iterator[None]:
    """What methods make by themselves is float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
