"""One channel: levels of known colours, and what batches, figures and pictures of a network of luma are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Images, load_images
from pipeline.data.luma import coloured, luma
from pipeline.data.storage import Prepared
from pipeline.evaluation import crops, metrics

COLOURS = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 150, 200]]
# 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded: 81.481, 144.553, 40.966, 136.876
Y = [16, 235, 81, 145, 41, 137]
GREY = [0, 255, 76, 150, 29, 141]  # 0.299 R + 0.587 G + 0.114 B, rounded: 76.2, 149.7, 29.1, 140.8


def image(colours: list[list[int]]) -> Tensor:
    """[1, 3, 1, n] in 0 … 1, a pixel of each colour."""
    return torch.tensor(colours).T.reshape(1, 3, 1, -1) / 255


@pytest.mark.parametrize(("task", "levels"), [("super_resolution", Y), ("restoration", GREY)])
def test_luma_has_the_levels_of_the_published_protocols(task: str, levels: list[int]) -> None:
    made = luma(image(COLOURS), task)
    assert (made.shape, made.dtype) == ((1, 1, 1, 6), torch.float32)
    assert (made * 255).flatten().tolist() == pytest.approx(levels, abs=1e-4)


@pytest.mark.parametrize("task", ["super_resolution", "restoration"])
def test_luma_and_the_colours_of_an_image_are_the_image_again(task: str) -> None:
    again = coloured(luma(image(COLOURS), task), image(COLOURS), task) * 255
    assert (again - image(COLOURS) * 255).abs().max() < 0.6  # what rounding Y to a level of 219 takes away


def split(task: str = "super_resolution", scale: int = 2) -> Prepared:
    """One image, red at the left and blue at the right."""
    high = np.zeros((24 * scale, 24 * scale, 3), dtype=np.uint8)
    high[:, : 12 * scale, 0], high[:, 12 * scale :, 2] = 255, 255
    low = high[::scale, ::scale]
    return {
        "task": np.array(task), "names": np.array(["a.png"]), "scale": np.array(scale), "sizes": np.array([[24, 24]]),
        "high": high.reshape(-1, 3), "low": low.reshape(-1, 3), "channels": np.array(1),
    }  # fmt: skip


@pytest.fixture
def images() -> Images:
    return load_images(split(), "cpu")


def test_batches_and_whole_images_of_luma_have_one_channel(images: Images) -> None:
    given, target = images.batch(0, seed=0, batch=4, patch=24)
    assert (given.shape, target.shape) == ((4, 1, 24, 24), (4, 1, 48, 48))
    assert set((given * 255).round().unique().tolist()) == set((target * 255).round().unique().tolist()) == {81, 41}
    given, target = images.pair(0)
    assert (given.shape, target.shape) == ((1, 1, 24, 24), (1, 1, 48, 48))
    assert images.reference(0).shape == target.shape


def test_noise_is_added_to_luma_and_its_pictures_are_grey() -> None:
    prepared = split("restoration", 1) | {"noise": np.array(25.0), "seed": np.array(0)}
    del prepared["low"]
    noisy = load_images(prepared, "cpu")
    given, target = noisy.pair(0)
    assert given.shape == target.shape == (1, 1, 24, 24)
    assert 20 < (given - target).std() * 255 < 30
    picture = noisy.picture(0, target)
    assert picture.shape == (1, 3, 24, 24)
    assert (picture * 255)[0, :, 0, 0].tolist() == pytest.approx([76, 76, 76])


def test_quality_of_luma_is_that_of_its_levels_cropped_by_scale(images: Images) -> None:
    class Off(nn.Module):
        """The target, ten levels too light, and black in the border that isn't measured."""

        def forward(self, x: Tensor) -> Tensor:
            made = torch.zeros(1, 1, 48, 48)
            made[..., 2:-2, 2:-2] = images.pair(0)[1][..., 2:-2, 2:-2] + 10 / 255
            return made

    border = metrics.border("super_resolution", 2, channels=1)
    assert border == 2
    measured = metrics.measure(Off(), images, border)
    assert measured.mean_psnr == pytest.approx(20 * math.log10(255 / 10))  # 28.13 dB
    output, target = Off()(None), images.pair(0)[1]
    assert measured.mean_ssim == metrics.ssim_y(output, target, border) < 1
    of_set = metrics.measure_set(Off(), images, "super_resolution")
    assert of_set["psnr"] == of_set["psnr_y"] == pytest.approx(measured.mean_psnr)


def test_pictures_of_luma_have_the_inputs_colours(images: Images) -> None:
    _, target = images.pair(0)
    picture = images.picture(0, target)
    assert picture.shape == (1, 3, 48, 48)
    assert (picture * 255)[0, :, 24, 4].tolist() == pytest.approx([255, 0, 0], abs=1)
    assert (picture * 255)[0, :, 24, 44].tolist() == pytest.approx([0, 0, 255], abs=1)

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return target

    assert crops.restored(images, 0, Same(), 48)[24, 4].tolist() == pytest.approx([255, 0, 0], abs=1)
