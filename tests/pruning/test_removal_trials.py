"""The trial of a removal: no depth, no infinite value and no fixed kernel lets a wrong removal through."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import topologies
import torch
import torch.nn.functional as F
from removals import EXAMPLE, assert_equals_mask, check
from topologies import Frame, Residual, conv
from torch import Tensor, nn

from pipeline.networks import duplicate
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.rehearsal import quake, scramble, tremor
from pipeline.pruning.removal import Coupling, Group, remove
from pipeline.pruning.trials import OTHER, UNSEEN, departs, difference, uneven


class Halves(nn.Module):
    """Half of the channels get another activation; how many that are doesn't follow a removal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, 8), conv(8, width)

    def forward(self, x: Tensor) -> Tensor:
        left, right = topologies.in_halves(self.first(x), "outside slice")
        return self.second(torch.cat([torch.tanh(left), right], 1))


class Product(nn.Module):
    """x times two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.left(x) * self.right(x)


class Gate(nn.Module):
    """A convolution of the product of two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.leave = conv(width, 6), conv(width, 6), conv(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.left(x) * self.right(x))


class Beside(nn.Module):
    """A shallow branch beside a trunk."""

    def __init__(self, branch: nn.Module, trunk: nn.Module) -> None:
        super().__init__()
        self.branch, self.trunk = branch, trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x) + self.branch(x)


def norm() -> nn.Module:
    return Residual(conv(8, 5), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 8), nn.BatchNorm2d(8))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Residual(conv(8, 8), nn.ReLU()),
    "two layers": lambda: Residual(conv(8, 5), nn.ReLU(), conv(5, 8)),
    "batch norm": norm,
    "no residual": lambda: nn.Sequential(conv(8, 8), nn.ReLU()),
    "gated": lambda: Residual(Gate(8)),
    "product": lambda: Residual(Product(8)),
    "bare product": lambda: Product(8),
}


def deep(kind: str, blocks: int, place: str, suspect: Callable[[int], nn.Module] = Halves) -> nn.Module:
    """Channels that a forward treats by number, before a deep trunk, beside or after it."""
    torch.manual_seed(0)
    trunk = nn.Sequential(*(BLOCKS[kind]() for _ in range(blocks)))
    if place == "beside":
        return Frame(8, Beside(suspect(8), trunk))
    return Frame(8, nn.Sequential(*[Residual(suspect(8)), trunk][:: 1 if place == "before" else -1]))


def made_by(coupling: Coupling, layer: str) -> list[str]:
    return [group.name for group in coupling.groups if layer in group.name]


@pytest.mark.parametrize(
    ("kind", "blocks", "place"),
    [
        # Each of the first four passed a trial in float32 with a tolerance relative to the largest output.
        ("product", 8, "before"),
        ("bare product", 8, "before"),
        ("plain", 28, "beside"),
        ("plain", 64, "beside"),
        ("two layers", 100, "beside"),
        ("batch norm", 24, "beside"),
        ("no residual", 64, "before"),
        ("gated", 24, "beside"),
        ("product", 24, "beside"),
        ("bare product", 100, "before"),
        ("product", 48, "after"),
    ],
)
def test_depth_does_not_hide_channels_that_a_forward_treats_by_number(kind: str, blocks: int, place: str) -> None:
    coupling = find_groups(deep(kind, blocks, place), EXAMPLE)
    assert not made_by(coupling, "first")
    assert [sentence for sentence in coupling.frozen if ".first can't be removed because of" in sentence]


@pytest.mark.parametrize(
    ("kind", "blocks", "place"),
    [
        ("two layers", 48, "beside"),
        ("batch norm", 24, "before"),
        ("no residual", 100, "before"),
        ("gated", 24, "beside"),
    ],
)
def test_depth_costs_no_group_that_follows(kind: str, blocks: int, place: str) -> None:
    network = deep(kind, blocks, place, lambda width: nn.Sequential(conv(width, 8), nn.Tanh(), conv(8, width)))
    coupling = find_groups(network, EXAMPLE)
    assert coupling.frozen == ()
    assert_equals_mask(network, coupling, {group.name: [0] for group in coupling.groups})


