"""A network that is built anew is the same one, or what differs is named: before training, when saved, when loaded."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.errors import UserError
from pipeline.networks import checkpoint, rebuilt

EXAMPLE = torch.zeros(1, 3, 8, 8)
COUNTER = itertools.count()


class Net(nn.Module):
    """A convolution of its input, changed by `change`, which may use what `begin` has put on it."""

    def __init__(self, begin: Callable[[Any], Any], change: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.change = change
        begin(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.change(self, x))


def put(**made: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda net: [setattr(net, key, make()) for key, make in made.items()] and None


def layer() -> nn.Module:
    return nn.Conv2d(3, 3, 1)


class Holder:
    def __init__(self) -> None:
        self.mask = torch.rand(8, 8)


DRAWN: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor], str]] = {
    "attribute": (put(mask=lambda: torch.rand(8, 8)), lambda net, x: x * net.mask, "'mask'"),
    "list": (put(gains=lambda: [1.0, torch.rand(1)]), lambda net, x: x * net.gains[1], "'gains[1]'"),
    "dictionary": (put(gains=lambda: {"a": torch.rand(1)}), lambda net, x: x * net.gains["a"], "\"gains['a']\""),
    "buffer": (
        lambda net: net.register_buffer("noise", torch.rand(8, 8), persistent=False),
        lambda net, x: x + net.noise,
        "'noise'",
    ),
    "permutation": (
        put(order=lambda: torch.randperm(64)),
        lambda net, x: x.flatten(2)[..., net.order].view(x.shape),
        "'order'",
    ),
    "python's permutation": (
        put(order=lambda: random.sample(range(64), 64)),
        lambda net, x: x.flatten(2)[..., net.order].view(x.shape),
        "'order[",
    ),
    "numpy": (put(mask=lambda: np.random.rand(8, 8)), lambda net, x: x * torch.tensor(net.mask).float(), "'mask'"),
    "number": (put(gain=random.random), lambda net, x: x * net.gain, "'gain'"),
    "whole number": (put(shift=lambda: next(COUNTER)), lambda net, x: x.roll(net.shift, 3), "'shift'"),
    "unregistered layers": (put(more=lambda: [layer()]), lambda net, x: net.more[0](x), "'more[0].weight'"),
    "object": (put(holder=Holder), lambda net, x: x * net.holder.mask, "'holder.mask'"),
    "generator": (
        put(noise=lambda: np.random.default_rng()),
        lambda net, x: x + net.noise.random(),
        "'noise'",
    ),
}  # fmt: skip


def toy(monkeypatch: pytest.MonkeyPatch, begin: Any, change: Any, factory: Any = None) -> Callable[[], nn.Module]:
    module = ModuleType("toy")
    module.network = factory or (lambda: Net(begin, change))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", module)
    return lambda: networks.build("toy:network", {})


def nothing(_: Any) -> None:
    return None


def same(_: Any, x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("kind", DRAWN)
def test_what_is_drawn_beside_the_state_dict_is_named_before_training_and_when_saved(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin, change, name = DRAWN[kind]
    network = toy(monkeypatch, begin, change)()
    with pytest.raises(UserError, match=r"'toy:network' that is built twice .*state_dict") as caught:
        rebuilt.check("toy:network", {}, network, EXAMPLE)
    assert name.strip('"') in str(caught.value)
    with pytest.raises(UserError, match=r"net\.pt isn't written: .*computes another output") as caught:
        checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {}, example=EXAMPLE)
    assert name.strip('"') in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_drawn_tensor_is_named_though_a_zero_layer_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    build = toy(monkeypatch, put(mask=lambda: torch.rand(8, 8)), lambda net, x: x * net.mask)
    network = build()
    nn.init.zeros_(network.conv.weight)
    with pytest.raises(UserError, match="'mask' differ, and aren't in its state_dict: register_buffer"):
        rebuilt.check("toy:network", {}, network, EXAMPLE)


def test_what_a_closure_draws_is_said_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory() -> nn.Module:
        mask = torch.rand(8, 8)
        return Net(nothing, lambda _, x: x * mask)

    network = toy(monkeypatch, nothing, same, factory)()
    with pytest.raises(UserError, match=r"another output, by .* depends on something that isn't in its state_dict"):
        rebuilt.check("toy:network", {}, network, EXAMPLE)


class Remembering(nn.Module):
    """Leaves its last feature on itself, counts its calls and the layers ever built, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.number = next(COUNTER)
        self.conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.norm = nn.BatchNorm2d(3)
        self.window = torch.hann_window(8)  # always the same: it may lie anywhere
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.feature = self.norm(self.conv(x * self.window))
        if self.training:
            self.seen += self.feature.detach().mean(dim=(0, 2, 3))  # looked at by nothing
        return self.feature


