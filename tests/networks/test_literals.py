"""Sizes that methods hold as numbers become attributes, and the method does what it did."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.networks.literals import literals, replace
from pipeline.networks.sizes import sizes, write, written


class Base(nn.Module):
    def part(self, x: Tensor) -> Tensor:
        return x[:, 3:]


class Cut(Base):
    def forward(self, x: Tensor, wide: int = 6, *, scale: float = 2.0) -> Tensor:
        front, rest = torch.split(x, [6, 10 - 4], 1)
        return torch.cat([super().part(front) * scale, rest[:, :4].reshape(-1, 4, 3), rest[:, 1:wide:2]], 1)

    def part(self, x: Tensor) -> Tensor:
        return x[:, 5]


def test_sizes_are_numbers_in_slices_and_in_calls_that_divide_or_reshape() -> None:
    """Not the 5 of x[:, 5], which is one place, nor numbers below 2, nor those of other calls."""
    assert literals(Cut()) == {
        "forward_size_0": 6, "forward_size_1": 10, "forward_size_2": 4, "forward_size_3": 4, "forward_size_4": 4,
        "forward_size_5": 3,
    }  # fmt: skip
    assert literals(Base()) == {"part_size_0": 3}
    assert literals(nn.PixelShuffle(2)) == {}


def test_a_replaced_method_does_the_same_and_reads_its_numbers() -> None:
    """With its defaults, `super()`, and the lines of its file in a traceback."""
    module, image = Cut(), torch.rand(2, 12, 3)
    other = copy.deepcopy(module)
    replace(module)
    assert literals(module) == {}
    assert torch.equal(module(image), other(image))
    assert torch.equal(module(image, 4, scale=1.0), other(image, 4, scale=1.0))
    assert module.forward.__code__.co_firstlineno == Cut.forward.__code__.co_firstlineno
    twin = copy.deepcopy(module)
    twin.forward_size_0, twin.forward_size_1 = 5, 11
    assert twin(image).shape[1] == module(image).shape[1] - 1
    assert torch.equal(module(image), other(image))
    assert type(other) is Cut
    assert (type(module).__name__, isinstance(module, Cut)) == ("Cut", True)


def test_sizes_of_methods_are_among_a_networks_sizes_and_can_be_written() -> None:
    network = nn.Sequential(Base(), Cut())
    assert sizes(network)["1.forward_size_5"] == (3,)
    assert written(network) == set(sizes(network))
    write(network, "0.part_size_0", [2])
    assert network[0].part(torch.rand(1, 8)).shape == (1, 6)
    assert sizes(network)["0.part_size_0"] == (2,)
    assert "0.part_size_0" not in written(network)


def pickled(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [copy.copy, copy.deepcopy, pickled, nn.Module._replicate_for_data_parallel]


class Reducing(Base):
    """Says by itself how it is copied."""

    def __reduce__(self) -> Any:
        return Reducing, (), vars(self)


@pytest.mark.parametrize("kind", [Base, Reducing])
@pytest.mark.parametrize("copied", WAYS)
def test_every_kind_of_copy_keeps_its_own_numbers(
    copied: Callable[[nn.Module], nn.Module], kind: type[nn.Module]
) -> None:
    """The class's own method would come back with its own numbers, or that of the first module go on."""
    module, image = kind(), torch.rand(1, 8)
    write(module, "part_size_0", [2])
    twin = copied(module)
    assert twin.part(image).shape == (1, 6)
    module.part_size_0 = 5
    assert twin.part(image).shape == (1, 6)
    write(twin, "part_size_0", [4])
    assert twin.part(image).shape == (1, 4)
    assert module.part(image).shape == (1, 3)
    assert isinstance(copied(twin), Base)


def test_a_class_that_others_are_told_of_stays() -> None:
    """A network that is built from a list of classes would be built from the one that was made for a module."""
    classes: dict[str, type] = {}

    class Listed(nn.Module):
        def __init_subclass__(cls) -> None:
            classes[cls.__name__] = cls

        def part(self, x: Tensor) -> Tensor:
            return x[:, :4]

    class Meta(type):
        def __init__(cls, *args: Any) -> None:
            classes[cls.__name__] = cls

    class Part(Listed):
        pass

    class Made(Base, metaclass=Meta):
        pass

    assert literals(Part()) == literals(Made()) == {}
    assert list(classes) == ["Part", "Made"]


def logged(method: Callable) -> Callable:
    @functools.wraps(method)
    def around(*args: Any) -> Any:
        return method(*args)

    return around


def closing_over(width: int) -> type[nn.Module]:
    class Closing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 2 : 4 + width]

    return Closing


class Decorated(nn.Module):
    @logged
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4]

    @staticmethod
    def cut(x: Tensor) -> Tensor:
        return x[:, :4]


def without_source() -> type[nn.Module]:
    names: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x[:, :4]", names)
    return names["Made"]


def test_a_replaced_module_is_pickled_with_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't read back with the numbers as written, which may be other ones by then."""
    module, image = Base(), torch.rand(1, 8)
    write(module, "part_size_0", [2])
    packed = pickle.dumps(module)
    assert torch.equal(pickle.loads(packed).part(image), image[:, 2:])
    monkeypatch.setattr("pipeline.networks.literals._numbers", lambda function: {})
    with pytest.raises(UserError, match="the source of Base can't be read or isn't what it was"):
        pickle.loads(packed)


@pytest.mark.parametrize("kind", [Decorated, closing_over(3), without_source()])
def test_a_method_that_cannot_be_written_anew_stays(kind: type[nn.Module]) -> None:
    assert literals(kind()) == {}


def test_a_method_whose_file_has_changed_since_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of today isn't what runs."""

    class Edited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :4]

    source = inspect.getsource(Edited.forward)
    monkeypatch.setattr(inspect, "getsource", lambda function: source.replace(":4", "4:"))
    assert literals(Edited()) == {}


def test_a_number_whose_name_is_taken_stays() -> None:
    module = Base()
    module.part_size_0 = nn.Conv2d(1, 1, 1)
    assert literals(module) == {}
