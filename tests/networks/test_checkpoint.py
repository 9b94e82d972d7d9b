"""A pruned network comes back from its file as it was, without the pruner, and a bad file never runs or half exists."""

from __future__ import annotations

import copy
import errno
import itertools
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from payload import Payload
from torch import nn

from pipeline.errors import UserError
from pipeline.networks import build, checkpoint
from pipeline.networks.checkpoint import Kept

ARGS = {"blocks": 2, "channels": 6}
KEPT: Kept = {
    "body.1.conv1.weight": {0: [0, 2, 5]},
    "body.1.conv1.bias": {0: [0, 2, 5]},
    "body.1.conv2.weight": {1: [0, 2, 5]},
}


def pruned() -> nn.Module:
    network = build("edsr", ARGS)
    checkpoint.resize(network, KEPT)
    return network


def write(path: Path, **changes: Any) -> Path:
    """A good checkpoint with some of its keys replaced, or left out where the change is None."""
    checkpoint.save(path, pruned(), "edsr", ARGS, KEPT)
    content = torch.load(path, weights_only=True)
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def toy(monkeypatch: pytest.MonkeyPatch, factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make a factory importable as toy:network."""
    module = ModuleType("toy")
    module.network = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", module)
    return factory


def message(path: Path, name: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, name)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_resizing_keeps_the_named_channels_in_place() -> None:
    whole = build("edsr", ARGS)
    network = copy.deepcopy(whole)
    checkpoint.resize(network, KEPT)
    old, new = whole.body[1], network.body[1]
    assert torch.equal(new.conv1.weight, old.conv1.weight[[0, 2, 5]])
    assert torch.equal(new.conv1.bias, old.conv1.bias[[0, 2, 5]])
    assert torch.equal(new.conv2.weight, old.conv2.weight[:, [0, 2, 5]])
    assert (new.conv1.in_channels, new.conv1.out_channels) == (6, 3)
    assert (new.conv2.in_channels, new.conv2.out_channels) == (3, 6)
    assert all(isinstance(tensor, nn.Parameter) and tensor.requires_grad for tensor in new.parameters())
    assert torch.equal(network.head.weight, whole.head.weight)


def test_resizing_updates_grouped_transposed_and_per_channel_modules() -> None:
    network = nn.Sequential(
        nn.Conv2d(6, 9, 1, groups=3),
        nn.BatchNorm2d(9),
        nn.PReLU(9),
        nn.ConvTranspose2d(9, 6, 2, groups=3),
        nn.ConvTranspose2d(6, 4, 2),
        nn.PReLU(),
    )
    middle = [0, 1, 2, 6, 7, 8]  # the second of three groups goes
    kept: Kept = {name: {0: middle} for name in ("0.weight", "0.bias", "2.weight", "3.weight")}
    kept |= {f"1.{name}": {0: middle} for name in ("weight", "bias", "running_mean", "running_var")}
    kept |= {"3.bias": {0: [0, 1, 4, 5]}, "4.weight": {0: [0, 1, 4, 5], 1: [3, 1]}, "4.bias": {0: [3, 1]}}
    whole = copy.deepcopy(network).eval()
    checkpoint.resize(network, kept)
    grouped, norm, prelu, grouped_up, up, single = network
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 6, 2)
    assert norm.num_features == prelu.num_parameters == 6
    assert (grouped_up.in_channels, grouped_up.out_channels, grouped_up.groups) == (6, 4, 2)
    assert (up.in_channels, up.out_channels, single.num_parameters) == (4, 2, 1)

    # The smaller network computes what the whole one does once nothing of the second group gets through.
    nn.init.zeros_(whole[4].weight[2:4])
    image = torch.rand(1, 6, 3, 3)
    assert torch.allclose(network.eval()(image[:, [0, 1, 4, 5]]), whole(image)[:, [3, 1]], atol=1e-6)


def test_resizing_a_depthwise_layer_leaves_one_group_a_channel() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    checkpoint.resize(network, {"0.weight": {0: [1, 3]}, "0.bias": {0: [1, 3]}})
    assert (network[0].in_channels, network[0].out_channels, network[0].groups) == (2, 2, 2)


def test_resizing_takes_the_same_number_from_every_group() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2))
    checkpoint.resize(network, {"0.weight": {0: [0, 1, 3, 4], 1: [1]}, "0.bias": {0: [0, 1, 3, 4]}})
    assert (network[0].in_channels, network[0].out_channels, network[0].groups) == (2, 4, 2)
    assert network(torch.rand(1, 2, 2, 2)).shape == (1, 4, 2, 2)


def test_resizing_keeps_shared_tensors_shared() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    network[1].weight = network[0].weight
    checkpoint.resize(network, {"0.weight": {0: [0, 2], 1: [0, 2]}})
    assert network[1].weight is network[0].weight
    assert network[1].in_channels == 2


def test_a_pruned_network_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network = pruned().eval()
    extra = {"psnr": np.float64(31.5), "steps": np.int64(3), "names": ("a", "b"), "best": None, "done": True}
    checkpoint.save(tmp_path / "net.pt", network, "edsr", ARGS, KEPT, extra)
    loaded, metadata = checkpoint.load(tmp_path / "net.pt", "edsr")
    image = torch.rand(1, 3, 9, 8)
    assert torch.equal(loaded(image), network(image))
    assert not loaded.training
    assert metadata == {
        "name": "edsr",
        "args": ARGS,
        "kept": KEPT,
        "extra": {"psnr": 31.5, "steps": 3, "names": ["a", "b"], "best": None, "done": True},
    }


def test_a_pruned_u_net_comes_back(tmp_path: Path) -> None:
    network = build("sid", {"base": 4})
    kept: Kept = {
        "upsample.3.weight": {1: [1, 2]},
        "decoder.3.conv1.weight": {1: [1, 2, 4, 5, 6, 7]},
        "encoder.4.conv1.weight": {0: [0, 63]},
        "encoder.4.conv1.bias": {0: [0, 63]},
        "encoder.4.conv2.weight": {1: [0, 63]},
    }
    checkpoint.resize(network, kept)
    checkpoint.save(tmp_path / "net.pt", network.eval(), "sid", {"base": 4}, kept)
    loaded, _ = checkpoint.load(tmp_path / "net.pt")
    image = torch.rand(1, 4, 17, 12)
    assert torch.equal(loaded(image), network(image))
    assert loaded.upsample[3].out_channels == 2


def test_precision_is_kept(tmp_path: Path) -> None:
    network = pruned().double()
    checkpoint.save(tmp_path / "net.pt", network, "edsr", ARGS, KEPT)
    loaded, _ = checkpoint.load(tmp_path / "net.pt")
    assert torch.equal(loaded.head.weight, network.head.weight)
    assert loaded.head.weight.dtype == torch.float64


def test_what_is_neither_a_network_nor_its_name_runs_no_code_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    toy(monkeypatch, lambda: made.append(1) or nn.Conv2d(3, 3, 3))
    checkpoint.save(tmp_path / "toy.pt", nn.Conv2d(3, 3, 3), "toy:network", {}, {})
    made.clear()
    for wrong, kind in ((nn.Conv2d, "the class Conv2d"), (3, "int")):
        with pytest.raises(UserError, match=rf"toy.pt is loaded into a network that is built, or by .* not {kind}"):
            checkpoint.load(tmp_path / "toy.pt", wrong)  # type: ignore[arg-type]
    assert not made
    assert checkpoint.load(f"{tmp_path}/toy.pt", "toy:network")[1]["name"] == "toy:network"


def test_a_network_is_loaded_into_what_dataparallel_or_compile_made_of_the_whole_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "pruned.pt", pruned(), "edsr", ARGS, KEPT)
    for wrapped in (nn.DataParallel(build("edsr", ARGS)), torch.compile(build("edsr", ARGS))):
        network, _ = checkpoint.load(tmp_path / "pruned.pt", wrapped)
        assert network.body[1].conv1.out_channels == 3


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "net.pt", pruned(), "edsr", ARGS, KEPT)
    before = torch.get_rng_state()
    checkpoint.load(tmp_path / "net.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_contents_give_equal_bytes_whatever_the_name(tmp_path: Path) -> None:
    network = pruned()
    twin = build("edsr", ARGS)
    checkpoint.resize(twin, KEPT)
    twin.load_state_dict(network.state_dict())
    shared = [0, 2, 5]
    kept: Kept = {"".join(list(name)): {dim: shared for dim in KEPT[name]} for name in reversed(KEPT)}
    label = "long label"
    checkpoint.save(tmp_path / "a.pt", network, "edsr", ARGS, KEPT, {"x": label, "y": label})
    (tmp_path / "other").mkdir()
    rebuilt = {"y": "".join(["long ", "label"]), "x": "".join(["long", " label"])}
    checkpoint.save(tmp_path / "other" / "much_longer_name.bin", twin, "edsr", dict(ARGS), kept, rebuilt)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other" / "much_longer_name.bin").read_bytes()


def test_the_file_holds_no_more_than_the_kept_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(monkeypatch, lambda: nn.Conv2d(1, 2, 1, bias=False))
    network = nn.Conv2d(1, 2, 1, bias=False)
    network.weight = nn.Parameter(torch.rand(500_000, 1, 1, 1)[:2])  # a view of 2 MB
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {})
    assert (tmp_path / "net.pt").stat().st_size < 10_000


def test_loading_needs_no_pruner(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "net.pt", pruned(), "edsr", ARGS, KEPT)
    code = (
        "import sys; sys.modules['pipeline.pruning'] = None\n"
        "from pathlib import Path; from pipeline.networks import checkpoint\n"
        f"checkpoint.load(Path({str(tmp_path / 'net.pt')!r}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('pipeline.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ["errors", "files", "networks", "networks.branches", "networks.checkpoint", "networks.edsr"]
    modules += ["networks.folded", "networks.literals", "networks.outputs", "networks.rebuilt", "networks.sizes"]
    modules += ["pruning"]  # None
    assert done.stdout.strip() == str([f"pipeline.{module}" for module in modules])


def test_another_network_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt")
    assert message(path, "sid") == f"{path} holds a checkpoint of 'edsr', but 'sid' is asked for"


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "it_ran"
    if legacy:
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save({"format": "pruned network 1", "name": Payload(trace)}, path)
    assert "a file of plain tensors" in message(path)
    assert not trace.exists()
    # The payload is live: an unguarded reader runs it.
    torch.load(path, weights_only=False) if not legacy else pickle.loads(path.read_bytes())
    assert trace.exists()


def test_a_factory_named_by_a_file_does_not_run_unasked(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    path = write(tmp_path / "evil.pt", name="os:mkdir", args={"path": str(trace)})
    assert "'os:mkdir'" in message(path)
    assert not trace.exists()


def test_a_factory_loads_when_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_toy = toy(monkeypatch, lambda width: nn.Sequential(nn.Conv2d(3, width, 1)))
    network = build_toy(4)
    kept: Kept = {"0.weight": {0: [3]}, "0.bias": {0: [3]}}
    checkpoint.resize(network, kept)
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {"width": 4}, kept)
    loaded, _ = checkpoint.load(tmp_path / "net.pt", "toy:network")
    assert torch.equal(loaded[0].weight, network[0].weight)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", pickle.dumps([1, 2]), b"\x80\x02}"])
def test_a_foreign_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    assert "a file of plain tensors" in message(path)


def test_a_cut_or_changed_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt")
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "a file of plain tensors" in message(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "absent.pt")
    assert "can't be read" in message(tmp_path)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"format": None}, ["'format'"]),
        ({"format": "pruned network 99"}, ["'format'"]),
        ({"name": None}, ["'name'", "missing"]),
        ({"state_dict": None}, ["'state_dict'", "missing"]),
        ({"kept": []}, ["'kept'", "wrong type"]),
        ({"kept": {"head.weight": [1]}}, ["'kept'"]),
        ({"kept": {"tale.weight": {0: [1]}}}, ["'tale.weight'"]),
        ({"kept": {"head.weight": {4: [1]}}}, ["'head.weight'", "dimension 4"]),
        ({"kept": {"head.weight": {0: [6]}}}, ["'head.weight'", "0 to 5"]),
        ({"kept": {"head.weight": {0: [1, 1]}}}, ["'head.weight'", "different"]),
        ({"kept": {"head.weight": {0: []}}}, ["'head.weight'"]),
        ({"kept": {"head.weight": {True: [0, 1, 2]}}}, ["'head.weight'", "dimension True"]),
        ({"kept": {"head.weight": {0: [False, True]}}}, ["'head.weight'", "different"]),
        ({"kept": {}}, ["'body.1.conv1.weight'", "(3, 6, 3, 3)", "(6, 6, 3, 3)"]),
        ({"args": {"blocks": 1, "channels": 6}}, ["'body.1.conv1.bias'", "does not have"]),
        ({"args": {"depth": 1}}, ["'depth'"]),
        ({"args": {3: 1}}, ["'args'"]),
        ({"name": "edrs"}, ["'edrs'"]),
        ({"state_dict": {}}, ["lacks 'mean'"]),
        ({"state_dict": {"mean": 3}}, ["'state_dict'"]),
        ({"state_dict": {"mean": torch.nested.nested_tensor([torch.zeros(3)])}}, ["'state_dict'"]),
    ],
)
def test_inconsistent_contents_are_named(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    text = message(write(tmp_path / "net.pt", **changes))
    assert [part for part in parts if part not in text] == []


def test_a_surplus_tensor_is_named(tmp_path: Path) -> None:
    state = {**pruned().state_dict(), "spare": torch.zeros(1)}
    assert "'spare'" in message(write(tmp_path / "net.pt", state_dict=state))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    checkpoint.save(path, pruned(), "edsr", ARGS, KEPT)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        checkpoint.save(path, pruned(), "edsr", ARGS, KEPT)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "folder.pt"
    (occupied / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"folder\.pt"):
        checkpoint.save(occupied, pruned(), "edsr", ARGS, KEPT)
    assert list(tmp_path.iterdir()) == [occupied]


def test_saving_refuses_what_would_not_load(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with pytest.raises(ValueError, match=r"'body\.1\.conv1\.weight'"):
        checkpoint.save(path, build("edsr", ARGS), "edsr", ARGS, KEPT)
    with pytest.raises(ValueError, match=r"extra\.when"):
        checkpoint.save(path, pruned(), "edsr", ARGS, KEPT, {"when": object()})
    assert not path.exists()


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    args = {"blocks": 1, "channels": 2}
    checkpoint.save(path, build("edsr", args), "edsr", args, {}, {"psnr": 31.5})
    whole, written = path.read_bytes(), checkpoint.load(path)
    directory = whole.index(b"PK\x01\x02")  # flips in it make torch read other bytes than those that were summed
    places = [random.Random(0).sample(range(8 * len(whole)), 300), range(8 * directory + 300, 8 * directory + 420)]
    refused = 0
    for place in itertools.chain(*places):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            network, metadata = checkpoint.load(path)
        except UserError:
            refused += 1
            continue
        assert metadata == written[1]
        for key, value in written[0].state_dict().items():
            assert torch.equal(network.state_dict()[key], value), (place, key)
    assert refused > 100


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.full((6, 3, 3, 3), 1e38), "must be finite and at most 1e+15, but holds 1e+38"),
        (torch.full((6, 3, 3, 3), float("nan")), "holds infinite values or NaN"),
        (torch.full((6, 3, 3, 3), -float("inf")), "holds infinite values or NaN"),
        (torch.ones(6, 3, 3, 3, dtype=torch.int64), "holds torch.int64 where torch.float32 is expected"),
        (torch.ones(6, 3, 3, 3, dtype=torch.bool), "holds torch.bool where"),
        (torch.ones(6, 3, 3, 3, dtype=torch.complex64), "holds torch.complex64 where"),
        (torch.ones(6, 3, 3, 3).to(torch.float8_e4m3fn), "holds torch.float8_e4m3fn where torch.float32 is expected"),
        (torch.ones(6, 3, 3, 3).to_sparse(), "must be a dense tensor"),
    ],
)
def test_weights_that_no_network_has_are_refused_by_name(tmp_path: Path, tensor: torch.Tensor, said: str) -> None:
    state = {**pruned().state_dict(), "head.weight": tensor}
    text = message(write(tmp_path / "net.pt", state_dict=state))
    assert "'head.weight'" in text
    assert said in text
    if tensor.layout == torch.strided and tensor.dtype == torch.float32:
        network = pruned()
        network.head.weight.data = tensor
        with pytest.raises(UserError, match=r"new\.pt isn't written: 'head\.weight' must be finite"):
            checkpoint.save(tmp_path / "new.pt", network, "edsr", ARGS, KEPT)
        assert not (tmp_path / "new.pt").exists()


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked() -> nn.Module:
        network = nn.Conv2d(3, 3, 1)
        network.register_buffer("mask", torch.full((2, 2), -float("inf")).triu(1))
        return network

    network = toy(monkeypatch, masked)()
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {})
    assert torch.equal(checkpoint.load(tmp_path / "net.pt", "toy:network")[0].mask, network.mask)


@pytest.mark.parametrize(
    "trace",
    [
        "text",
        {"shape": [1, 3, 9]},
        {"shape": [1, 3, 10**9, 9], "values": [0.5]},
        {"shape": [4096, 3, 4096, 4096], "values": [0.5]},  # 800 GB
        {"shape": [1, 3, 4096, 4096], "values": [0.5]},
        {"shape": [1, 3, 48, 48], "values": [math.nan] * 64},
        {"shape": [1, 3, 48, 48], "values": [0.5, math.inf]},
    ],
)
def test_a_trace_that_is_none_is_named(tmp_path: Path, trace: Any) -> None:
    assert "key 'trace' must hold" in message(write(tmp_path / "net.pt", trace=trace))


def test_what_is_saved_of_a_large_example_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LARGEST_TRACED", 3 * 48 * 48 - 1)
    checkpoint.save(tmp_path / "net.pt", pruned(), "edsr", ARGS, KEPT)
    checkpoint.load(tmp_path / "net.pt", "edsr")


def test_a_stages_checkpoint_that_is_inconsistent_names_the_stage_and_another_network_doesnt(tmp_path: Path) -> None:
    path = tmp_path / "results" / "train" / "edsr" / "network.pt"
    path.parent.mkdir(parents=True)
    for changes in ({"format": "none"}, {"kept": {"a": {0: [0]}}}, {"state_dict": {}}, {"trace": 3}):
        assert message(write(path, **changes)).endswith("; dvc repro -s -f train@edsr makes it anew")
    assert "dvc repro" not in message(write(path), "sid")
