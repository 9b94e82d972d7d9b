"""Trials of a removal: whether a shrunk network computes what the masked one computes.

`settle` runs them and refuses the groups that fail. Its docstring says what no trial sees.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.cost import quiet
from pipeline.errors import first_line
from pipeline.networks import checkpoint, duplicate
from pipeline.networks.checkpoint import tensors
from pipeline.pruning.labels import owner
from pipeline.pruning.norms import Statistics, over_kept
from pipeline.pruning.removal import Coupling, Group, gone_indices, masked, remove, silence

Removals = dict[Group, Sequence[int]]
OTHER = "a forward that gives another result when channels go"
UNSEEN = "a trial in which the effect of its removal on the output can't be measured"
RUNS = 32  # in training, where chance may choose the way
FAILURES = (Exception, SystemExit)  # a forward may raise anything, and may even exit


def settle(
    network: nn.Module, example: torch.Tensor, candidates: dict[Group, str], idle: Sequence[str], statistics: Statistics
) -> tuple[list[Group], dict[Group, str]]:
    """Try removals, and refuse the groups whose removal the forward doesn't follow.

    A group behind sizes that may be numbers is tried by itself with several counts, because half sizes such as
    `channels // 2` follow some counts by luck. Then all groups are tried at once, and only if that fails one by one.
    Float64 sees what a group gets wrong even beside all others' effect (1.5e-8 of it); in float32, or with the
    network's own weights, whose scales may be 0, each group is judged by what it adds to the effect itself.
    Training mode is tried too, in case the forward takes another way there. idle: the layers that don't run in
    evaluation. With any, a larger image is tried as well; and where training runs them, it is tried 32 times, because
    chance may choose the way.

    Of channels that a normalisation takes its statistics over, the masked network leaves the removed ones out of these
    (`norms.over_kept`).

    What passes is tried with a loud image, with other buffers, with the network's own weights, and wherever the forward
    runs other operations at other sizes or with fewer channels (`second_look`). What no trial sees: a way that only
    sizes or counts between the tried ones take, one that an input's type or values choose beyond 65,536, and state
    outside of tensors (an attribute, a global, the clock, the process) that is another one later.
    """
    rng = torch.Generator().manual_seed(0)
    picture = torch.rand(example.shape, generator=rng).to(example)
    own = duplicate(network).eval().requires_grad_(False)
    found = rehearse(own, picture, rng)
    if found is None:
        return [], dict.fromkeys(candidates, "a trial of its removal that gives no finite output")
    trial, image, full, coarse = found
    tiny = shrunk(own, picture)
    doubtful = coarse or any(candidates.values())
    wobble = tremor(trial, image, full) if doubtful else 0.0
    batch = picture.repeat(2, 1, 1, 1)
    runs = RUNS if idle and wakes(own, batch, idle) else 1
    ways = [("in training", batch, seed) for seed in range(runs)]
    ways += [("on a larger image", picture.repeat(1, 1, 2, 2), 0)] if idle else []
    troubled: dict[int, bool] = {}  # ways that the whole network fails in too

    def failing(small: nn.Module) -> str:
        for number, way in enumerate(ways):
            text = failure(small, *way)
            if text and number not in troubled:
                troubled[number] = bool(failure(duplicate(own), *way))
            if text and not troubled[number]:
                return f"a forward that fails {text}"
        return ""

    def fault(removed: Removals, before: torch.Tensor = full, more: bool = True) -> tuple[str, torch.Tensor]:
        """Why the shrunk network doesn't do what the masked one does, or nothing; and the masked one's output.

        before: the output that the effect of this removal is counted from. more: whether to try a loud image and other
        buffers too.
        """
        coupling, indices = chosen(removed)
        whole = before
        with torch.no_grad():
            try:
                reference, small = masked(trial, coupling, indices), remove(trial, coupling, indices)
                over_kept(reference, statistics, indices)
                whole = reference(image.clone())
                made = small(image.clone())
            except FAILURES as error:  # whatever a forward may raise when its tensors are smaller
                return f"a forward that fails when channels go ({first_line(error)})", whole
        reason = difference(made, whole, before, wobble) if removed else ""
        if not reason and more and departs(reference, small, loud(tiny.to(image.dtype))):
            reason = OTHER
        lone = {name for name, buffer in trial.named_buffers() if buffer.numel() == 1}
        if not reason and more and alter(small, lone) and alter(reference, lone):
            silence(reference, coupling, indices)
            reason = OTHER if departs(reference, small, tiny.to(image.dtype)) else ""
        if not reason:
            reason = failing(cast(small, picture.dtype))
        return reason, whole

    refused = {}
    for group, doubt in candidates.items():
        if doubt:
            every = range(group.channels)
            tries = dict.fromkeys(tuple(part) for part in (every[::2], every[:1], every[-1:], every[1:]))
            seen = False
            for gone in tries:
                reason = fault({group: gone}, more=False)[0] if 0 < len(gone) < group.channels else UNSEEN
                seen = seen or not reason
                if reason not in ("", UNSEEN):
                    refused[group] = doubt
                    break
            if not seen and group not in refused and group.channels > 1:
                refused[group] = UNSEEN
    accepted: Removals = {group: range(0, group.channels - 1, 2) for group in candidates if group not in refused}
    if coarse or fault(accepted)[0]:
        wobble = wobble if doubtful else tremor(trial, image, full)
        tried, accepted, before = accepted, {}, full
        for group, gone in tried.items():
            reason, whole = fault(accepted | {group: gone}, before)
            if reason and len(gone):
                refused[group] = reason
            else:
                accepted[group], before = gone, whole
    for group in second_look(own, picture, tiny, trial, list(accepted), statistics):
        refused[group] = OTHER
        del accepted[group]
    return list(accepted), refused


def second_look(
    own: nn.Module,
    picture: torch.Tensor,
    tiny: torch.Tensor,
    trial: nn.Module,
    groups: list[Group],
    statistics: Statistics,
) -> set[Group]:
    """The groups whose removal the forward doesn't follow with its own weights, at other sizes or at other counts.

    Only what is wrong counts here, not whether an effect is seen: weights of a network's own may be 0.
    """
    refused: set[Group] = set()
    dtype = precision(trial)

    def unlike(removed: Removals, images: list[torch.Tensor]) -> bool:
        coupling, indices = chosen(removed)
        try:
            reference = cast(duplicate(own), dtype)
            silence(reference, coupling, indices)
            small = remove(reference, coupling, indices)
            over_kept(reference, statistics, indices)
        except FAILURES:  # a module's own copying may raise anything
            return True
        return any(departs(reference, small, image.to(dtype)) for image in images)

    def look(share: float, images: list[torch.Tensor]) -> None:
        removed: Removals = {group: spread(group, share) for group in groups if group not in refused}
        if unlike(removed, images):
            kept: Removals = {}
            for group, gone in removed.items():
                if len(gone) and unlike(kept | {group: gone}, images):
                    refused.add(group)
                else:
                    kept[group] = gone

    if not groups:
        return refused
    usual, precise = operations(own, tiny.shape), operations(trial, tiny.shape)
    look(1 / 3, [tiny / 256, loud(tiny), *(detours(own, picture, usual.names) if usual else [])])
    for share in counts(duplicate(own), tiny, groups, usual.steps) if usual else []:
        look(share, [tiny, loud(tiny)])
    if usual and precise and usual.names != precise.names:  # it takes another way in the type of its images
        dtype = picture.dtype
        look(1 / 2, [tiny, loud(tiny)])
    return refused


def chosen(removed: Removals) -> tuple[Coupling, dict[str, Sequence[int]]]:
    """A removal in the form that `masked` and `remove` take."""
    return Coupling(tuple(removed), ()), {group.name: gone for group, gone in removed.items()}


def spread(group: Group, share: float) -> list[int]:
    """That share of a group's channels, but never all of them, in an order of chance that is always the same."""
    order = random.Random(group.channels).sample(range(group.channels), group.channels)
    return sorted(order[: min(max(1, round(share * group.channels)), group.channels - 1)])


