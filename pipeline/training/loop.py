"""One visible training loop, used for baselines, controls, pruning iterations and fine-tuning alike.

Step n of a training is a function of the weights, the optimiser and (seed, n) alone, so a training that was stopped
goes on from its last saved state and ends with the bits of an undisturbed one. On several devices (devices.py) each
takes its share of that same batch.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import Train
from pipeline.errors import UserError, explained
from pipeline.files import load_tensors, save_tensors
from pipeline.training import devices
from pipeline.training.device import Machine

SAVE_SECONDS = 15.0  # a kill loses at most this much training
WARM_UP = 0.05  # share of a cosine schedule: a fresh Adam's first steps are all of full length


class NonFiniteLossError(Exception):
    """The loss became infinite or NaN; `step` says where."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


@dataclass(frozen=True)
class Teacher:
    """A network whose output is a part of what is learnt: `weight` of the loss is taken against it, 0 to 1.

    Source: Hinton et al., 2015, for the idea; for restoration the outputs are images, and the loss is the same.
    """

    network: nn.Module
    weight: float


@dataclass(frozen=True)
class Training:
    """What a training is made of, but for the images: all that another process needs to take part in it."""

    network: nn.Module
    recipe: Train
    seed: int
    penalty: Callable[[nn.Module], Tensor] | None
    teacher: Teacher | None
    state: dict | None  # of `save_state`, where it goes on


@dataclass(frozen=True)
class Point:
    """A point of a training curve: validation PSNR in dB after `step` steps."""

    step: int
    psnr: float
    loss: float  # mean absolute error of the step's batch, pixel values in 0..1


def learning_rate(recipe: Train, step: int) -> float:
    """The rate of step 0 … steps-1: a cosine with a short warm-up, or the published stepwise decay."""
    if recipe.schedule == "step":
        return recipe.lr * recipe.decay ** sum(step >= milestone for milestone in recipe.milestones)
    warm = math.ceil(WARM_UP * recipe.steps)
    ramp = min(1.0, (step + 1) / warm)
    progress = step / max(1, recipe.steps - 1)
    return ramp * (recipe.lr_final + (recipe.lr - recipe.lr_final) * (1 + math.cos(math.pi * progress)) / 2)


def fit(
    network: nn.Module,
    images,
    recipe: Train,
    machine: Machine,
    *,
    seed: int,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    teacher: Teacher | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    tick: Callable[[int, float | None], None] = lambda step, psnr: None,
    resume: Path | None = None,
) -> list[Point]:
    """Train `network` in place by `recipe`; returns the validation curve, one point each `validate_every` steps.

    images: data.dataset.Images; its batches are (seed, step)'s. Loss: mean absolute error plus `penalty(network)`; with
    a teacher, a share of the error is against its output.
    With `recipe.average`, validation sees the averaged weights and the network ends with them.
    resume: a file that holds the state, written every SAVE_SECONDS and read when it exists; the caller removes it.
    Raises NonFiniteLossError, leaving the network as it was at that step, and UserError as `forward` does.
    """
    training = Training(network, recipe, seed, penalty, teacher, read_state(resume, machine, network, recipe.steps))
    devices.send(training)
    return follow(training, images, machine, validate, tick, resume)


def serve(images, machine: Machine) -> None:
    """Take part in rank 0's trainings until it needs no more."""
    while (training := devices.receive(machine)) is not None:
        with suppress(NonFiniteLossError):  # rank 0 has it too
            follow(training, images, machine)


