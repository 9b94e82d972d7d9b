"""How many steps fit into so many minutes."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass

from torch import nn

from pipeline.errors import UserError
from pipeline.networks import duplicate
from pipeline.training.control import TRIED_STEPS
from pipeline.training.loop import Teacher, fit
from pipeline.training.setup import Setup

TIMED = 10  # steps, of which the median counts
LEAST = 5  # steps of an iteration: fewer teach nothing
ITERATIONS = 8  # as in presets/small.yaml
LAST = 30  # the fine-tune's steps for each one of an iteration, as there
SLACK = 1.25  # a second measurement beside other work is slower; the number said must then still do
LONGEST = 1_000_000  # minutes: two years
ATTEMPTS = 2.5  # fine-tunes that the search for the smallest network needs on average


@dataclass(frozen=True)
class Length:
    """How long each part trains."""

    iterations: int
    each: int  # steps of an iteration
    last: int  # steps of the fine-tune


def check_minutes(minutes: float) -> None:
    """UserError where so many minutes can't be meant."""
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= LONGEST:
        raise UserError(f"minutes is {minutes!r}; a number above 0 and up to {LONGEST:,} is allowed")


def fitting(minutes: float, step: float, quality: float) -> Length:
    """What fits into so many minutes, when a training step and a measuring of the validation images take so many
    seconds.

    The control trains as long as the pruned network: all iterations and the fine-tune; before it come some two trials
    of a rate. UserError when an iteration would have fewer than LEAST steps.
    """

    # s: each network is measured, and so are the trials
    fixed = quality * (2 * ITERATIONS + 6) + 2 * TRIED_STEPS * step
    parts = 2 * ITERATIONS + LAST * (1 + ATTEMPTS)  # how many iterations' steps there are in all
    each = int((60 * minutes - fixed) / step / parts)
    if each < LEAST:
        enough = math.ceil(SLACK * (fixed + LEAST * parts * step) / 60)
        raise UserError(
            f"minutes is {minutes:g}, too few here; {enough} are enough: one training step of this network takes "
            f"{step:.2g} s, and measuring it on the validation images {quality:.2g} s"
        )
    return Length(ITERATIONS, each, LAST * each)


def seconds(network: nn.Module, setup: Setup) -> tuple[float, float]:
    """What a training step with its teacher takes here, and what measuring the validation images does."""
    net, taught = duplicate(network).to(setup.machine.device), duplicate(network).to(setup.machine.device)
    at: list[float] = []
    recipe = setup.recipe.model_copy(update={"steps": TIMED + 2})
    fit(
        net, setup.train, recipe, setup.machine, seed=setup.seed, teacher=Teacher(taught, setup.retrain.teacher),
        tick=lambda step, psnr: at.append(time.perf_counter()),
    )  # fmt: skip
    began = time.perf_counter()
    setup.quality(taught)
    measured = time.perf_counter() - began
    # the first steps make buffers and choose kernels
    return statistics.median(after - before for before, after in itertools.pairwise(at[1:])), measured
