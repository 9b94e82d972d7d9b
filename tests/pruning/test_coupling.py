"""Which channels go together, and that a smaller network computes what the original computes without them."""

from __future__ import annotations

import copy
import random

import pytest
import topologies
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from removals import EXAMPLE, check, random_removal
from torch import nn

from pipeline.errors import UserError
from pipeline.networks import build
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import Coupling, kept_indices, masked, narrow, remove


def summary(coupling: Coupling) -> dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]]:
    return {group.name: (group.channels, group.producers, group.readers) for group in coupling.groups}


def places(coupling: Coupling, group: str, tensor: str) -> tuple[tuple[int, ...], ...]:
    return next(s.index for g in coupling.groups if g.name == group for s in g.slots if s.tensor == tensor)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 2**16))
def test_random_networks_compute_the_same_when_channels_go(seed: int) -> None:
    coupling = check(topologies.random_network(seed), seed)
    # Every part has its handlers, so a trial that fails outside of the parts with written sizes is a wrong label.
    assert not [sentence for sentence in coupling.frozen if "a forward that" in sentence]


def test_edsr_has_one_trunk_one_group_in_each_block_and_whole_pixel_shuffle_channels() -> None:
    coupling = check(topologies.edsr())
    trunk = ("head", *(f"blocks.{i}.body.2" for i in range(3)), "end")
    readers = (*(f"blocks.{i}.body.0" for i in range(3)), "end", "up.0")
    assert summary(coupling) == {
        "head+4": (6, trunk, readers),
        **{f"blocks.{i}.body.0": (5, (f"blocks.{i}.body.0",), (f"blocks.{i}.body.2",)) for i in range(3)},
        "up.0": (6, ("up.0",), ("tail",)),
    }
    assert places(coupling, "up.0", "up.0.weight")[1] == (4, 5, 6, 7)
    assert places(coupling, "up.0", "tail.weight")[1] == (1,)
    assert coupling.frozen == ()


def test_unet_skips_are_read_by_two_layers_and_nothing_else_is_coupled() -> None:
    coupling = check(topologies.UNet())
    assert summary(coupling) == {
        "down.0": (4, ("down.0",), ("down.1", "merge.1")),
        "down.1": (6, ("down.1",), ("down.2", "merge.0")),
        "down.2": (8, ("down.2",), ("up.0",)),
        "up.0": (6, ("up.0",), ("merge.0",)),
        "merge.0": (6, ("merge.0",), ("up.1",)),
        "up.1": (4, ("up.1",), ("merge.1",)),
        "merge.1": (4, ("merge.1",), ("last",)),
    }
    assert places(coupling, "down.0", "merge.1.weight") == ((4,), (5,), (6,), (7,))  # after the four upsampled ones
    assert next(slot.dim for g in coupling.groups if g.name == "up.0" for slot in g.slots if slot.role == "output") == 1
    assert coupling.frozen == ()


def test_batch_norm_and_per_channel_prelu_shrink_while_a_shared_slope_stays() -> None:
    network = topologies.srresnet()
    coupling = check(network)
    small = remove(network, coupling, {"blocks.0.body.0": [0, 3], "head+3": [1]})
    body = small.blocks[0].body
    assert (body[1].num_features, body[2].num_parameters, body[3].in_channels) == (3, 3, 3)
    assert [tuple(t.shape) for t in (body[1].running_mean, body[1].running_var, body[2].weight)] == [(3,)] * 3
    assert (body[4].num_features, body[5].num_parameters) == (5, 1)


@pytest.mark.parametrize("form", ["conv", "linear"])
def test_channel_attention_joins_the_channels_it_scales(form: str) -> None:
    coupling = check(topologies.rcan(form))
    groups = summary(coupling)
    gates = [f"blocks.{i}.body.3.gate" for i in range(2)]
    assert list(groups) == ["head+5", "blocks.0.body.0", f"{gates[0]}.0", "blocks.1.body.0", f"{gates[1]}.0", "up.0"]
    assert groups[f"{gates[0]}.0"] == (3, (f"{gates[0]}.0",), (f"{gates[0]}.2",))
    trunk = groups["head+5"]
    assert {f"{gates[0]}.2", f"{gates[1]}.2"} <= set(trunk[1])
    assert {f"{gates[0]}.0", f"{gates[1]}.0"} <= set(trunk[2])
    assert coupling.frozen == ()


