"""Weight norm folded into plain kernels, whose channels can be removed.

Weight norm computes a kernel from a direction and a length. The folded network computes the same, and trains on by the
kernel itself. Other kernels that are computed (spectral norm, which training changes at each step) stay as they are.

Source: Salimans and Kingma, Weight Normalization (NIPS 2016).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from pipeline.errors import UserError

# the names of a length, and of the direction and the kernel that belong to it, of torch's old weight norm and its new
LENGTHS = (
    (re.compile(r"(.*)_g"), r"\1_v", r"\1"),
    (re.compile(r"(.*)parametrizations\.(\w+)\.original0"), r"\1parametrizations.\2.original1", r"\1\2"),
)
_SAID: set[str] = set()


def fold(name: str, network: nn.Module) -> None:
    """Make kernels under weight norm plain, in place. A line on stderr says so, once for a network of this name."""
    layers = 0
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            chains = module.parametrizations.items()  # type: ignore[union-attr, operator]
            for tensor in [key for key, chain in chains if [type(one) for one in chain] == [_WeightNorm]]:
                trained = module.parametrizations[tensor].original1.requires_grad  # type: ignore[union-attr, index]
                parametrize.remove_parametrizations(module, tensor)
                value = getattr(module, tensor)  # a parameter or not, by what the state of autograd is
                delattr(module, tensor)
                module.register_parameter(tensor, nn.Parameter(value.detach(), trained))
                layers += 1
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                trained = getattr(module, f"{hook.name}_v").requires_grad
                remove_weight_norm(module, hook.name)
                getattr(module, hook.name).requires_grad_(trained)
                layers += 1
    if layers and name not in _SAID:
        _SAID.add(name)
        print(f"network '{name}': weight norm of {layers} kernels is folded into them", file=sys.stderr)


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
