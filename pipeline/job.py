"""What a pruning run works on and by: the same for every method of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config, cost, quality
from pipeline.data.patches import load_images
from pipeline.device import Machine, choose
from pipeline.errors import UserError


@dataclass(frozen=True)
class Job:
    """What a pruning run works on and by; the same for every method of a network."""

    name: str  # of the network in params.yaml
    network: config.Network
    train: Any  # data.patches.Images
    validation: Any
    recipe: config.Train
    retrain: config.Retrain
    gate: config.Gate
    machine: Machine
    size: tuple[int, int]  # input height and width at which costs are counted
    seed: int

    @property
    def shave(self) -> int:
        return quality.border(self.network.task, self.network.scale)

    @property
    def iteration_steps(self) -> int:
        return self.retrain.train_steps + self.retrain.retrain_steps

    @property
    def loan(self) -> tuple[float, float]:
        return self.retrain.psnr_loan, self.retrain.ssim_loan

    def cost(self, network: nn.Module) -> cost.Cost:
        return cost.measure(network, self.size, self.example().shape[1])

    def example(self) -> Tensor:
        """The image that the network is traced with: any size gives the same groups, if the network can take it."""
        return example(self.network, self.recipe)

    def check(self, network: nn.Module) -> None:
        check(self.name, self.network, self.example(), network)

    def quality(self, network: nn.Module) -> quality.Quality:
        return quality.measure(network, self.validation, self.shave)

    def validate(self, network: nn.Module) -> float:
        return quality.measure(network, self.validation, self.shave, with_ssim=False).mean_psnr


def example(section: config.Network, recipe: config.Train) -> Tensor:
    """A black input of the network's task: [1, channels, side, side] in float32."""
    side = max(16, min(64, recipe.patch))
    return torch.zeros(1, 4 if section.task == "low_light" else 3, side, side)


def check(name: str, section: config.Network, example: Tensor, network: nn.Module) -> None:
    """UserError unless the network can be trained and makes of an input what its task asks for."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"networks.{name}: the network of {section.factory!r} has no parameter that can be trained")
    scale = section.scale
    wanted = (1, 3, scale * example.shape[2], scale * example.shape[3])
    try:
        with torch.no_grad():
            output = network.eval()(example)
    except (RuntimeError, TypeError, ValueError) as error:
        found = f"it fails: {str(error).splitlines()[0]}"
    else:
        if isinstance(output, Tensor) and output.shape == wanted and output.dtype == torch.float32:
            if cost.measure(network, tuple(example.shape[2:]), example.shape[1]).mac:
                return
            raise UserError(
                f"networks.{name}: the network of {section.factory!r} has no 2-D convolution: there are no MACs to save"
            )
        found = f"it gives {tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else "it gives no tensor"
    raise UserError(
        f"networks.{name}: of an input {tuple(example.shape)} the task {section.task} with scale {scale} "
        f"needs an output {wanted} in torch.float32, but {found}"
    )


def check_sides(section: config.Network, sides: Sequence[int], network: nn.Module) -> None:
    """UserError unless the network takes square images of these sides, in pixels, which are to be timed."""
    for side in sides:
        try:
            cost.measure(network, (side, side), 4 if section.task == "low_light" else 3)
        except UserError as error:
            raise UserError(f"latency.sides has {side}: {error}") from None


def load_job(params: config.Params, network: str, results: Path) -> Job:
    """The job of one network: its recipes, the machine, and the images that `prepare` left in `results`."""
    machine = choose(params.device, params.threads, params.precision)
    data = results / "prepare" / network
    return Job(
        name=network,
        network=params.networks[network],
        train=load_images(data / "train", machine.device),
        validation=load_images(data / "validation", machine.device),
        recipe=params.train[network],
        retrain=params.prune.networks[network],
        gate=params.gate,
        machine=machine,
        size=params.analyze[network].size,
        seed=params.seed * 1_000_003,
    )