def test_dense_blocks_give_each_layer_its_own_channels() -> None:
    coupling = check(topologies.Frame(4, topologies.Dense(4, (2, 3))))
    assert summary(coupling) == {
        "enter+1": (4, ("enter", "part.fuse"), ("part.layers.0", "part.layers.1", "part.fuse", "leave")),
        "part.layers.0": (2, ("part.layers.0",), ("part.layers.1", "part.fuse")),
        "part.layers.1": (3, ("part.layers.1",), ("part.fuse",)),
    }
    assert places(coupling, "part.layers.1", "part.fuse.weight") == ((6,), (7,), (8,))


@pytest.mark.parametrize(("form", "mask"), [("matmul", False), ("einsum", False), ("sdpa", False), ("sdpa", True)])
def test_heads_go_whole_however_an_attention_is_written(form: str, mask: bool) -> None:
    coupling = check(topologies.Frame(4, topologies.Attention(4, form, mask)))
    assert summary(coupling) == {
        "enter+1": (4, ("enter", "part.project"), ("part.qkv", "leave")),
        "part.qkv": (3, ("part.qkv",), ("part.project",)),
    }
    assert places(coupling, "part.qkv", "part.heads") == ((0,), (1,), (2,))
    assert coupling.frozen == ()


def test_channels_that_an_einsum_scales_go_by_themselves() -> None:
    network = topologies.Frame(5, topologies.Scaled(5))
    coupling = check(network)
    assert summary(coupling) == {"enter": (5, ("enter",), ("leave",))}
    assert remove(network, coupling, {"enter": [1, 2]}).part.scale.shape == (3,)


