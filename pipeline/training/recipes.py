"""The trainings that a pruned network and the control have in common: an iteration's, and the fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline import config
from pipeline.progress import Progress
from pipeline.training import cache
from pipeline.training.loop import Teacher, fit
from pipeline.training.setup import Setup

PUBLISHED = {"milestones": (), "schedule": "cosine"}  # in place of a stepwise schedule of the baseline's training


def train_iteration(
    network: nn.Module,
    setup: Setup,
    number: int,
    scratch: Path,
    progress: Progress,
    teacher: nn.Module,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """One iteration's training, at a constant rate; the network ends with averaged weights.

    teacher: the baseline, whose output a share `retrain.teacher` of the loss is taken against. penalty: added to the
    loss; the control has none.
    """
    retrain = setup.retrain
    recipe = setup.recipe.model_copy(
        update=PUBLISHED | {"steps": retrain.steps, "lr": setup.rate * retrain.lr, "lr_final": setup.rate * retrain.lr}
    )
    if retrain.steps:
        resume = scratch / f"{number:03d}-retrain.pt"
        _train(network, setup, recipe, number, resume, progress, Teacher(teacher, retrain.teacher), penalty)
    return network.eval()


def train_final(
    network: nn.Module, setup: Setup, recipe: config.Finetune, resume: Path, progress: Progress, teacher: nn.Module
) -> nn.Module:
    """The fine-tune of a pruned network, and of the control; `teacher` as for an iteration."""
    rates = {"lr": setup.rate * recipe.lr, "lr_final": setup.rate * recipe.lr_final}
    update = PUBLISHED | recipe.model_dump(exclude={"teacher"}) | rates
    full = setup.recipe.model_copy(update=update)
    _train(network, setup, full, 100_003, resume, progress, Teacher(teacher, recipe.teacher))
    return network


def _train(
    network: nn.Module,
    setup: Setup,
    recipe: config.Train,
    number: int,
    resume: Path,
    progress: Progress,
    teacher: Teacher,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> None:
    """Train in place, or take what the same training made before."""
    seed = setup.seed + number
    teacher.network.to(setup.machine.device)
    key = ""
    if setup.cache is not None:
        taught: Any = (teacher.weight, cache.weights_digest(teacher.network)) if teacher.weight else 0
        shrunk = repr(penalty)
        dumped = recipe.model_dump(exclude={"checkpoint", "validate_every"})
        key = cache.key(network, setup.example(network), setup.machine, dumped, setup.images, seed, taught, shrunk)
    cache.remembered(setup.cache, key, network, lambda: fit(
        network, setup.train, recipe, setup.machine, seed=seed, penalty=penalty, teacher=teacher, tick=progress.tick,
        resume=resume,
    ))  # fmt: skip
    progress.phase_over(recipe.steps)
