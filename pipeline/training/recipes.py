"""The trainings that a pruned network and the control have in common: an iteration's, and the fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from pipeline import config
from pipeline.progress import Progress
from pipeline.training.loop import fit
from pipeline.training.setup import Setup


def train_iteration(
    network: nn.Module,
    setup: Setup,
    number: int,
    scratch: Path,
    progress: Progress,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> nn.Module:
    """One iteration's training: `train_steps` with the penalty, `change`, `retrain_steps`; the control has neither."""
    retrain, common = setup.retrain, {"milestones": (), "schedule": "cosine"}
    if retrain.train_steps:
        recipe = setup.recipe.model_copy(
            update=common | {"steps": retrain.train_steps, "lr": retrain.train_lr, "lr_final": retrain.train_lr}
        )
        fit(network, setup.train, recipe, setup.machine, seed=setup.seed + 2 * number, penalty=penalty,
            tick=progress.tick, resume=scratch / f"{number:03d}-train.pt")  # fmt: skip
    progress.phase_over(retrain.train_steps)
    network = change(network)
    if retrain.retrain_steps:
        recipe = setup.recipe.model_copy(
            update=common
            | {"steps": retrain.retrain_steps, "lr": retrain.retrain_lr, "lr_final": retrain.retrain_lr_final}
        )
        fit(network, setup.train, recipe, setup.machine, seed=setup.seed + 2 * number + 1,
            tick=progress.tick, resume=scratch / f"{number:03d}-retrain.pt")  # fmt: skip
    progress.phase_over(retrain.retrain_steps)
    return network


def train_final(
    network: nn.Module, setup: Setup, recipe: config.Finetune, resume: Path, progress: Progress
) -> nn.Module:
    """The fine-tune of a pruned network, and of the control."""
    full = setup.recipe.model_copy(update={"milestones": (), "schedule": "cosine", **recipe.model_dump()})
    fit(network, setup.train, full, setup.machine, seed=setup.seed + 100_003, tick=progress.tick, resume=resume)
    progress.phase_over(recipe.steps)
    return network