@pytest.mark.parametrize(
    ("equation", "of"),
    [("nchw,oc->nohw", 2), ("nchw,ndhw->ncd", 4), ("...c,...c->...c", 4), ("nchw->nhwc", 4), ("nccw,nccw->nw", 4)],
)
def test_an_einsum_that_mixes_channels_or_is_written_otherwise_is_named(equation: str, of: int) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.rand(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            others = (self.mix if of == 2 else x,) if "," in equation else ()
            return x + torch.einsum(equation, x, *others).sum()

    coupling = find_groups(topologies.Frame(8, Mixed()).eval(), EXAMPLE)
    assert coupling.groups == ()
    assert "the operation einsum in part (Mixed)" in coupling.frozen[0]


@pytest.mark.parametrize("form", ["operation", "transpose", "permute"])
def test_shuffled_channels_go_with_those_at_their_place_in_other_parts(form: str) -> None:
    coupling = check(topologies.Frame(12, topologies.Shuffled(form)))
    assert summary(coupling) == {"enter": (4, ("enter",), ("leave",))}
    assert places(coupling, "enter", "enter.weight")[1] == (1, 5, 9)
    assert places(coupling, "enter", "leave.weight")[1] == (3, 4, 5)


def test_channels_whose_pixels_change_places_by_an_index_go_by_themselves() -> None:
    coupling = check(topologies.Frame(4, topologies.Picked()))
    assert summary(coupling) == {"enter": (4, ("enter",), ("leave",))}
    assert coupling.frozen == ()


@pytest.mark.parametrize("index", [[3, 0, 1, 2], [True, False, True, True]], ids=["places", "mask"])
def test_channels_in_an_order_that_a_list_gives_stay_whole(index: list) -> None:
    class Ordered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x[:, index].sum(1, keepdim=True)

    coupling = find_groups(topologies.Frame(4, Ordered()).eval(), EXAMPLE)
    assert coupling.groups == ()
    assert "the operation index in part (Ordered)" in coupling.frozen[0]


def test_depthwise_convolutions_join_what_they_read_and_make() -> None:
    network = topologies.mobilenet()
    coupling = check(network)
    assert summary(coupling) == {
        "enter+1": (6, ("enter", "part.0"), ("part.3",)),
        "part.3+1": (8, ("part.3", "part.5"), ("part.6",)),
        "part.6": (6, ("part.6",), ("leave",)),
    }
    assert places(coupling, "part.3+1", "part.5.weight")[2] == (4, 5)
    small = remove(network, coupling, {"part.3+1": [2, 7]})
    assert (small.part[5].groups, small.part[5].in_channels, small.part[5].out_channels) == (6, 6, 12)


def test_a_whole_conv_group_is_one_channel() -> None:
    network = topologies.grouped()
    coupling = check(network)
    assert {name: group[0] for name, group in summary(coupling).items()} == {"enter+1": 4, "part.2+1": 4, "part.4": 12}
    assert places(coupling, "enter+1", "enter.weight")[1] == (3, 4, 5)
    assert places(coupling, "enter+1", "part.0.weight")[1] == (2, 3)
    up = remove(network, coupling, {"part.2+1": [0]}).part[3]
    assert (up.groups, up.in_channels, up.out_channels, tuple(up.weight.shape)) == (3, 9, 6, (9, 2, 2, 2))


@pytest.mark.parametrize("gate", ["chunk", "derived"])
def test_the_halves_of_a_gate_go_pairwise(gate: str) -> None:
    coupling = check(topologies.Frame(6, topologies.Gated(6, 3, gate)))
    assert summary(coupling)["part.expand+2"] == (
        3,
        ("part.expand", "part.depth", "part.attention"),
        ("part.attention", "part.project"),
    )
    assert places(coupling, "part.expand+2", "part.expand.weight") == ((0, 3), (1, 4), (2, 5))
    assert ("part.beta", "channel") in [(slot.tensor, slot.role) for slot in coupling.groups[0].slots]
    assert coupling.frozen == ()


def test_chunk_keeps_its_parts_equal_where_they_are_read_apart() -> None:
    coupling = check(topologies.Frame(6, topologies.Distill(6, "chunk")))
    assert places(coupling, "part.first", "part.first.weight") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert coupling.frozen == ()


@pytest.mark.parametrize("form", ["numbers", "slice"])
def test_channels_split_by_numbers_of_a_forward_go_by_themselves(form: str) -> None:
    coupling = check(topologies.Frame(6, topologies.Distill(6, form)))
    assert summary(coupling) == {
        "enter+1": (6, ("enter", "part.fuse"), ("part.first", "leave")),
        "part.first#1": (4, ("part.first",), ("part.fuse",)),
        "part.first#2": (4, ("part.first",), ("part.second",)),
        "part.second": (4, ("part.second",), ("part.fuse",)),
    }
    assert coupling.frozen == ()


def test_channels_split_by_numbers_of_a_function_stay_and_are_named() -> None:
    coupling = check(topologies.Frame(6, topologies.Distill(6, "outside")))
    assert list(summary(coupling)) == ["enter+1", "part.second"]
    assert coupling.frozen == (
        "channels of part.first can't be removed because of the sizes in split_with_sizes in part (Distill), "
        "which don't follow a removal",
    )


def test_a_slice_that_starts_at_a_number_and_runs_to_the_end_can_lose_channels() -> None:
    # x[:, :4] would fill up from the second half when a channel of the first goes; x[:, 4:] just gets shorter.
    coupling = check(topologies.Frame(6, topologies.Distill(6, "outside slice")))
    assert [group.readers for group in coupling.groups if group.producers == ("part.first",)] == [("part.second",)]
    assert len(coupling.frozen) == 1
    assert coupling.frozen[0].startswith(
        "channels of part.first can't be removed because of the sizes in slice in part (Distill)"
    )


def test_halves_that_only_follow_some_counts_stay_whole() -> None:
    # With one channel of the first half gone, 7 // 2 = 3 is right by luck; with two gone, 6 // 2 = 3 is not.
    coupling = check(topologies.Frame(6, topologies.Distill(6, "derived")))
    assert list(summary(coupling)) == ["enter+1", "part.second"]
    assert len(coupling.frozen) == 1


def test_a_module_that_is_called_twice_joins_both_calls() -> None:
    coupling = check(topologies.Frame(6, topologies.Twice(6, 4)))
    assert summary(coupling)["part.enter+1"] == (4, ("part.enter", "part.shared"), ("part.shared", "part.leave"))


def test_a_kernel_with_two_names_shrinks_under_both_and_stays_shared() -> None:
    network = topologies.Frame(6, topologies.Tied(6, 4))
    coupling = check(network)
    removed = {"part.enter+2": [1]}
    small = remove(network, coupling, removed)
    assert small.part.second.weight is small.part.first.weight
    kept = kept_indices(network, coupling, removed)
    assert kept["part.first.weight"] == kept["part.second.weight"] == {0: [0, 2, 3], 1: [0, 2, 3]}


def test_a_norm_over_channels_freezes_the_channels_and_is_named() -> None:
    part = topologies.Residual(topologies.LayerNorm2d(6), topologies.conv(6, 4), topologies.conv(4, 6))
    coupling = check(topologies.Frame(6, part))
    assert list(summary(coupling)) == ["part.body.1"]
    assert len(coupling.frozen) == 1
    assert coupling.frozen[0].startswith(
        "channels of enter, part.body.2 can't be removed because of the operation mean in"
    )


class Stranger(nn.Module):
    """Something no table of operations lists."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Stranger(), "cumsum in part.1 (Stranger)"),
        (nn.GroupNorm(2, 4), "group_norm in part.1 (GroupNorm)"),
        (nn.Softmax(dim=1), "softmax in part.1 (Softmax)"),
    ],
)
def test_an_operation_that_mixes_channels_or_is_unknown_freezes_and_is_named(part: nn.Module, named: str) -> None:
    network = topologies.Frame(4, nn.Sequential(topologies.conv(4, 4), part, topologies.conv(4, 4)))
    coupling = check(network)
    assert list(summary(coupling)) == ["enter", "part.2"]
    assert len(coupling.frozen) == 1
    assert coupling.frozen[0].startswith("channels of part.0 can't be removed")
    assert named in coupling.frozen[0]


class Written(nn.Module):
    """A forward with its sizes and its branches written in various ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second = topologies.conv(3, 4), topologies.conv(4, 3)
        self.loose = nn.Parameter(torch.full((4, 4), 0.5))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.way == "view":
            x = x.view(-1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape[0], 4, *x.shape[2:])
        elif self.way == "constant":
            x = x + torch.ones(1, 4, 1, 1)
        elif self.way == "matrix":
            x = torch.einsum("nchw,cd->ndhw", x, self.loose)
        elif self.way == "kernel":
            x = F.conv2d(x, self.loose[:, :, None, None])
        elif self.way == "own kernel":
            x = x * self.first.weight.mean()
        elif self.way == "count":
            x = x / x.shape[1]
        elif self.way == "assertion":
            assert x.shape[1] == 4
        elif self.way == "values" and x.sum() > 0:
            x = -x
        return self.second(x)


@pytest.mark.parametrize("way", ["view", "constant", "matrix", "kernel", "own kernel", "count", "assertion"])
def test_a_forward_that_does_not_follow_a_removal_keeps_its_channels_and_says_so(way: str) -> None:
    coupling = check(Written(way))
    assert coupling.groups == ()
    assert any(sentence.startswith("channels of first can't be removed because of ") for sentence in coupling.frozen)


def test_a_layer_that_starts_from_zero_does_not_hide_a_forward_that_does_not_follow() -> None:
    network = Written("count")
    nn.init.zeros_(network.second.weight)
    assert find_groups(network, EXAMPLE).groups == ()


def test_a_forward_that_branches_on_values_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"the network Written can't be traced .*must not branch on the values"
    ) as error:
        find_groups(Written("values"), EXAMPLE)
    assert "\n" not in str(error.value)


