"""Trainings that are kept: the same one is done once, another one never passes for it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from chains import ROOT
from pruning_runs import Killed
from torch import nn

from pipeline import config, networks
from pipeline.errors import UserError
from pipeline.pruning.prune import Setup
from pipeline.training import cache, recipes
from pipeline.training.device import Machine
from pipeline.training.setup import load_setup

RECIPE = config.Finetune(steps=3, lr=1e-3, teacher=0.5)


@pytest.fixture
def kept(setup: Setup, tmp_path: Path) -> Setup:
    (tmp_path / "work").mkdir()
    return replace(setup, cache=tmp_path / "trainings", images="of a test")


def tuned(network: nn.Module, setup: Setup, recipe: config.Finetune, work: Path, teacher: nn.Module, **more: Any):
    """The weights after a fine-tune, and how many steps were trained for it."""
    work.mkdir(exist_ok=True)
    progress, copied = Killed(**more), copy.deepcopy(network)
    before = progress.done
    recipes.train_final(copied, setup, recipe, work / "state.pt", progress, teacher)
    (work / "state.pt").unlink(missing_ok=True)
    assert progress.base == recipe.steps
    return copied.state_dict(), progress.done - before


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def test_the_same_training_is_done_once(network: nn.Module, kept: Setup, tmp_path: Path) -> None:
    teacher = copy.deepcopy(network)
    first, steps = tuned(network, kept, RECIPE, tmp_path / "work", teacher)
    assert steps == 3
    second, steps = tuned(network, kept, RECIPE, tmp_path / "elsewhere", teacher)
    assert steps == 0
    assert same(first, second)
    # a network that lies otherwise in memory computes other last bits, and would be measured otherwise
    assert [value.stride() for value in second.values()] == [value.stride() for value in first.values()]
    assert same(first, tuned(network, replace(kept, cache=None), RECIPE, tmp_path / "work", teacher)[0])


def test_whatever_a_training_depends_on_makes_it_another(network: nn.Module, kept: Setup, tmp_path: Path) -> None:
    teacher, nudged = copy.deepcopy(network), copy.deepcopy(network)
    with torch.no_grad():
        nudged.tail.bias[0] += 1e-6
    frozen, louder = copy.deepcopy(network), copy.deepcopy(network)
    frozen.body[0].requires_grad_(False)
    louder.gain = 0.5
    tuned(network, kept, RECIPE, tmp_path / "work", teacher)
    others: list[tuple] = [
        (nudged, kept, RECIPE, teacher),
        (frozen, kept, RECIPE, teacher),
        (louder, kept, RECIPE, teacher),
        (network, kept, RECIPE, nudged),
        (network, kept, RECIPE.model_copy(update={"lr": 2e-3}), teacher),
        (network, kept, RECIPE.model_copy(update={"teacher": 0.25}), teacher),
        (network, replace(kept, seed=kept.seed + 1), RECIPE, teacher),
        (network, replace(kept, images="others"), RECIPE, teacher),
        (network, replace(kept, recipe=kept.recipe.model_copy(update={"batch": 3})), RECIPE, teacher),
        (network, replace(kept, machine=replace(kept.machine, bf16=True)), RECIPE, teacher),
    ]
    for other, setup, recipe, its_teacher in others:
        assert tuned(other, setup, recipe, tmp_path / "work", its_teacher)[1] == 3
    assert len(list((tmp_path / "trainings").iterdir())) == 1 + len(others)


SOURCE = """
import functools
import torch
from torch import nn

GAIN = 0.1
KERNEL = torch.tensor([1.0, 2.0, 1.0])

def times(factor):
    def scaled(x, by=1.0):
        return shifted(x) * GAIN * by * factor
    return scaled

def shifted(x):
    return x + 0.5

scaled = times(0.7)
clipped = functools.partial(torch.clamp, max=0.9)

class Network(nn.Module):
    share = 2.0

    def __init__(self, act=torch.relu, mode="keeps"):
        super().__init__()
        self.act, self.mode = act, mode

    def forward(self, x):
        x = clipped(scaled(self.act(x - 0.5)) * self.share * KERNEL[1])
        return x if self.mode == "keeps" else -x