def test_a_signal_keeps_its_size_through_layers_that_are_used_once_twice_or_share_a_kernel() -> None:
    trial = topologies.random_network(0)
    for part in (topologies.Twice(8, 4), topologies.Tied(8, 4), Gate(8), nn.Sequential(*[conv(8, 8)] * 24)):
        trial = Frame(8, nn.Sequential(*[part] * 4)).double().requires_grad_(False)
        for parameter in trial.parameters():
            parameter.mul_(1e-3)
        image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
        made = scramble(trial, image, torch.Generator().manual_seed(0))
        out = trial(image)
        assert torch.allclose(made, out, rtol=1e-9)
        assert 0.1 < float(out.std()) < 1e6


def test_the_outputs_of_a_trial_are_judged_by_the_removals_own_effect_and_where_they_are_finite() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, torch.nan], dtype=torch.float64)
    whole = torch.tensor([1.0, 2.0, 3.01, torch.nan], dtype=torch.float64)
    off = torch.tensor([0.0, 0.0, 1e-6, 0.0], dtype=torch.float64)
    assert difference(whole, whole, before) == ""
    assert difference(whole + off, whole, before) == OTHER  # of an effect of 1e-2
    assert difference(whole[:3], whole, before) == OTHER
    assert difference(torch.nan_to_num(whole), whole, before) == OTHER
    assert difference(whole, torch.nan_to_num(whole), before) == OTHER
    assert difference(before, before, before) == UNSEEN  # nothing seen, nothing shown
    assert difference(0 * whole, 0 * whole, before) == UNSEEN  # zero beside zero
    assert difference(whole / 0, whole / 0, before) == UNSEEN  # infinite beside infinite
    assert difference(whole.float() + off.float(), whole.float(), before.float()) == ""  # rounding of float32
    assert difference(whole.float() + 1e3 * off.float(), whole.float(), before.float()) == OTHER


class Ending(nn.Module):
    """Two layers and something at the end."""

    def __init__(self, end: Callable[[Tensor], Tensor], middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.middle, self.last, self.end = conv(3, 8), middle or nn.Identity(), conv(8, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.middle(self.first(x))))


@pytest.mark.parametrize(
    "end",
    [
        torch.log,  # not a number in half of all places
        lambda y: (y - 100).clamp(min=0).log(),  # infinite for weights that are drawn, and for its own
        lambda y: y.clamp(0, 1),
        lambda y: (255 * y).round() / 255,
        torch.exp,
        lambda y: y / y.amax(dim=(2, 3), keepdim=True),
    ],
    ids=["log", "nothing finite", "clamp", "round", "exp", "divide"],
)
def test_an_end_that_is_partly_infinite_or_flat_costs_no_group_unless_it_shows_nothing(
    end: Callable[[Tensor], Tensor], request: pytest.FixtureRequest
) -> None:
    coupling = find_groups(Ending(end), EXAMPLE)
    if request.node.callspec.id == "nothing finite":
        reason = "a trial of its removal that gives no finite output"
        assert coupling.frozen == (f"channels of first can't be removed because of {reason}",)
    else:
        assert [group.name for group in coupling.groups] == ["first"]
    middle = Residual(Halves(8))
    assert not made_by(find_groups(Ending(end, middle), EXAMPLE), "middle.body.0.first")


def test_an_end_that_new_weights_leave_flat_is_tried_with_the_networks_own() -> None:
    network = Ending(lambda y: (y - 40).clamp(0, 20), Residual(Halves(8)))
    nn.init.constant_(network.last.bias, 50.0)
    coupling = find_groups(network, EXAMPLE)
    assert [group.name for group in coupling.groups] == ["first+1"]
    assert len(coupling.frozen) == 1


def test_a_removal_that_shows_nothing_is_refused_for_that_reason() -> None:
    coupling = find_groups(Ending(lambda y: y * 0 + 1, Residual(Halves(8))), EXAMPLE)
    assert coupling.groups == ()
    assert {sentence.partition(" can't be removed because of ")[2] for sentence in coupling.frozen} == {UNSEEN}