def test_channels_of_the_network_input_and_output_stay() -> None:
    for network in (
        nn.Sequential(topologies.conv(3, 3)),
        nn.Sequential(topologies.conv(3, 3, groups=3), topologies.conv(3, 12), nn.PixelShuffle(2)),
        topologies.Residual(topologies.conv(3, 3), nn.ReLU()),
    ):
        assert find_groups(network, EXAMPLE) == Coupling((), ())


def test_a_layer_that_serves_two_families_gives_two_groups_with_distinct_names() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = (topologies.conv(3, outputs) for outputs in (6, 3, 3))
            self.out = topologies.conv(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.both(x) * torch.cat([self.left(x), self.right(x)], 1))

    coupling = check(Halves())
    assert summary(coupling) == {
        "both+1#1": (3, ("both", "left"), ("out",)),
        "both+1#2": (3, ("both", "right"), ("out",)),
    }
    assert places(coupling, "both+1#2", "both.weight") == ((3,), (4,), (5,))


def test_find_groups_leaves_the_network_as_it_was() -> None:
    network = topologies.srresnet().train()
    before = copy.deepcopy(network.state_dict())
    generator = torch.get_rng_state()
    find_groups(network, EXAMPLE)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(generator, torch.get_rng_state())


def test_remove_and_mask_copy_and_the_small_network_trains() -> None:
    network = topologies.edsr()
    coupling = find_groups(network, EXAMPLE)
    before = copy.deepcopy(network.state_dict())
    removed = {group.name: [0] for group in coupling.groups}
    small = remove(network, coupling, removed)
    masked(network, coupling, removed)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    small(torch.rand(1, 3, 8, 8)).mean().backward()
    assert all(parameter.grad is not None and parameter.is_contiguous() for parameter in small.parameters())