class Noisy(nn.Module):
    """Draws in eval mode too."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.draw = nn.Conv2d(3, 3, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + self.draw(x))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 3, 1), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.lstm(x.flatten(0, 1))[0].view(x.shape))


FINE: dict[str, Callable[[], nn.Module]] = {
    "caches, counters, weight norm": Remembering,
    "torch's noise": lambda: Noisy(torch.rand_like),
    "dropout in eval": lambda: Noisy(lambda x: nn.functional.dropout(x, 0.5, training=True)),
    "numpy's noise": lambda: Noisy(lambda x: torch.tensor(np.random.rand())),
    "python's noise": lambda: Noisy(lambda _: torch.tensor(random.random())),
    "the system's noise": lambda: Noisy(lambda _: torch.tensor(random.SystemRandom().random())),
    "the time": lambda: Noisy(lambda _: torch.tensor(time.perf_counter() % 1)),
    "lstm": Lstm,
    "double": lambda: nn.Conv2d(3, 3, 1).double(),
}


@pytest.mark.parametrize("kind", FINE)
def test_what_doesnt_matter_or_is_random_by_itself_is_not_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = toy(monkeypatch, nothing, same, FINE[kind])()
    rebuilt.check("toy:network", {}, network, EXAMPLE)
    dtype = next(network.parameters()).dtype
    for _ in range(2):
        network.train()(torch.rand(2, 3, 8, 8, dtype=dtype)).sum().backward()
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {}, example=EXAMPLE)
    loaded, _ = checkpoint.load(tmp_path / "net.pt", "toy:network")
    image = torch.rand(1, 3, 8, 8, dtype=dtype)
    if "noise" not in kind and kind not in ("dropout in eval", "the time"):
        assert torch.equal(loaded(image), network.eval()(image))


def test_comparing_leaves_the_random_states_and_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy(monkeypatch, nothing, same, Remembering)().train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    rebuilt.check("toy:network", {}, network, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert (network.calls, network.training, network.norm.training) == (0, True, True)


def test_code_that_has_changed_since_is_said_when_the_network_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = toy(monkeypatch, nothing, lambda _, x: x.clamp(min=0.5))()
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {}, example=EXAMPLE)
    checkpoint.load(tmp_path / "net.pt", "toy:network")
    toy(monkeypatch, nothing, lambda _, x: x.clamp(min=0.6))
    with pytest.raises(UserError, match=r"net\.pt: the network 'toy:network' doesn't compute what it did when this"):
        checkpoint.load(tmp_path / "net.pt", "toy:network")


def test_code_that_changes_a_thousandth_of_the_output_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An enlarged input and a small learned part: that part may be less than a hundredth of the output."""
    network = toy(monkeypatch, nothing, lambda _, x: 1 + 0.0005 * x)()
    checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {}, example=EXAMPLE)
    checkpoint.load(tmp_path / "net.pt", "toy:network")
    toy(monkeypatch, nothing, lambda _, x: 1 - 0.0005 * x)
    with pytest.raises(UserError, match="doesn't compute what it did when this"):
        checkpoint.load(tmp_path / "net.pt", "toy:network")


def test_another_class_of_the_same_weights_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = iter([False, True])
    network = toy(monkeypatch, nothing, same, lambda: nn.Conv2d(3, 3, 1, bias=next(switch)))()
    with pytest.raises(UserError, match=r"'toy:network' that is built twice isn't the same: .*bias"):
        rebuilt.check("toy:network", {}, network, EXAMPLE)


def test_a_network_that_cant_be_copied_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy(monkeypatch, put(lock=threading.Lock), same)()
    with pytest.raises(UserError, match=r"Net can't be copied \(copy.deepcopy\): cannot pickle '_thread.lock'"):
        rebuilt.check("toy:network", {}, network, EXAMPLE)


class Extra(nn.Conv2d):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_state_dict_of_more_than_tensors_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = toy(monkeypatch, nothing, same, lambda: Extra(3, 3, 1))()
    with pytest.raises(UserError, match=r"'_extra_state' of its state_dict must be a tensor, not dict"):
        rebuilt.check("toy:network", {}, network, EXAMPLE)
    with pytest.raises(UserError, match=r"net.pt isn't written: '_extra_state' of its state_dict must be a tensor"):
        checkpoint.save(tmp_path / "net.pt", network, "toy:network", {}, {}, example=EXAMPLE)
