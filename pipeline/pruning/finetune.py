"""The fine-tune of a pruned network; where the gate refuses it, iterations are undone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline import config
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress
from pipeline.pruning.gate import judge
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.recipes import train_final
from pipeline.training.setup import Setup


@dataclass(frozen=True)
class Finetuned:
    """The final network of a method."""

    network: nn.Module
    kept: dict[str, dict[int, list[int]]]
    attempts: list[str]  # a sentence for each network that was fine-tuned, the last one being the result
    steps: int  # of training that the network has had since it was the baseline


def finetune(
    networks: list[Path],
    setup: Setup,
    recipe: config.Finetune,
    target: tuple[float, float],
    scratch: Path,
    progress: Progress,
) -> Finetuned:
    """Train the last accepted network on; where the gate refuses it, undo iterations and train an earlier one.

    networks: accepted-NNN.pt, oldest first; the first is the baseline, which is what is left when nothing else holds.
    Here the gate allows no more than the stated drops. When the last network fails, the latest one that holds is
    looked for by bisection: a network holds when it passes the gate after its fine-tune or as it was
    before.
    """
    attempts: list[str] = []

    def attempt(lineage: int) -> Finetuned | None:
        """The network of that place when it holds."""
        path = networks[lineage]
        network, meta = checkpoint.load(path, setup.network.factory)
        number, steps = int(path.stem.removeprefix("accepted-")), lineage * setup.iteration_steps
        before = _measure(network.to(setup.machine.device), setup)
        untrained = duplicate(network)
        if attempts:
            progress.extend(recipe.steps)
        try:
            train_final(network, setup, recipe, scratch / f"finetune-{number:03d}.pt", progress)
        except NonFiniteLossError as error:
            good, reason = False, f"{error}"
        else:
            good, reason = judge(_measure(network, setup), target, setup.gate)
        attempts.append(f"iteration {number}: {reason}")
        progress.say(f"iteration {number} {'holds' if good else 'is undone'}: {reason}")
        if good:
            return Finetuned(network, meta["kept"], attempts, steps + recipe.steps)
        good, reason = judge(before, target, setup.gate)
        if good or not lineage:
            attempts.append(f"iteration {number} is kept as it was before fine-tuning: {reason}")
            progress.say(attempts[-1])
            return Finetuned(untrained, meta["kept"], attempts, steps)
        return None

    failed = len(networks) - 1
    best, good = attempt(failed), 0
    if best is not None:
        return best
    while failed - good > 1:
        middle = (good + failed) // 2
        found = attempt(middle)
        if found is None:
            failed = middle
        else:
            best, good = found, middle
    return best or attempt(0)


def _measure(network: nn.Module, setup: Setup) -> tuple[float, float]:
    measured = setup.quality(network)
    return measured.mean_psnr, measured.mean_ssim
