"""The training loop: its rates, its trace, and that a stop changes nothing."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chains import ROOT
from torch import Tensor, nn

from pipeline import config
from pipeline.data.dataset import Images
from pipeline.training import loop
from pipeline.training.device import Machine
from pipeline.training.loop import NonFiniteLossError, Point, averaged, fit, learning_rate

# Mean absolute error of steps 1 to 10 of the fixtures' network and recipe. To refresh it after a change that is meant
# to change numbers, copy the values that the failing test prints.
GOLDEN_LOSSES = [
    0.2085622,
    0.259831,
    0.2059707,
    0.2598428,
    0.1190748,
    0.291267,
    0.188897,
    0.2887793,
    0.1664673,
    0.1559603,
]


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_cosine_rate_warms_up_and_ends_at_its_final_value(recipe: config.Train) -> None:
    cosine = recipe.model_copy(update={"steps": 41, "lr": 1.0, "lr_final": 0.2})  # warm-up: ceil(0.05 * 41) = 3 steps
    top = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]
    rates = [learning_rate(cosine, step) for step in range(41)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[1] == pytest.approx(2 / 3 * top[1])
    assert rates[2] == pytest.approx(top[2])
    assert rates[20] == pytest.approx(0.6)  # half way
    assert rates[40] == pytest.approx(0.2)
    assert learning_rate(cosine.model_copy(update={"steps": 1}), 0) == pytest.approx(1.0)


def test_the_stepwise_rate_falls_at_its_milestones(recipe: config.Train) -> None:
    steps = recipe.model_copy(update={"schedule": "step", "lr": 0.8, "milestones": (2, 5), "decay": 0.5})
    assert [learning_rate(steps, step) for step in range(7)] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]


def test_ten_steps_give_the_losses_they_always_gave(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    every = recipe.model_copy(update={"validate_every": 1})
    curve = fit(network, splits["train"], every, machine, seed=1, validate=lambda _: 0.0)
    losses = [round(point.loss, 7) for point in curve]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-4), f"GOLDEN_LOSSES = {losses}"


def test_equal_seeds_give_equal_bits_and_others_dont(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    one, two, three = (copy.deepcopy(network) for _ in range(3))
    for trained, seed in ((one, 1), (two, 1), (three, 2)):
        fit(trained, splits["train"], recipe, machine, seed=seed)
    assert same_bits(weights(one), weights(two))
    assert not same_bits(weights(one), weights(three))


def test_validation_happens_at_its_steps_on_the_averaged_weights_in_eval_mode(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    seen: list[list[Tensor]] = []

    def validate(validated: nn.Module) -> float:
        seen.append(weights(validated))
        validated.eval()
        return 20.0 + len(seen)

    uneven = recipe.model_copy(update={"validate_every": 4})
    curve = fit(network, splits["train"], uneven, machine, seed=1, validate=validate)
    assert [(point.step, point.psnr) for point in curve] == [(4, 21.0), (8, 22.0), (10, 23.0)]
    assert same_bits(seen[-1], weights(network))  # the network ends with what was validated
    assert not network.training


@pytest.mark.parametrize("killed_at", [1, 6, 10])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_stopped_training_goes_on_to_the_same_bits(
    network: nn.Module,
    splits: dict[str, Images],
    recipe: config.Train,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    average: float,
    killed_at: int,
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)  # after every step
    recipe = recipe.model_copy(update={"average": average, "validate_every": 2})
    plain, first, second = (copy.deepcopy(network) for _ in range(3))

    def validate(validated: nn.Module) -> float:
        return next(validated.parameters()).sum().item()

    def kill(step: int, _: float | None) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    undisturbed = fit(plain, splits["train"], recipe, machine, seed=1, validate=validate)
    saved, seen = tmp_path / "state.pt", []
    with pytest.raises(KeyboardInterrupt):
        fit(first, splits["train"], recipe, machine, seed=1, validate=validate, tick=kill, resume=saved)
    curve = fit(
        second, splits["train"], recipe, machine, seed=1, validate=validate, resume=saved,
        tick=lambda step, _: seen.append(step),
    )  # fmt: skip
    assert seen == list(range(killed_at, 11))  # the killed step is done again, those before it aren't
    assert curve == undisturbed
    assert same_bits(weights(plain), weights(second))


def test_a_finished_training_isnt_repeated(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine, tmp_path: Path
) -> None:
    saved, again = tmp_path / "state.pt", copy.deepcopy(network)
    curve = fit(network, splits["train"], recipe, machine, seed=1, validate=lambda _: 1.0, resume=saved)
    assert curve[-1] == Point(10, 1.0, curve[-1].loss)
    assert fit(again, splits["train"], recipe, machine, seed=1, validate=lambda _: 2.0, resume=saved) == curve
    assert same_bits(weights(again), weights(network))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine, broken: float
) -> None:
    constant = recipe.model_copy(update={"schedule": "step", "average": 0.0})
    three = copy.deepcopy(network)
    fit(three, splits["train"], constant.model_copy(update={"steps": 3}), machine, seed=1)
    calls = []

    def penalty(_: nn.Module) -> Tensor:
        calls.append(1)
        return torch.tensor(broken if len(calls) == 4 else 0.0)

    with pytest.raises(NonFiniteLossError, match="the loss is not finite at step 3") as caught:
        fit(network, splits["train"], constant, machine, seed=1, penalty=penalty)
    assert caught.value.step == 3
    assert same_bits(weights(network), weights(three))


def test_a_young_average_follows_the_weights(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    start, plain = weights(network), copy.deepcopy(network)
    one = recipe.model_copy(update={"steps": 1, "average": 0.9})
    fit(network, splits["train"], one, machine, seed=1)
    fit(plain, splits["train"], one.model_copy(update={"average": 0.0}), machine, seed=1)
    for before, trained, mean in zip(start, weights(plain), weights(network), strict=True):
        assert torch.allclose(mean, before + 0.9 * (trained - before), atol=1e-7)  # decay 1/10 at step 1
        assert not torch.equal(before, trained)


def test_the_own_weights_come_back_after_a_look_at_the_average(network: nn.Module) -> None:
    own, ones = weights(network), [torch.ones_like(p) for p in network.parameters()]

    def fail_inside() -> None:
        with averaged(network, ones):
            assert same_bits(weights(network), ones)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert same_bits(weights(network), own)
    with averaged(network, []):
        assert same_bits(weights(network), own)


def test_gradients_are_clipped_to_their_norm(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    def last_norm(clip: float) -> float:
        trained = copy.deepcopy(network)
        fit(trained, splits["train"], recipe.model_copy(update={"steps": 1, "clip": clip}), machine, seed=1)
        return math.sqrt(sum(p.grad.square().sum().item() for p in trained.parameters()))

    free = last_norm(0.0)
    assert last_norm(free / 10) == pytest.approx(free / 10, rel=1e-3)
    assert last_norm(free * 10) == pytest.approx(free, rel=1e-6)


def test_the_pruner_knows_neither_mlflow_nor_dvc_nor_optuna() -> None:
    program = (
        "import sys, pipeline.pruning.prune, pipeline.training.loop, pipeline.cost, pipeline.pruning.rules\n"
        "print([name for name in ('mlflow', 'dvc', 'optuna', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Forgetful(nn.Module):
    """A network that draws random numbers in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Dropout2d(0.5), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