class Single(nn.Module):
    """A forward that runs in float32 alone; a small branch, whose fault a large one could cover."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.side = nn.Sequential(conv(3, 6), conv(6, 3)), nn.Sequential(conv(3, 6), conv(6, 3))
        self.wrong, self.odd = conv(3, 8), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.lerp(torch.zeros_like(x, dtype=torch.float32), 0.25)  # of two types it fails
        y = self.wrong(x)
        y = y * (1 + 0.5 * y.shape[1] / 8)
        return self.trunk(x) + 1e-2 * self.side(x) + 1e-2 * self.odd(y)


def test_a_forward_in_float32_alone_has_each_group_judged_by_its_own_effect() -> None:
    coupling = find_groups(Single(), EXAMPLE)
    assert [group.name for group in coupling.groups] == ["trunk.0", "side.0"]
    assert coupling.frozen == (f"channels of wrong can't be removed because of {OTHER}",)


def test_a_forward_that_changes_its_input_in_place_keeps_its_groups() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(3, 6), conv(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.sub_(0.5))

    assert len(find_groups(InPlace(), EXAMPLE).groups) == 1


def still(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def said(module: nn.Module) -> nn.Module:
    """As RCAN's MeanShift has it: an attribute of the module, which changes no parameter."""
    module.requires_grad = False
    return module


