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

    networks: accepted-NNN.pt, oldest first; the first is the baseline, which is the result when no other one holds.
    target: (PSNR in dB, SSIM). There is no tolerance any more. A network holds when it passes the gate after its
    fine-tune, or as it was before. When the last one doesn't, a bisection looks for the latest one that does.
    """
    attempts: list[str] = []

    def attempt(lineage: int) -> Finetuned | None:
        """Fine-tune the network of that place in `networks`; what is delivered when it holds, else None."""
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
            holds, reason = False, f"{error}"
        else:
            holds, reason = judge(_measure(network, setup), target, setup.gate)
        attempts.append(f"iteration {number}: {reason}")
        progress.say(f"iteration {number} {'holds' if holds else 'is undone'}: {reason}")
        if holds:
            return Finetuned(network, meta["kept"], attempts, steps + recipe.steps)
        holds, reason = judge(before, target, setup.gate)
        if holds or not lineage:
            attempts.append(f"iteration {number} is kept as it was before fine-tuning: {reason}")
            progress.say(attempts[-1])
            return Finetuned(untrained, meta["kept"], attempts, steps)
        return None

    good, bad = 0, len(networks) - 1  # places of the latest network that holds and the earliest that doesn't
    best = attempt(bad)
    if best is not None:
        return best
    while bad - good > 1:
        middle = (good + bad) // 2
        candidate = attempt(middle)
        if candidate is None:
            bad = middle
        else:
            best, good = candidate, middle
    return best or attempt(0)


def _measure(network: nn.Module, setup: Setup) -> tuple[float, float]:
    measured = setup.quality(network)
    return measured.mean_psnr, measured.mean_ssim
