"""PSNR, SSIM and paired differences against hand-made numbers and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from pipeline.data.dataset import Images
from pipeline.evaluation import metrics


def flat(level: float, side: int = 8) -> Tensor:
    return torch.full((1, 3, side, side), level / 255)


def test_psnr_is_that_of_the_mean_squared_error_in_levels() -> None:
    assert metrics.psnr(flat(128), flat(118)) == pytest.approx(10 * math.log10(255**2 / 100))  # 28.13 dB
    corner = flat(0)
    corner[:, :, 0, 0] = 1
    assert metrics.psnr(corner, flat(0)) == pytest.approx(10 * math.log10(64))  # one pixel of 64 wholly wrong
    one_channel = flat(0)
    one_channel[:, 0] = 1
    assert metrics.psnr(one_channel, flat(0)) == pytest.approx(10 * math.log10(3))


def test_images_are_clamped_and_rounded_to_levels_before_they_are_compared() -> None:
    assert metrics.psnr(flat(128.4), flat(127.6)) == 100
    assert metrics.psnr(flat(128.6), flat(128)) == pytest.approx(10 * math.log10(255**2))
    assert metrics.psnr(flat(400), flat(255)) == 100
    assert metrics.psnr(flat(-90), flat(0)) == 100


def test_equal_images_have_100_db_so_that_means_stay_finite() -> None:
    assert metrics.psnr(flat(7), flat(7)) == 100


def test_the_cropped_border_doesnt_count() -> None:
    framed = flat(50, 12)
    framed[:, :, :2], framed[:, :, -2:], framed[..., :2], framed[..., -2:] = 1, 1, 1, 1
    assert metrics.psnr(framed, flat(50, 12), crop_border=2) == 100
    assert metrics.psnr(framed, flat(50, 12), crop_border=1) < 20
    assert metrics.to_8bit(framed, 2).shape == (3, 8, 8)


def test_super_resolution_is_cropped_by_scale_plus_six_and_low_light_nothing() -> None:
    assert metrics.border("super_resolution", 2) == 8
    assert metrics.border("super_resolution", 3) == 9
    assert metrics.border("low_light", 2) == metrics.border("restoration", 1) == 0
    assert [metrics.luma_border("super_resolution", scale) for scale in (2, 3, 4)] == [2, 3, 4]
    assert metrics.luma_border("restoration", 1) == 0


def test_luma_is_matlabs_rgb2ycbcr_of_the_rounded_image() -> None:
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 150, 200]])
    image = colours.T.view(1, 3, 1, 6).float() / 255 + 0.001  # a quarter of a level: rounded away
    expected = [16, 235, 81.481, 144.553, 40.966, 16 + (65.481 * 100 + 128.553 * 150 + 24.966 * 200) / 255]
    assert metrics.luma(image)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_psnr_and_ssim_of_the_y_channel_are_those_of_its_levels(splits: dict[str, Images]) -> None:
    assert metrics.psnr_y(flat(128), flat(118)) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    assert metrics.psnr_y(flat(7), flat(7)) == 100
    images = splits["validation"]
    output, target = images.reference(0), images.pair(0)[1]
    levels = [
        16 + np.tensordot(np.array([65.481, 128.553, 24.966]) / 255, x[0].clamp(0, 1).mul(255).round().numpy(), axes=1)
        for x in (output, target)
    ]
    first, second = (x[2:-2, 2:-2].astype(float) for x in levels)
    assert metrics.psnr_y(output, target, 2) == pytest.approx(
        10 * math.log10(255**2 / np.mean((first - second) ** 2)), abs=1e-4
    )
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))  # Wang et al. 2004, by its formula on whole windows
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2

    def mean(x: np.ndarray) -> np.ndarray:
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(x, (11, 11)), kernel)

    a, b = mean(first), mean(second)
    spread = mean(first**2) - a**2, mean(second**2) - b**2, mean(first * second) - a * b
    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * a * b + one) * (2 * spread[2] + two) / ((a**2 + b**2 + one) * (spread[0] + spread[1] + two))
    assert metrics.ssim_y(output, target, 2) == pytest.approx(similar.mean(), abs=1e-5)


def test_a_test_sets_figures_are_means_by_both_protocols(splits: dict[str, Images]) -> None:
    images = splits["validation"]
    found = metrics.measure_set(None, images, "super_resolution")
    whole = metrics.measure(None, images, 8)
    assert (found["psnr"], found["ssim"]) == pytest.approx((whole.mean_psnr, whole.mean_ssim))
    by_hand = [metrics.psnr_y(images.reference(i), images.pair(i)[1], 2) for i in range(2)]
    assert found["psnr_y"] == pytest.approx(np.mean(by_hand))
    assert 0.3 < found["ssim_y"] < 0.99


def test_ssim_is_scikit_images_on_the_rounded_and_cropped_images(splits: dict[str, Images]) -> None:
    target, output = splits["validation"].pair(0)[1], splits["validation"].reference(0)
    levels = [
        np.round(np.clip(x[0].numpy().astype(float), 0, 1) * 255)[:, 8:-8, 8:-8].transpose(1, 2, 0) / 255
        for x in (output, target)
    ]
    expected = structural_similarity(*levels, channel_axis=-1, data_range=1.0)
    assert 0.3 < expected < 0.99
    assert metrics.ssim(output, target, 8) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(target, target, 8) == pytest.approx(1.0)


class Grey(nn.Module):
    """Restores every image as half grey."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), 0.5)