def test_dropout_goes_on_to_the_same_bits(
    splits: dict[str, Images], recipe: config.Train, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    torch.manual_seed(0)
    network = Forgetful()

    def stop(done: int, psnr: float | None) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole, parts, again = (copy.deepcopy(network) for _ in range(3))
    loop.fit(whole, splits["train"], recipe, machine, seed=1)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(parts, splits["train"], recipe, machine, seed=1, tick=stop, resume=tmp_path / "state.pt")
    torch.manual_seed(99)
    loop.fit(again, splits["train"], recipe, machine, seed=1, resume=tmp_path / "state.pt")
    assert same_bits(weights(whole), weights(again))


@pytest.mark.parametrize("content", [b"", b"junk", "other"])
def test_a_damaged_state_is_said_and_the_training_starts_anew(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], content: bytes | str,
) -> None:  # fmt: skip
    path = tmp_path / "state.pt"
    if content == "other":
        torch.save({"step": 3}, path)
    else:
        path.write_bytes(content)
    undisturbed = copy.deepcopy(network)
    loop.fit(undisturbed, splits["train"], recipe, machine, seed=1)
    loop.fit(network, splits["train"], recipe, machine, seed=1, resume=path)
    assert same_bits(weights(network), weights(undisturbed))
    assert "state.pt is damaged: this training starts anew" in capsys.readouterr().err