def follow(
    training: Training,
    images,
    machine: Machine,
    validate: Callable[[nn.Module], float] | None = None,
    tick: Callable[[int, float | None], None] = lambda step, psnr: None,
    resume: Path | None = None,
) -> list[Point]:
    """The steps of a training, as `fit` says; every device takes them, and rank 0 alone validates and saves."""
    network, recipe, seed = training.network, training.recipe, training.seed
    teacher = training.teacher if training.teacher is not None and training.teacher.weight else None
    network.to(machine.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8)
    average = [p.detach().clone() for p in network.parameters()] if recipe.average else []
    start, curve = 0, []
    state = training.state
    if state is not None:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average = state["average"]
        start, curve = state["step"], [Point(**point) for point in state["curve"]]
    parallel = devices.parallel(network)
    saved = time.monotonic()
    for step, (inputs, targets) in enumerate(batches(images, recipe, seed, start), start=start):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        # for dropout and the like, so that these too don't depend on a stop; each device draws its own
        torch.manual_seed(seed + step + 500_009 * devices.rank())
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        own = inputs if teacher is None else inputs.clone()  # a forward may write into its input
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.bf16):
            outputs = forward(parallel, own, targets, step)
        loss = error = (outputs.float() - targets).abs().mean()
        if teacher is not None:
            with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.bf16):
                taught = teacher.network(inputs)
            loss = (1 - teacher.weight) * loss + teacher.weight * (outputs.float() - taught.float()).abs().mean()
        if training.penalty is not None:
            loss = loss + training.penalty(network)
        optimiser.zero_grad(set_to_none=True)
        means = devices.means(error, loss)
        backward(parallel, loss)
        mean_error, mean_loss = means()
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(step)
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        done = step + 1
        if average:
            # young averages forget faster, or they would remember the starting point for 1/(1-average) steps
            weight = 1 - min(recipe.average, done / (done + 9))
            torch._foreach_lerp_(average, [p.detach() for p in network.parameters()], weight)
        if validate is not None and (done % recipe.validate_every == 0 or done == recipe.steps):
            with averaged(network, average):
                curve.append(Point(done, validate(network), mean_error))
            network.train()
        tick(done, curve[-1].psnr if curve else None)
        if resume is not None and time.monotonic() - saved > SAVE_SECONDS:
            save_state(resume, network, optimiser, average, done, curve)
            saved = time.monotonic()
    if resume is not None and start < recipe.steps:
        save_state(resume, network, optimiser, average, recipe.steps, curve)
    if average:
        _load(network, average)
    network.eval()
    return curve


def forward(network: nn.Module, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
    """The network's output in training mode; UserError when a user's forward fails there or gives something else."""
    name = type(devices.own(network)).__name__
    with explained(f"the forward of {name} fails in training, step {step}"), devices.connected():
        outputs = network(inputs)
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        kind = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise UserError(f"the forward of {name} gives {kind} in training, but {tuple(targets.shape)} is needed")
    if not outputs.requires_grad:
        raise UserError(
            f"training can't go back through the forward of {name}: its output is detached from the parameters, or "
            "made under no_grad, or all that it uses have requires_grad False"
        )
    return outputs


def backward(network: nn.Module, loss: Tensor) -> None:
    """The gradients; UserError when they can't be computed because of what a user's forward does."""
    name = type(devices.own(network)).__name__
    with explained(f"training can't go back through the forward of {name}"), devices.connected():
        loss.backward()


def batches(images, recipe: Train, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of steps `start` … steps-1: each is made by a thread of its own while the step before it is trained.

    A batch depends on (seed, step) and draws from generators of its own, so that the thread changes no bits. Several
    devices make the whole batch each, and take their shares of it.
    """
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = None
        for step in range(start, recipe.steps):
            batch = (coming or worker.submit(images.batch, step, seed, recipe.batch, recipe.patch)).result()
            if step + 1 < recipe.steps:
                coming = worker.submit(images.batch, step + 1, seed, recipe.batch, recipe.patch)
            yield devices.share(batch)


def read_state(path: Path | None, machine: Machine, network: nn.Module, steps: int) -> dict | None:
    """What `save_state` wrote for this network; None, and a line that says so, for a file that isn't whole."""
    if path is None or not path.exists():
        return None
    try:
        state = load_tensors(path, machine.device)
        own, parameters = network.state_dict(), list(network.parameters())
        moments = [moment for each in state["optimiser"]["state"].values() for moment in each.values()]
        shapes = {parameter.shape for parameter in parameters} | {torch.Size()}  # the step that Adam counts has none
        if (
            state.keys() == {"network", "optimiser", "average", "step", "curve"}
            and {key: value.shape for key, value in own.items()}
            == {key: value.shape for key, value in state["network"].items()}
            and all(isinstance(moment, Tensor) and moment.shape in shapes for moment in moments)
            and [value.shape for value in state["average"] or parameters] == [value.shape for value in parameters]
            and 0 < state["step"] <= steps
            and all(Point(**point) for point in state["curve"])
        ):
            return state
    except (UserError, AttributeError, KeyError, TypeError):  # the last three: another structure than that of a state
        pass
    print(f"{path} is damaged: this training starts anew", file=sys.stderr)
    return None


def save_state(path: Path, network: nn.Module, optimiser, average: list[Tensor], step: int, curve: list[Point]) -> None:
    """Everything that the next step depends on."""
    save_tensors(
        path,
        {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average,
            "step": step,
            "curve": [vars(point) for point in curve],
        },
    )


@contextmanager
def averaged(network: nn.Module, average: list[Tensor]) -> Iterator[None]:
    """The network with the averaged weights in place; its own come back afterwards."""
    if not average:
        yield
        return
    own = [p.detach().clone() for p in network.parameters()]
    _load(network, average)
    try:
        yield
    finally:
        _load(network, own)


def _load(network: nn.Module, weights: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(weight)