def test_quality_is_per_image_and_its_mean_the_mean_over_images(splits: dict[str, Images]) -> None:
    images = splits["validation"]
    measured = metrics.measure(Grey(), images, 8)
    assert measured.names == ("flag.png", "fur.png")
    by_hand = [metrics.psnr(torch.full_like(images.pair(i)[1], 0.5), images.pair(i)[1], 8) for i in range(2)]
    assert measured.psnr == pytest.approx(by_hand)
    assert measured.mean_psnr == pytest.approx(sum(by_hand) / 2)
    assert measured.mean_ssim == pytest.approx(sum(measured.ssim) / 2)


def test_without_a_network_the_reference_is_measured(splits: dict[str, Images]) -> None:
    images = splits["validation"]
    measured = metrics.measure(None, images, 8, with_ssim=False)
    assert measured.psnr[1] == metrics.psnr(images.reference(1), images.pair(1)[1], 8)
    assert measured.ssim == ()
    assert math.isnan(measured.mean_ssim)


def test_a_constant_difference_has_no_width() -> None:
    found = metrics.paired((30.5, 20.5, 25.5), (30.0, 20.0, 25.0), ("a", "b", "c"), seed=1, resamples=200)
    assert (found.mean, found.low, found.high, found.worst) == (0.5, 0.5, 0.5, 0.5)


def test_the_difference_is_first_less_second_and_the_worst_image_loses_most() -> None:
    found = metrics.paired((1.1, 1.7, 3.2), (1.0, 2.0, 3.0), ("a", "b", "c"), seed=1, resamples=200)
    assert found.mean == pytest.approx(0.0)
    assert found.worst == pytest.approx(-0.3)
    assert found.worst_name == "b"
    assert found.low < 0 < found.high


def test_the_interval_covers_95_percent_of_the_resampled_means() -> None:
    signs = tuple(float(2 * (i % 2) - 1) for i in range(400))  # mean 0, deviation 1: standard error 1/20
    found = metrics.paired(signs, (0.0,) * 400, ("x",) * 400, seed=3, resamples=4000)
    assert found.high == pytest.approx(1.96 / 20, abs=0.006)
    assert found.low == pytest.approx(-1.96 / 20, abs=0.006)


def test_the_bootstrap_repeats_for_a_seed() -> None:
    first, second, names = (1.0, 2.0, 4.0, 8.0), (0.9, 2.3, 3.1, 8.2), ("a", "b", "c", "d")
    one = metrics.paired(first, second, names, seed=1, resamples=100)
    assert one == metrics.paired(first, second, names, seed=1, resamples=100)
    assert one != metrics.paired(first, second, names, seed=2, resamples=100)


def test_colour_and_brightness_cost_nothing_after_the_fit_and_detail_does() -> None:
    class Tinted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([0.5, 0.8, 0.6]).view(1, 3, 1, 1) + 0.1

    class Pairs:
        names = ("one",)

        def __len__(self) -> int:
            return 1

        def pair(self, _: int) -> tuple[Tensor, Tensor]:
            levels = torch.arange(192).view(1, 3, 8, 8) / 255
            return levels, levels

    assert metrics.measure(Tinted(), Pairs(), 0, with_ssim=False).mean_psnr < 25
    assert metrics.psnr_after_colour_fit(Tinted(), Pairs(), 0) == 100

    class Detail(Pairs):  # a chequerboard of one level that no fit of a flat output makes
        def pair(self, _: int) -> tuple[Tensor, Tensor]:
            board = (torch.arange(64).view(8, 8) + torch.arange(8).view(8, 1)) % 2
            return torch.full((1, 3, 8, 8), 0.5), (127 + 2 * board.expand(1, 3, 8, 8)) / 255

    assert metrics.psnr_after_colour_fit(nn.Identity(), Detail(), 0) == pytest.approx(20 * math.log10(255))
