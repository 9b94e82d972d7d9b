"""A network's set-up: its images, recipes, gate and machine, which the control and every method share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config, cost, records
from pipeline.data.dataset import load_images
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.files import digest, make_folder
from pipeline.training.device import Machine, choose

SAMPLES = 16  # batches


@dataclass(frozen=True)
class Setup:
    """Everything but the weights that a training or a pruning run of one network needs."""

    name: str  # of the network in params.yaml
    network: config.Network
    train: Any  # data.dataset.Images
    validation: Any
    recipe: config.Train
    retrain: config.Retrain
    gate: config.Gate
    tolerance: tuple[float, float]  # what an iteration may miss the gate by: PSNR in dB, SSIM
    machine: Machine
    size: tuple[int, int]  # input height and width at which costs are counted
    seed: int
    rate: float = 1.0  # factor to the rates of retrain and finetune: what the control found bearable
    images: str = ""  # names the training images, for the cache
    cache: Path | None = None  # where trainings are kept that may be wanted again; None: nowhere

    @property
    def crop_border(self) -> int:
        return metrics.border(self.network.task, self.network.scale, self.network.channels)

    @property
    def iteration_steps(self) -> int:
        return self.retrain.steps

    @property
    def channels(self) -> int:
        return self.network.input_channels

    def cost(self, network: nn.Module) -> cost.Cost:
        return cost.measure(network, self.size, self.channels)

    def example(self, network: nn.Module | None = None) -> Tensor:
        """The image that the network is traced with: any size gives the same groups, if the network can take it."""
        return example(self.network, self.recipe, network)

    def samples(self) -> Iterator[Tensor]:
        """The inputs of `sample_pairs`."""
        return (inputs for inputs, _ in self.sample_pairs())

    def sample_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training inputs [batch, channels, side, side] and their targets, always the same, to measure on.

        The side is up to four times the patch's: on patches the deep levels of a U-Net see little but their padding,
        and channels seem useless that whole images need.
        """
        times = max(1, min(4, int(self.train.sizes.min()) // self.recipe.patch))
        images = max(1, self.recipe.batch // times**2)
        for step in range(SAMPLES):
            yield self.train.batch(step, self.seed + 200_003, images, times * self.recipe.patch)

    def quality(self, network: nn.Module) -> metrics.Quality:
        return metrics.measure(network, self.validation, self.crop_border)

    def validate(self, network: nn.Module) -> float:
        return metrics.measure(network, self.validation, self.crop_border, with_ssim=False).mean_psnr


def example(section: config.Network, recipe: config.Train, network: nn.Module | None = None) -> Tensor:
    """A black input of the network's task: [1, channels, side, side] in float32.

    The side is a multiple of the patch's that isn't small; of a large patch 64 pixels do, if the network takes them.
    """
    side = recipe.patch * math.ceil(16 / recipe.patch)
    if side > 64:
        fits = network is None or not misfit(section, (1, 64, 64), network)
        side = 64 if fits else side
    # float32 also where a user's module has made another type the default
    return torch.zeros(1, section.input_channels, side, side, dtype=torch.float32)


def misfit(section: config.Network, size: tuple[int, int, int], network: nn.Module) -> str:
    """Why the network doesn't make what its task asks for of inputs of that batch, height and width; empty if it does.

    Only shapes are computed, so that no size is too large.
    """
    batch, height, width = size
    needed = (batch, section.channels, section.scale * height, section.scale * width)
    try:
        output = cost.shape(network, (batch, section.input_channels, height, width))
    except UserError as error:
        return str(error)
    return "" if output == needed else f"{type(network).__name__} makes {output} and not {needed}"


def load_setup(params: config.Params, network: str, results: Path, cache: Path | None = None) -> Setup:
    """The setup of one network: its recipes, the machine, and the images that `prepare` left in `results`.

    cache: a folder of trainings that several stages and trials share.
    """
    if cache is not None:
        make_folder(cache)  # before anything trains
    machine = choose(params.device, params.threads, params.precision)
    data = results / "prepare" / network
    return Setup(
        name=network,
        network=params.networks[network],
        train=load_images(data / "train", machine.device),
        validation=load_images(data / "validation", machine.device),
        recipe=params.train[network],
        retrain=params.retrain[network],
        gate=params.gate,
        tolerance=(params.tolerance[network].psnr, params.tolerance[network].ssim),
        machine=machine,
        size=params.analyze[network].size,
        seed=params.seed * 1_000_003,
        rate=_rate(results, network),
        images=digest(data / "train" / "index.json"),
        cache=cache,
    )


def _rate(results: Path, network: str) -> float:
    """The factor that the control found; 1 before there is one."""
    path = results / "control" / network / "rate.json"
    return records.rate(path) if path.exists() else 1.0