"""
EXAMPLE = torch.zeros(1, 3, 8, 8)


def of_source(source: str, **args: Any) -> str:
    module = ModuleType("blocks")
    exec(source, vars(module))
    return cache.layers_digest(module.Network(**args), EXAMPLE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("+ 0.5", "+ 0.25"), ("GAIN = 0.1", "GAIN = 0.2"), ("by=1.0", "by=2.0"), ("* by", "+ by"), ("2.0\n", "3.0\n"),
        ("times(0.7)", "times(0.8)"), ("max=0.9", "max=0.1"), ("1.0, 2.0", "1.0, 1.5"),
    ],
)  # fmt: skip
def test_what_a_forward_calls_and_holds_makes_it_another_training(before: str, after: str) -> None:
    assert before in SOURCE
    assert of_source(SOURCE) != of_source(SOURCE.replace(before, after))


def test_what_a_module_holds_makes_it_another_training() -> None:
    digests = {of_source(SOURCE), of_source(SOURCE, act=torch.sigmoid), of_source(SOURCE, mode="turns")}
    assert len(digests) == 3


def test_a_comment_makes_no_other_training() -> None:
    assert of_source(SOURCE) == of_source(SOURCE.replace("GAIN = 0.1", "GAIN = 0.1  # as published"))


def test_a_training_has_the_same_key_in_another_process(machine: Machine) -> None:
    code = (
        "import torch; from pipeline import networks; from pipeline.training import cache, device; "
        "machine = device.choose('cpu', 1, 'fp32'); torch.manual_seed(1); "
        "network = networks.build('sid', {'base': 2}).to(memory_format=torch.channels_last); "
        "print(cache.key(network, torch.zeros(1, 4, 32, 32), machine, 'part'))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }  # fmt: skip
    torch.manual_seed(1)
    assert keys == {cache.key(networks.build("sid", {"base": 2}), torch.zeros(1, 4, 32, 32), machine, "part")}


def test_a_damaged_file_is_trained_again(network: nn.Module, kept: Setup, tmp_path: Path) -> None:
    first, _ = tuned(network, kept, RECIPE, tmp_path / "work", network)
    (path,) = (tmp_path / "trainings").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again, steps = tuned(network, kept, RECIPE, tmp_path / "work", network)
    assert steps == 3
    assert same(first, again)
    assert path.read_bytes() == whole


WRITER = """
import sys
from pathlib import Path
from torch import nn
from pipeline.training import cache
folder, network = Path(sys.argv[1]), nn.Conv2d(64, 64, 17)
nn.init.constant_(network.weight, 1.0), nn.init.constant_(network.bias, 1.0)
while True:
    (folder / "same.pt").unlink(missing_ok=True)  # so that it is written again
    cache.remembered(folder, "same", network, lambda: None)
    print(flush=True)
"""


def test_two_writers_of_one_training_that_are_killed_leave_a_whole_file_or_none(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    reads = 0
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"\n"
        for writer in writers:  # the first is killed while the other goes on
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                try:
                    file = (tmp_path / "same.pt").open("rb")
                except FileNotFoundError:
                    continue
                with file:
                    assert all(bool((value == 1).all()) for value in torch.load(file, weights_only=True).values())
                reads += 1
            writer.kill()
            writer.wait()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert reads > 2
    network = nn.Conv2d(64, 64, 17)
    cache.remembered(tmp_path, "same", network, lambda: nn.init.constant_(network.weight, 1.0))
    assert bool((network.weight == 1).all())


def test_a_folder_of_trainings_that_cant_be_made_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "trainings").write_text("")
    params = config.read(ROOT / "params.yaml")
    with pytest.raises(UserError, match="trainings can't be made a folder"):
        load_setup(params, "edsr", tmp_path / "results", tmp_path / "trainings")


def test_a_training_that_is_stopped_is_not_kept(network: nn.Module, kept: Setup, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuned(network, kept, RECIPE, tmp_path / "work", network, at=2)
    assert not (tmp_path / "trainings").exists()


def test_the_oldest_go_when_there_are_too_many(
    network: nn.Module, kept: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "KEPT", 2)
    rates = (1e-3, 2e-3, 3e-3)
    for rate in rates:
        tuned(network, kept, RECIPE.model_copy(update={"lr": rate}), tmp_path / "work", network)
    assert len(list((tmp_path / "trainings").iterdir())) == 2
    assert tuned(network, kept, RECIPE.model_copy(update={"lr": rates[-1]}), tmp_path / "work", network)[1] == 0


def test_the_teacher_takes_its_share_of_an_iterations_loss(network: nn.Module, setup: Setup, tmp_path: Path) -> None:
    """A network that is its own teacher, and learns from it alone, stays as it is."""
    alone = replace(setup, retrain=setup.retrain.model_copy(update={"teacher": 1.0}))
    before = copy.deepcopy(network)
    recipes.train_iteration(network, alone, 1, tmp_path, Killed(), copy.deepcopy(network))
    assert same(before.state_dict(), network.state_dict())
    (tmp_path / "001-retrain.pt").unlink()
    recipes.train_iteration(network, setup, 1, tmp_path, Killed(), copy.deepcopy(network))
    assert not same(before.state_dict(), network.state_dict())