def test_kept_indices_rebuild_the_small_network_from_the_whole_one() -> None:
    network = topologies.grouped()
    coupling = find_groups(network, EXAMPLE)
    removed = random_removal(coupling, random.Random(3))
    state = network.state_dict()
    for name, dims in kept_indices(network, coupling, removed).items():
        for dim, kept in dims.items():
            state[name] = state[name].index_select(dim, torch.tensor(kept))
    small = remove(network, coupling, removed).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.items())
    assert any(tensor.shape != network.state_dict()[name].shape for name, tensor in small.items())


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"blocks.0.body.0": range(5)}, "group blocks.0.body.0 would lose all of its 5 channels"),
        ({"blocks.0.body.0": [5]}, "channels 0 to 4, so 5 can't be removed"),
        ({"blocks.0.body.0": [-1]}, "so -1 can't be removed"),
        ({"tail": [0]}, "no removable group is named 'tail'"),
    ],
)
def test_impossible_removals_are_refused(removed: dict, message: str) -> None:
    network = topologies.edsr()
    coupling = find_groups(network, EXAMPLE)
    for refuse in (remove, masked, kept_indices):
        with pytest.raises(ValueError, match=message):
            refuse(network, coupling, removed)
    with pytest.raises(ValueError, match=message):
        narrow(coupling, removed)


def test_the_networks_of_the_paper_have_the_groups_the_paper_prunes() -> None:
    edsr = find_groups(build("edsr", {"blocks": 16, "channels": 64}), torch.zeros(1, 3, 16, 16))
    inner = [group for group in edsr.groups if len(group.slots) == 3 and group.readers != ("tail",)]
    assert sum(group.channels for group in inner) == 1024
    assert (edsr.groups[0].channels, len(edsr.groups[0].producers), len(edsr.groups)) == (64, 18, 18)
    sid = find_groups(build("sid", {"base": 4}), torch.zeros(1, 4, 17, 16))
    assert len(sid.groups) == 22  # 18 convolutions and 4 transposed ones; the last one makes the output
    assert edsr.frozen == sid.frozen == ()


def test_sids_transposed_convolutions_lose_their_biases_with_their_channels() -> None:
    network = build("sid", {"base": 4, "upsample_bias": True}).double().eval()
    for up in network.upsample:
        torch.nn.init.normal_(up.bias)
    example = torch.rand(1, 4, 17, 16, dtype=torch.float64)
    coupling = find_groups(network, example)
    assert (len(coupling.groups), coupling.frozen) == (22, ())
    removed = {group.name: [0] for group in coupling.groups}
    smaller = remove(network, coupling, removed)
    assert smaller.upsample[0].bias.shape == (31,)
    assert torch.allclose(smaller(example), masked(network, coupling, removed)(example), atol=1e-12)