def departs(reference: nn.Module, small: nn.Module, image: torch.Tensor) -> bool:
    """Whether a shrunk network gives something else than the masked one; False where the masked one itself fails."""
    whole, made = result(reference, image), result(small, image)
    if whole is None:
        return False
    if made is None or made.shape != whole.shape or not torch.equal(made.isfinite(), whole.isfinite()):
        return True
    finite = whole.isfinite()
    if not finite.any():
        return False
    off = float((made - whole)[finite].abs().max())
    noise = 256 * torch.finfo(whole.dtype).eps * float(whole[finite].abs().max())
    return off > noise and not off <= 16 * tremor(reference, image, whole)


def loud(image: torch.Tensor) -> torch.Tensor:
    """The image with each column stronger than the one before, the last 65,536 times: white in 16 bits.

    Signals of unit size pass a clamp at 10 as if it weren't there.
    """
    return image * torch.logspace(0, 1, image.shape[-1], base=2.0**16).to(image)


def shrunk(own: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    """A corner of the picture, 8 pixels wide, where the network takes it: quick to compute."""
    corner = picture[..., :8, :8]
    return picture if result(own, corner) is None else corner


def alter(network: nn.Module, lone: set[str]) -> bool:
    """Give buffers other values in place, such as a gate that is 0 until training opens it; whether there are any.

    Each element by itself, so that it makes no difference whether others went. Whole numbers may be places in a table:
    of them only those of the buffers named, which hold one, such as a count of steps.
    """
    buffers = list(network.named_buffers())
    for name, buffer in buffers:
        if buffer.is_floating_point():
            buffer.copy_(0.5 + buffer.abs().clamp(max=1))
        elif buffer.dtype == torch.bool:
            buffer.logical_not_()
        elif name in lone:
            buffer.add_(10_000)
    return bool(buffers)


@functools.cache
def _described(func: Any) -> tuple[str, tuple[bool, ...]]:
    """An operation's name, and for each argument whether it may be a number, but for sizes."""
    return str(func), tuple(not str(argument.real_type).startswith("SymInt") for argument in func._schema.arguments)


class Operations(TorchDispatchMode):
    """Notes the operations that run, each with the numbers it is given beside tensors, but for sizes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.elements = most, 0  # elements: of all that the operations make
        self.names: list[str] = []
        self.steps: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, counted = _described(func)
        if len(self.names) == self.most:
            raise RuntimeError("more operations than a trial waits for")
        numbers = [
            repr(value)
            for value, counts in zip(args, counted, strict=False)
            if counts and all(isinstance(n, int | float) for n in (value if isinstance(value, list) else [value]))
        ]
        self.names.append(name)
        self.steps.append((name, *(numbers if any(isinstance(value, torch.Tensor) for value in args) else ())))
        made = func(*args, **(kwargs or {}))
        self.elements += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        return made


def operations(network: nn.Module, shape: Sequence[int]) -> Operations | None:
    """What runs for an image of this shape; None if the forward fails, or runs very many operations."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    image = torch.zeros(tuple(shape), dtype=precision(network), device=device)
    try:
        # As a context, a device makes every call slower.
        placed = contextlib.nullcontext() if device.type == "cpu" else device
        with quiet(), torch.no_grad(), placed, Operations(20_000) as seen:
            network(image)
    except FAILURES:  # whatever a forward may raise, more so without values
        return None
    return seen


def precision(network: nn.Module) -> torch.dtype:
    """The type of the network's real parameters, float32 without any."""
    return next((tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()), torch.float32)


def detours(own: nn.Module, picture: torch.Tensor, usual: list[str]) -> list[torch.Tensor]:
    """Images of the sizes at which the forward runs two operations in a row that aren't so among the usual ones.

    Sizes to 1,024 or more are looked at without computing values; at those where something new runs an image is tried,
    if that takes at most about 10^10 multiply-adds and makes at most 5 · 10^7 elements.
    """
    held = (leaf for module in own.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, torch.Tensor))
    shadow = copy.deepcopy(own, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in held})
    channels, height, width = picture.shape[1:]
    known, weights = set(pairwise(usual)), sum(tensor.numel() for tensor in own.parameters())

    def novel(shape: Sequence[int]) -> tuple[set[tuple[str, str]], int]:
        seen = operations(shadow, shape)
        return (set(pairwise(seen.names)) - known, seen.elements) if seen else (set(), 0)

    far = max(4, 1024 // min(height, width))
    shapes = [(1, channels, 3 * height, 7 * width)]
    if novel((16, channels, 2 * far * height, far * width))[0]:
        doubled = [2**n for n in range(far.bit_length())]
        shapes += [(16, channels, height, width), *((1, channels, 2 * k * height, k * width) for k in doubled)]
    found = []
    rng = torch.Generator().manual_seed(1)
    for shape in shapes:
        new, elements = novel(shape)
        if new:
            known |= new
            if weights * shape[0] * math.prod(shape[2:]) <= 10**10 and elements <= 5 * 10**7:
                found.append(torch.rand(shape, generator=rng).to(picture))
    return found


def counts(small: nn.Module, tiny: torch.Tensor, groups: list[Group], usual: list[tuple[str, ...]]) -> list[float]:
    """Shares of the groups' channels without which the forward runs other operations, or the same with other numbers.

    Of shares that lead to the same operations the first is given, and no more than eight. All counts of a small network
    are looked at, and fewer of one that runs many operations. The network is cut.
    """
    whole = checkpoint.shapes(small)
    tries = min(max(3, 300 // max(1, len(usual))), max(group.channels for group in groups) + 1)
    found: dict[tuple | None, float] = {}
    known = set()
    for share in (number / (tries - 1) for number in range(tries)):
        gone = tuple(len(spread(group, share)) for group in groups)
        if gone in known:
            continue
        known.add(gone)
        coupling, removed = chosen({group: range(count) for group, count in zip(groups, gone, strict=True)})
        kept = {
            name: {dim: list(range(whole[name][dim] - len(places))) for dim, places in dims.items()}
            for name, dims in gone_indices(coupling, removed).items()
        }
        checkpoint.resize(small, kept)
        seen = operations(small, tiny.shape)
        found.setdefault(tuple(seen.steps) if seen else None, share)
    found.pop(tuple(usual), None)
    return list(found.values())[:8]


def tremor(trial: nn.Module, image: torch.Tensor, full: torch.Tensor) -> float:
    """What an error of rounding in the image becomes in the output: products of products enlarge it without bound."""
    again = result(trial, image * (1 + 4 * torch.finfo(image.dtype).eps))
    if again is None or again.shape != full.shape:
        return float("inf")
    return float((again - full).nan_to_num(0.0).abs().max())


def difference(made: torch.Tensor, whole: torch.Tensor, before: torch.Tensor, wobble: float = 0.0) -> str:
    """What is wrong with the output of a shrunk network, beside that of the masked and of the unmasked one.

    Where the masked network's own output isn't finite (the logarithm of something negative), nothing is compared, but
    the shrunk one's mustn't be finite there either. wobble: what rounding is known to change in the output.
    """
    if made.shape != whole.shape or not torch.equal(made.isfinite(), whole.isfinite()):
        return OTHER
    finite = whole.isfinite()
    seen = finite & before.isfinite()
    if not seen.any():
        return UNSEEN
    eps = torch.finfo(whole.dtype).eps
    effect, size = float((whole - before)[seen].abs().max()), float(whole[finite].abs().max())
    noise = max(256 * eps * max(size, float(before[seen].abs().max())), 16 * wobble)  # of rounding in many layers
    if not float((made - whole)[finite].abs().max()) <= max(eps**0.5 * min(effect, size), noise):
        return OTHER
    return UNSEEN if min(effect, size) <= 16 * noise else ""  # also where the masked network's output fades


def rehearse(
    own: nn.Module, image: torch.Tensor, rng: torch.Generator
) -> tuple[nn.Module, torch.Tensor, torch.Tensor, bool] | None:
    """The network to try removals on, the image in its type, its output, and whether each group must be judged alone.

    New weights in float64, or else what the forward can take: float32, the network's own weights. Wholly finite outputs
    that aren't flat come first; None if no output has a finite value.
    """
    partial = None
    for drawn in (True, False):
        for dtype in dict.fromkeys((torch.float64, image.dtype)):
            try:
                trial = cast(duplicate(own), dtype)
            except FAILURES:  # a module's own way of changing its type
                continue
            full = scramble(trial, image.to(dtype), rng) if drawn else result(trial, image.to(dtype))
            if full is None or not full.isfinite().any():
                continue
            found = trial, image.to(dtype), full, not drawn or full.dtype != torch.float64
            if full.isfinite().all() and full.min() < full.max():
                return found
            partial = partial or found
    return partial


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with its real tensors in this type, float64 or float32; complex ones stay complex."""
    if all(tensor.dtype == dtype for tensor in tensors(network).values() if tensor.is_floating_point()):
        return network
    return network.double() if dtype == torch.float64 else network.float()


def scramble(trial: nn.Module, image: torch.Tensor, rng: torch.Generator) -> torch.Tensor | None:
    """Draw new weights; scale kernels one by one so that signals keep their size through depth (LSUV, Mishkin 2016).

    A scale that training starts from zero would hide a wrong result, and so would a bias beside a signal that fades. A
    kernel that is used several times is scaled for its first use. Returns the output for the image; None if it fails.
    """
    for tensor in trial.parameters():
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.dim() > 1 and len(tensor) > 1 else 1
            drawn = torch.randn(tensor.shape, generator=rng) / fan**0.5
            tensor.copy_(drawn if fan > 1 else torch.rand(tensor.shape, generator=rng) + 0.5)
    scaled: set[int] = set()
    reused = False

    def rescale(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal reused
        kernel, bias = layer.weight, layer.bias
        reused = reused or id(kernel) in scaled
        if id(kernel) in scaled or not isinstance(kernel, nn.Parameter):  # a computed kernel can't be scaled
            return None
        scaled.add(id(kernel))
        shift = 0 if bias is None else bias.view(-1, *[1] * (kernel.dim() - 2))
        size = float((output - shift).square().mean().sqrt())
        if not 0 < size < float("inf"):
            return None
        kernel.div_(size)
        return (output - shift) / size + shift

    layers = [module for module in trial.modules() if isinstance(module, (_ConvNd, nn.Linear))]
    hooks = [layer.register_forward_hook(rescale) for layer in layers]
    made = result(trial, image)
    for hook in hooks:
        hook.remove()
    return result(trial, image) if made is None or reused else made


def result(network: nn.Module, image: torch.Tensor) -> torch.Tensor | None:
    """The output for a copy of the image; None if the forward fails."""
    with torch.no_grad():
        try:
            return network(image.clone())
        except FAILURES:  # whatever a forward may raise in this type
            return None


def failure(network: nn.Module, way: str, images: torch.Tensor, seed: int) -> str:
    """How a network fails in training, or on another image; empty if it doesn't. The random state stays as it was."""
    state = random.getstate()
    with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            network.train(way == "in training")(images.clone())
        except FAILURES as error:  # whatever a forward may raise when its tensors are smaller
            return f"{way} when channels go ({first_line(error)})"
        finally:
            random.setstate(state)
    return ""


class Uses(TorchDispatchMode):
    """Notes whether an operation takes one of these tensors, or a view of one."""

    def __init__(self, watched: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.memory = {tensor.untyped_storage().data_ptr() for tensor in watched}
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        dense = (leaf for leaf in given if leaf.layout == torch.strided)
        self.seen = self.seen or any(leaf.untyped_storage().data_ptr() in self.memory for leaf in dense)
        return func(*args, **(kwargs or {}))


def wakes(network: nn.Module, images: torch.Tensor, idle: Sequence[str]) -> bool:
    """Whether training uses a parameter of these layers in one of 32 runs, or fails in one; a PReLU may never run."""
    whole = duplicate(network)
    watched = [tensor for name, tensor in whole.named_parameters() if owner(name) in idle]
    if any(tensor.layout != torch.strided for tensor in watched):  # no memory to watch
        return True
    with Uses(watched) as uses:
        return any(failure(whole, "in training", images, seed) or uses.seen for seed in range(RUNS))
