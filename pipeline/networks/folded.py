"""Computed kernels folded into plain ones, whose channels can be removed.

Weight norm computes a kernel from a direction and a length, spectral norm from a kernel and an estimate of its norm,
which evaluation mode holds fixed; branches.py folds blocks of several branches. The folded network computes what the
network computes in evaluation mode, and trains on by the kernels themselves.

Sources: Salimans and Kingma, Weight Normalization (NIPS 2016); Miyato et al., Spectral Normalization (ICLR 2018).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from pipeline.errors import UserError, explained
from pipeline.networks import branches

# the names of a length, and of the direction and the kernel that belong to it, of torch's old weight norm and its new
LENGTHS = (
    (re.compile(r"(.*)_g"), r"\1_v", r"\1"),
    (re.compile(r"(.*)parametrizations\.(\w+)\.original0"), r"\1parametrizations.\2.original1", r"\1\2"),
)
NORMS = {_WeightNorm: "weight norm", _SpectralNorm: "spectral norm"}
ITERATIONS = 15  # of the power method, as torch's new spectral norm begins with
_SAID: set[str] = set()


def fold(name: str, network: nn.Module) -> None:
    """Make computed kernels plain, in place. A line on stderr says so, once for a network of this name."""
    kinds: Counter[str] = Counter()
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for tensor in list(module.parametrizations):  # type: ignore[arg-type]
                if kind := _fold_parametrization(module, tensor):
                    kinds[kind] += 1
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                trained = getattr(module, f"{hook.name}_v").requires_grad
                remove_weight_norm(module, hook.name)
                getattr(module, hook.name).requires_grad_(trained)
                kinds["weight norm"] += 1
            elif isinstance(hook, SpectralNorm):
                trained = getattr(module, f"{hook.name}_orig").requires_grad
                remove_spectral_norm(module, hook.name)
                for key, one in list(module._load_state_dict_pre_hooks.items()):  # torch overlooks the one it wrapped
                    if isinstance(getattr(one, "hook", one), SpectralNormLoadStateDictPreHook):
                        del module._load_state_dict_pre_hooks[key]
                getattr(module, hook.name).requires_grad_(trained)
                kinds["spectral norm"] += 1
    said = [f"{kind} of {count} kernels is folded into them" for kind, count in kinds.items()]
    with explained(f"network '{name}': blocks that have {' or '.join(branches.METHODS)} can't be folded"):
        plain, left = branches.fold(network)
    if plain:
        said.append(
            f"branches of {plain} block{'s' * (plain > 1)} are folded into plain kernels, as in evaluation mode"
        )
    if left:
        said.append(
            f"{len(left)} block{'s' * (len(left) > 1)} with a method that folds branches stay as they are, since the "
            f"network can't be tried or computes something else then ({left[0]})"
        )
    if said and name not in _SAID:
        _SAID.add(name)
        print(f"network '{name}': {'; '.join(said)}", file=sys.stderr)


def _fold_parametrization(module: nn.Module, tensor: str) -> str:
    """Make a tensor that torch.nn.utils.parametrize computes plain, in place; what computed it, or "" where it stays.

    Of parametrizations other than the norms only those of kernels are folded, and only where they give the same value
    twice.
    """
    chain: Any = module.parametrizations[tensor]  # type: ignore[union-attr, index]
    kinds = [type(one) for one in chain]
    if (len(kinds) > 1 or kinds[0] not in NORMS) and not isinstance(module, _ConvNd | nn.Linear):
        return ""
    modes = {one: one.training for one in chain.modules()}
    chain.eval()
    try:
        with torch.no_grad():
            value = getattr(module, tensor).clone()
            fixed = torch.equal(value.nan_to_num(), getattr(module, tensor).nan_to_num())
    except Exception:  # a user's parametrization may raise anything; whoever runs the network sees it
        fixed = False
    originals = list(chain.parameters(recurse=False))
    if not (fixed and originals):
        for one, mode in modes.items():
            one.training = mode
        return ""
    # a weight norm's kernel is trained where its direction, the second original, is
    trained = originals[-1].requires_grad or (
        kinds != [_WeightNorm] and any(p.requires_grad for p in chain.parameters())
    )
    # torch takes the tensor off the class, which copies of the module share
    module.__class__ = type(type(module).__name__, type(module).__bases__, dict(vars(type(module))))
    # a lone original may be another module's tensor too: it isn't written to
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=not chain.is_tensor)
    delattr(module, tensor)
    module.register_parameter(tensor, nn.Parameter(value, trained))
    return ", ".join(NORMS.get(kind, f"parametrization {kind.__name__}") for kind in kinds)


def estimate(network: nn.Module) -> None:
    """Estimate spectral norms that training hasn't estimated yet, in place, for a network that is to be trained.

    torch's old spectral norm begins with random vectors, which make a kernel many times as large as training's first
    step does. Once estimated, u points where the kernel takes v.
    """
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                with torch.no_grad():
                    kernel = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
                    taken = kernel.mv(getattr(module, f"{hook.name}_v"))
                    if getattr(module, f"{hook.name}_u").dot(taken) < taken.norm() / 2:
                        for _ in range(ITERATIONS):
                            hook.compute_weight(module, do_power_iteration=True)


def folded(state: Mapping[str, Tensor], expected: Container[str]) -> dict[str, Tensor]:
    """A file's tensors with plain kernels, where it holds lengths and directions of weight norms.

    expected: the network's own names; what it has itself stays. UserError: a length that doesn't fit its direction.
    """
    result = dict(state)
    for key, length in state.items():
        for pattern, direction, kernel in LENGTHS:
            match = pattern.fullmatch(key)
            if match is None or key in expected or match.expand(kernel) not in expected:
                continue
            way = state.get(match.expand(direction))
            if way is not None and length.dim() in (0, way.dim()):
                if any(one not in (1, size) for one, size in zip(length.shape, way.shape, strict=False)):
                    shapes = f"{key} of shape {list(length.shape)}, {match.expand(direction)} of {list(way.shape)}"
                    raise UserError(
                        f"weight norm can't be folded: {shapes}; each size of a length is 1 or the kernel's"
                    )
                if not (length.is_floating_point() and way.is_floating_point()):
                    raise UserError(f"weight norm can't be folded: {key} and its kernel must be floating-point numbers")
                dims = [d for d in range(way.dim()) if not length.dim() or length.shape[d] == 1]
                # without a dimension vector_norm takes the norm of everything: a vector's lengths are of single values
                norm = torch.linalg.vector_norm(way, dim=dims, keepdim=True) if dims else way.abs()
                del result[key], result[match.expand(direction)]
                result[match.expand(kernel)] = way * (length / norm)
    return result