def test_a_flipped_bit_in_a_state_starts_the_training_anew_or_changes_nothing(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine, tmp_path: Path
) -> None:
    path, short = tmp_path / "state.pt", recipe.model_copy(update={"steps": 2, "validate_every": 2})
    undisturbed = copy.deepcopy(network)
    fit(undisturbed, splits["train"], short, machine, seed=1, resume=path)
    whole, written = path.read_bytes(), loop.read_state(path, machine, network, 2)
    refused = 0
    for place in random.Random(0).sample(range(8 * len(whole)), 100):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        state = loop.read_state(path, machine, network, 2)
        refused += state is None
        if state is not None:
            assert same_bits(list(state["network"].values()), list(written["network"].values()))
            assert same_bits(state["average"], written["average"])
    assert refused > 60


@pytest.mark.parametrize("key", ["network", "average", "optimiser", "step", "curve"])
def test_a_state_of_another_training_starts_it_anew(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], key: str,
) -> None:  # fmt: skip
    path, short = tmp_path / "state.pt", recipe.model_copy(update={"steps": 2, "validate_every": 2})
    fit(copy.deepcopy(network), splits["train"], short, machine, seed=1, resume=path)
    state = torch.load(path, weights_only=True)
    assert loop.read_state(path, machine, network, 2) is not None
    other = {"network": {}, "average": [torch.zeros(3)], "optimiser": {}, "step": 9, "curve": [{"psnr": 1.0}]}
    torch.save(state | {key: other[key]}, path)
    assert loop.read_state(path, machine, network, 2) is None
    assert "state.pt is damaged: this training starts anew" in capsys.readouterr().err


def test_a_teacher_takes_its_share_of_the_loss(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    teacher = copy.deepcopy(network).eval()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    alone = recipe.model_copy(update={"steps": 1, "average": 0.0})
    loop.fit(network, splits["train"], alone, machine, seed=1, teacher=loop.Teacher(teacher, 1.0))
    # its own output is what it is taught: there is no error, and nothing moves
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    plain, none = copy.deepcopy(network), copy.deepcopy(network)
    loop.fit(plain, splits["train"], alone, machine, seed=1)
    loop.fit(none, splits["train"], alone, machine, seed=1, teacher=loop.Teacher(teacher, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), none.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))


def test_a_teacher_sees_the_input_that_a_forward_writes_into(
    network: nn.Module, splits: dict[str, Images], recipe: config.Train, machine: Machine
) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network)

        def forward(self, x: Tensor) -> Tensor:
            x *= 0.5
            return self.network(x)

    writing = Writing()
    before = weights(writing)
    alone = recipe.model_copy(update={"steps": 1, "average": 0.0})
    fit(writing, splits["train"], alone, machine, seed=1, teacher=loop.Teacher(copy.deepcopy(writing).eval(), 1.0))
    assert same_bits(before, weights(writing))  # as above: there is no error
