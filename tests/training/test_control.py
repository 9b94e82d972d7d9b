"""The control, and the rates that a finished baseline bears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_runs import Killed
from torch import nn

from pipeline import config
from pipeline.evaluation.metrics import Quality
from pipeline.pruning.prune import Setup
from pipeline.training import control, loop
from pipeline.training.control import bearable, train_control

LAST = config.Finetune(steps=4, lr=1e-3, teacher=0.5)


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return all(torch.equal(one[key], two[key]) for key in one)


def test_the_control_has_a_point_for_the_baseline_each_iteration_and_the_end(
    network: nn.Module, setup: Setup, tmp_path: Path
) -> None:
    trained = train_control(network, setup, LAST, tmp_path, Killed())
    assert [point["steps"] for point in [*trained.curve, trained.end]] == [0, 5, 10, 15, 19]
    start, end = setup.quality(network), setup.quality(trained.network)
    assert trained.curve[0]["image_psnr"] == list(start.psnr)
    assert trained.end["psnr"] == end.mean_psnr
    assert trained.change == end.mean_psnr - start.mean_psnr
    assert not same(network, trained.network)


@pytest.mark.parametrize("at", [3, 8, 16])
def test_a_killed_control_goes_on_to_the_same_bits(
    network: nn.Module, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    plain = train_control(network, setup, LAST, tmp_path / "plain", Killed())
    with pytest.raises(KeyboardInterrupt):
        train_control(network, setup, LAST, tmp_path / "killed", Killed(at))
    again = train_control(network, setup, LAST, tmp_path / "killed", Killed())
    assert same(plain.network, again.network)
    assert plain.curve == again.curve


@pytest.mark.parametrize(
    ("losses", "factor", "tried", "warned"),
    [
        ({1.0: -0.5}, 1.0, 1, False),  # a gain
        ({1.0: 0.08, 0.3: 0.01, 0.1: 0.0019}, 0.1, 3, False),
        ({1.0: 0.9, 0.3: 0.5, 0.1: 0.3, 0.03: 0.1, 0.01: 0.2}, 0.03, 5, True),  # the one that loses least
    ],
)
def test_the_rates_are_the_largest_that_lose_nothing_with_nothing_removed(
    network: nn.Module, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], losses: dict[float, float], factor: float, tried: int, warned: bool,
) -> None:  # fmt: skip
    rates: list[float] = []

    def train(net: nn.Module, its_setup: Setup, *_: Any) -> nn.Module:
        assert its_setup.retrain.steps == control.TRIED_STEPS
        rates.append(its_setup.rate)
        with torch.no_grad():
            net.tail.bias.fill_(losses[its_setup.rate])
        return net

    monkeypatch.setattr(control.recipes, "train_iteration", train)
    with torch.no_grad():
        network.tail.bias.fill_(0.0)
    monkeypatch.setattr(
        Setup, "quality", lambda _, net: Quality(("x",), (30.0 - net.tail.bias[0].item() + 1e-9,), (0.9,))
    )
    assert bearable(network, setup, tmp_path, Killed()) == factor
    assert rates == list(control.FACTORS[:tried])
    said = capsys.readouterr().err
    assert f"training rates: {'as set' if factor == 1 else f'{factor:g} times those set'}; " in said
    assert ("even these lose" in said) is warned


def test_the_factor_multiplies_the_rates_of_iterations_and_fine_tune(
    network: nn.Module, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(control.recipes, "fit", lambda net, images, recipe, *_, **__: seen.append(
        (recipe.lr, recipe.lr_final)
    ))  # fmt: skip
    slow = replace(setup, rate=0.1, retrain=setup.retrain.model_copy(update={"max_iterations": 1}))
    train_control(network, slow, config.Finetune(steps=4, lr=1e-3, lr_final=1e-5), tmp_path, Killed())
    assert seen == [pytest.approx((5e-5, 5e-5)), pytest.approx((1e-4, 1e-6))]