class Mixed(nn.Module):
    """Colours mixed by a kernel that is no layer's parameter, or along the last dimension."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(3, 3))
        self.layer, self.way = still(nn.Linear(3, 3)), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "linear":
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.way == "einsum":
            return torch.einsum("oc,nchw->nohw", self.kernel, x)
        return F.conv2d(x, self.kernel[:, :, None, None] if self.way == "computed" else self.kernel.view(3, 3, 1, 1))


class Shifted(nn.Module):
    """Fixed layers around a trained network, as EDSR-PyTorch, CARN and RCAN have them."""

    def __init__(self, head: nn.Module, tail: nn.Module, inputs: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.sub, self.add = head, tail
        self.head, self.body, self.tail = conv(inputs, 8), topologies.residual(8, 6), conv(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.tail(self.body(self.head(self.sub(x)))))


def shift() -> nn.Module:
    return still(nn.Conv2d(3, 3, 1))


SHIFTS: dict[str, Callable[[], nn.Module]] = {
    "mean shift": lambda: Shifted(shift(), shift()),
    "said by the module": lambda: Shifted(said(nn.Conv2d(3, 3, 1)), said(nn.Conv2d(3, 3, 1))),
    "two of them": lambda: Shifted(nn.Sequential(shift(), nn.ReLU(), shift()), nn.Sequential(shift(), shift())),
    "depthwise": lambda: Shifted(still(conv(3, 3, groups=3)), still(conv(3, 3, groups=3))),
    "linear": lambda: Shifted(Mixed("linear"), Mixed("linear")),
    "buffer": lambda: Shifted(Mixed("buffer"), nn.Sequential(Mixed("computed"), shift())),
    "einsum": lambda: Shifted(Mixed("einsum"), nn.Sequential(shift(), Mixed("einsum"))),
    "transposed": lambda: Shifted(shift(), still(nn.ConvTranspose2d(3, 3, 4, 2, 1))),
    "transposed depthwise": lambda: Shifted(shift(), still(nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3))),
    "space to depth": lambda: Shifted(
        still(nn.Conv2d(3, 12, 2, 2)), nn.Sequential(nn.PixelShuffle(2), shift()), inputs=12, outputs=12
    ),
}


@pytest.mark.parametrize("form", SHIFTS)
def test_colours_behind_fixed_layers_are_the_images_and_named(form: str) -> None:
    network = SHIFTS[form]()
    coupling = find_groups(network, EXAMPLE)
    assert [(group.name, group.channels) for group in coupling.groups] == [("head+1", 8), ("body.body.0", 6)]
    assert [sentence for sentence in coupling.frozen if "tail" in sentence and "can't be removed" in sentence]
    small = remove(network, coupling, {group.name: range(1, group.channels) for group in coupling.groups})
    before, after = dict(network.named_parameters()), dict(small.named_parameters())
    inside = ("head.", "body.", "tail.")
    assert {name: t.shape for name, t in after.items() if not name.startswith(inside)} == {
        name: t.shape for name, t in before.items() if not name.startswith(inside)
    }
    assert (small.head.in_channels, small.tail.out_channels) == (network.head.in_channels, network.tail.out_channels)


def test_a_fixed_layer_between_features_is_pruned_with_them() -> None:
    network = Shifted(shift(), shift())
    still(network.body)
    assert [group.name for group in check(network).groups] == ["head+1", "body.body.0"]


def test_what_a_user_has_frozen_up_to_the_image_is_named_in_one_sentence() -> None:
    network = Shifted(shift(), shift())
    still(network.head)
    coupling = find_groups(network, EXAMPLE)
    reason = "kernels that training doesn't change (sub, add, head), through which they are the image's"
    assert [group.name for group in coupling.groups] == ["body.body.0"]
    assert coupling.frozen == (f"channels of sub, head, body.body.2, tail, add can't be removed because of {reason}",)

    coupling = find_groups(still(topologies.edsr()), EXAMPLE)
    assert coupling.groups == ()
    assert len(coupling.frozen) == 1
    assert "end" in coupling.frozen[0]


class Middle(nn.Module):
    """Two layers, and what the forward does between them; `state` is kept as buffers."""

    def __init__(
        self, way: Callable[[nn.Module, Tensor, Tensor], Tensor], channels: int = 8, **state: Tensor | nn.Parameter
    ) -> None:
        super().__init__()
        self.first, self.last, self.way = conv(3, channels), conv(channels, 3), way
        for name, value in state.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self, x, self.first(x)))


def half(y: Tensor, change: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
    return torch.cat([change(y[:, :4]), y[:, 4:]], 1)


def outside() -> int:
    return 8


def whole(y: Tensor) -> Tensor:
    if y.shape[1] < 8:
        raise ValueError("not all channels are here")
    return y


UNLIKE: dict[str, Callable[[], nn.Module]] = {
    # what signals of unit size don't reach
    "clamp at 10": lambda: Middle(lambda m, x, y: half(y, lambda part: part.clamp(-10, 10))),
    "clamp at 1000": lambda: Middle(lambda m, x, y: half(y, lambda part: part.clamp(-1000, 1000))),
    "clamp of a large weight": lambda: Middle(lambda m, x, y: half(255 * y, lambda part: part.clamp(max=6000))),
    # what only some sizes of images meet
    "large": lambda: Middle(lambda m, x, y: half(y) if x.shape[2] > 64 else y),
    "very wide": lambda: Middle(lambda m, x, y: half(y) if x.shape[3] > 100 else y),
    "many pixels": lambda: Middle(lambda m, x, y: half(y) if x.shape[2] * x.shape[3] > 10_000 else y),
    "upright": lambda: Middle(lambda m, x, y: half(y) if x.shape[2] > x.shape[3] else y),
    "lying": lambda: Middle(lambda m, x, y: half(y) if x.shape[2] < x.shape[3] else y),
    "in a batch": lambda: Middle(lambda m, x, y: half(y) if len(x) > 1 else y),
    "panorama": lambda: Middle(lambda m, x, y: half(y) if x.shape[3] > 2 * x.shape[2] else y),
    "in a batch of ten": lambda: Middle(lambda m, x, y: half(y) if len(x) >= 10 else y),
    # what the picture of a trial isn't
    "dark": lambda: Middle(lambda m, x, y: torch.where(x.mean() < 0.1, half(y), y)),
    "bright": lambda: Middle(lambda m, x, y: torch.where(x.mean() > 0.9, half(y), y)),
    "in float32": lambda: Middle(lambda m, x, y: half(y) if x.dtype == torch.float32 else y),
    # what only some counts of channels meet
    **{
        f"{count} of 8": lambda count=count: Middle(lambda m, x, y: torch.tanh(y) if y.shape[1] == count else y)
        for count in range(1, 8)
    },
    "50 of 64": lambda: Middle(lambda m, x, y: torch.tanh(y) if y.shape[1] == 50 else y, 64),
    "fewer than 64": lambda: Middle(lambda m, x, y: torch.tanh(y) if y.shape[1] < 64 else y, 64),
    "a factor": lambda: Middle(lambda m, x, y: y * (2 if y.shape[1] == 3 else 1)),
    "a window": lambda: Middle(lambda m, x, y: F.max_pool2d(y, *((3, 1, 1) if y.shape[1] == 3 else (1, 1, 0)))),
    # what only some sizes and counts together meet
    "large, its count": lambda: Middle(lambda m, x, y: y * (1 / (y.shape[1] if x.shape[2] > 64 else 20))),
    "large, fewer than 8": lambda: Middle(lambda m, x, y: torch.tanh(y) if y.shape[1] < 8 and len(y[0, 0]) > 64 else y),
    "panorama, its count": lambda: Middle(lambda m, x, y: y * (y.shape[1] if x.shape[3] > 2 * x.shape[2] else 2)),
    "large, one image": lambda: Middle(lambda m, x, y: y * y.shape[1] if len(x) == 1 and x.shape[2] >= 160 else y),
    "large, its factor": lambda: Middle(
        lambda m, x, y: torch.add(y, y, alpha=y.shape[1] / 8 if x.shape[2] > 64 else 1.0)
    ),
    "large, its fill": lambda: Middle(
        lambda m, x, y: y * torch.full((1, 1, 1, 1), y.shape[1] / 8 if x.shape[2] > 64 else 1.0)
    ),
    "large, beside a value": lambda: Middle(
        lambda m, x, y: y * m.value.item() * (y.shape[1] if x.shape[2] > 64 else 8), value=torch.tensor(0.5)
    ),
    "large, cancelled": lambda: Middle(lambda m, x, y: y * y.shape[1] / (outside() if x.shape[2] > 64 else y.shape[1])),
    "large, behind a loop": lambda: Middle(
        lambda m, x, y: torch.cat([part.relu() for part in y.split(1, 1)], 1) * (y.shape[1] if x.shape[2] > 64 else 8)
    ),
    "large, fails": lambda: Middle(lambda m, x, y: whole(y) if x.shape[2] > 64 else y),
    "large, heavy": lambda: Middle(lambda m, x, y: y * y.shape[1] if x.shape[2] >= 32 else y, 2_048),
    # what other values of a buffer or a parameter open
    "gate": lambda: Middle(lambda m, x, y: y + m.gate * (half(y) - y), gate=torch.zeros(1)),
    "switch": lambda: Middle(lambda m, x, y: torch.where(m.gate, half(y), y), gate=torch.tensor(False)),
    "steps": lambda: Middle(lambda m, x, y: torch.where(m.gate > 100, half(y), y), gate=torch.tensor(0)),
    "still": lambda: Middle(
        lambda m, x, y: y + m.gate * (half(y) - y), gate=nn.Parameter(torch.zeros(1), requires_grad=False)
    ),
}


@pytest.mark.parametrize("form", UNLIKE)
def test_what_another_signal_size_count_or_buffer_would_change_keeps_its_channels(form: str) -> None:
    torch.manual_seed(0)
    coupling = find_groups(UNLIKE[form](), torch.zeros(1, 3, 16, 16))
    assert coupling.groups == ()
    assert len(coupling.frozen) == 1
    assert coupling.frozen[0].startswith("channels of first can't be removed because of ")


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x, y: F.interpolate(y, size=x.shape[2:]) if x.shape[2] > 64 else y,
        lambda m, x, y: torch.cat([y[:, :, :8], y[:, :, 8:]], 2) if x.shape[2] > 8 else y,
        lambda m, x, y: torch.cat([torch.tanh(part) for part in y.split(8, 2)], 2),  # more operations in larger images
        lambda m, x, y: y / y.shape[1] * 8 if y.shape[1] == 8 else y,
        lambda m, x, y: y / y.shape[1] * (y.shape[1] * x.shape[2]) / x.shape[2],  # other numbers in larger images
        lambda m, x, y: torch.exp(y),  # infinite where an image is loud
        lambda m, x, y: y.clamp(-10, 10),
        lambda m, x, y: (255 * y).round() / 255,
        lambda m, x, y: y * m.gate,
        lambda m, x, y: torch.sin(1e3 * y),
    ],
    ids=["resized", "two strips", "strips", "own count", "own count and size", "exp", "clamp", "round", "gate", "sine"],
)
def test_ways_that_treat_all_channels_alike_cost_no_group(way: Callable) -> None:
    torch.manual_seed(0)
    network = Middle(way, gate=torch.ones(1))
    assert [group.name for group in find_groups(network, torch.zeros(1, 3, 16, 16)).groups] == ["first"]


def test_one_group_that_fails_at_another_count_or_size_costs_the_others_nothing() -> None:
    class Both(nn.Module):
        def __init__(self, way: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.before, self.odd, self.after = nn.Sequential(conv(3, 6), conv(6, 3)), Middle(way), conv(3, 6)
            self.end = conv(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.after(self.odd(self.before(x))))

    for form in ("clamp at 10", "large", "5 of 8", "in a batch"):
        torch.manual_seed(0)
        coupling = find_groups(Both(UNLIKE[form]().way), torch.zeros(1, 3, 16, 16))
        assert [group.name for group in coupling.groups] == ["before.0", "before.1", "odd.last", "after"]
        assert [sentence for sentence in coupling.frozen if sentence.startswith("channels of odd.first can't")]


def test_whatever_a_forward_raises_with_fewer_channels_keeps_them() -> None:
    for error in (KeyError("w"), SystemExit(3), StopIteration(), ZeroDivisionError(), RuntimeError("two\nlines")):

        def way(module: nn.Module, x: Tensor, y: Tensor, error: BaseException = error) -> Tensor:
            if y.shape[1] < 8:
                raise error
            return y

        coupling = find_groups(Middle(way), EXAMPLE)
        assert coupling.groups == ()
        assert "\n" not in coupling.frozen[0]


def test_state_that_counts_calls_keeps_the_channels_and_a_module_that_refuses_a_type_is_tried_in_its_own() -> None:
    calls = [0]

    def counted(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return half(y) if calls[0] % 2 else y

    assert find_groups(Middle(counted), EXAMPLE).groups == ()

    class Fixed(Middle):
        def _apply(self, *args: object) -> nn.Module:
            raise NotImplementedError

    assert [group.name for group in find_groups(Fixed(lambda m, x, y: y), EXAMPLE).groups] == ["first"]


def test_a_whole_number_for_each_channel_costs_nothing_where_one_channel_is_left() -> None:
    network = Middle(lambda m, x, y: y * m.steps[:, None, None], channels=2, steps=torch.tensor([2, 3]))
    assert [group.name for group in find_groups(network, EXAMPLE).groups] == ["first"]


def test_a_part_without_channels_is_followed_no_further() -> None:
    coupling = find_groups(Middle(lambda m, x, y: y + y[:, 8:].flatten(1).sum()), EXAMPLE)
    assert [group.name for group in coupling.groups] == ["first"]
    assert find_groups(Middle(lambda m, x, y: y + y[:, None].diff(dim=1).flatten(1, 2).sum()), EXAMPLE).groups == ()


@torch.no_grad()
def test_rounding_behind_a_choice_of_codes_is_no_other_result_and_an_error_is() -> None:
    """No error of rounding in the image passes the choice, and a difference of large numbers enlarges those behind."""

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes, self.first, self.second = nn.Parameter(torch.randn(5, 3)), conv(3, 8), conv(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            nearest = (x.permute(0, 2, 3, 1).unsqueeze(-2) - self.codes).square().sum(-1).argmin(-1)
            y = 3e3 * self.second(self.first(self.codes[nearest].permute(0, 3, 1, 2)).tanh())
            return y[:, :3] - y[:, 3:]

    torch.manual_seed(0)
    network, image = Codes().double(), torch.rand(1, 3, 8, 8, dtype=torch.float64)
    network.second.weight[3:] = network.second.weight[:3] + torch.randn(3, 8, 3, 3) / 3e3
    network.second.bias[3:] = network.second.bias[:3]
    turned = duplicate(network)  # the same sums in another order
    order = torch.randperm(8)
    turned.first.weight.copy_(network.first.weight[order])
    turned.first.bias.copy_(network.first.bias[order])
    turned.second.weight.copy_(network.second.weight[:, order])
    whole = network(image)
    off = float((turned(image) - whole).abs().max())
    assert off > 256 * torch.finfo(torch.float64).eps * float(whole.abs().max())
    assert tremor(network, image, whole) == 0
    assert quake(network, image, whole) > off / 16
    assert not departs(network, turned, image)
    turned.first.bias[0] += 1e-4
    assert departs(network, turned, image)


def test_steps_of_a_rounding_hide_no_wrong_removal() -> None:
    """Halved levels lie on ties: an error of rounding in the weights moves them by a whole step."""

    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(3, 20), conv(20, 3)
            self.halves = nn.Conv2d(3, 3, 1, bias=False)
            nn.init.dirac_(self.halves.weight)
            with torch.no_grad():
                self.halves.weight.mul_(0.5)
                self.last.weight.mul_(0.1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            if x.shape[2] > 64:
                y = y.abs() / y.shape[1]
            return torch.round(self.halves(torch.round(x * 255))) / 255 + self.last(y)

    torch.manual_seed(1)
    assert find_groups(Ties(), torch.zeros(1, 3, 48, 48)).groups == ()


def test_a_forward_that_fails_on_a_small_image_alone_keeps_its_channels() -> None:
    def way(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return y + torch.linspace(0, 1, 8).to(y).view(1, -1, 1, 1) if x.shape[2] < 16 else y

    torch.manual_seed(0)
    assert find_groups(Middle(way), torch.zeros(1, 3, 48, 48)).groups == ()


def test_a_norm_that_a_small_image_leaves_a_single_value_costs_no_group() -> None:
    """Eight pixels become one; two channels in two groups, of which each loses one, would be a value each."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.inner, self.norm = nn.Conv2d(3, 6, 8, 8), conv(6, 4), nn.GroupNorm(2, 4)
            self.up = nn.ConvTranspose2d(4, 3, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.up(F.silu(self.norm(self.inner(self.down(x)))))

    torch.manual_seed(0)
    coupling = find_groups(Deep(), torch.zeros(1, 3, 16, 16), norms=True)
    assert [group.name for group in coupling.groups] == ["down", "inner"]


class Wide(nn.Module):
    """Two convolutions behind each other; `way` makes of a convolution and its input what goes on."""

    def __init__(self, way: Callable[[nn.Conv2d, Tensor], Tensor], *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(*sides) for sides in pairwise(widths))
        self.last, self.way = conv(widths[-1], 3), way

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.way(layer, x)
        return self.last(x)


def test_a_gain_by_the_counts_of_two_layers_keeps_their_channels() -> None:
    """Where all layers lose the same share, it stays what it was."""

    def way(layer: nn.Conv2d, x: Tensor) -> Tensor:
        gain = 1.0 if layer.in_channels == 3 else (layer.out_channels / layer.in_channels) ** 0.5  # the image's stay 3
        return F.silu(layer(x)) * gain

    torch.manual_seed(0)
    assert find_groups(Wide(way, 3, 8, 8, 8), torch.zeros(1, 3, 16, 16)).groups == ()


def test_a_residual_that_runs_where_two_counts_are_equal_keeps_the_channels_that_could_become_so() -> None:
    def way(layer: nn.Conv2d, x: Tensor) -> Tensor:
        made = F.silu(layer(x))
        return made + x if made.shape[1] == x.shape[1] else made

    torch.manual_seed(0)
    network = Wide(way, 3, 8, 12, 16, 8)
    coupling = find_groups(network, torch.zeros(1, 3, 16, 16))
    assert [group.name for group in coupling.groups] == ["layers.3"]
    for count in range(1, 8):
        assert_equals_mask(network, coupling, {"layers.3": range(count)})


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_any_two_groups_lose_different_shares_in_one_of_the_uneven_removals(number: int) -> None:
    groups = [Group(f"{place}", 8, ()) for place in range(number)]
    removals = [[len(parts[group]) for group in groups] for parts in uneven(groups)]
    for first, second in combinations(range(number), 2):
        assert any(gone[first] != gone[second] for gone in removals)
    for place in range(number):
        assert any(gone[place] for gone in removals)
        assert all(gone[place] < 8 for gone in removals)
