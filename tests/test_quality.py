"""PSNR, SSIM and paired differences against hand-made numbers and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from pipeline import quality
from pipeline.data.patches import Images


def flat(level: float, side: int = 8) -> Tensor:
    return torch.full((1, 3, side, side), level / 255)


def test_psnr_is_that_of_the_mean_squared_error_in_levels() -> None:
    assert quality.psnr(flat(128), flat(118)) == pytest.approx(10 * math.log10(255**2 / 100))  # 28.13 dB
    corner = flat(0)
    corner[:, :, 0, 0] = 1
    assert quality.psnr(corner, flat(0)) == pytest.approx(10 * math.log10(64))  # one pixel of 64 wholly wrong
    one_channel = flat(0)
    one_channel[:, 0] = 1
    assert quality.psnr(one_channel, flat(0)) == pytest.approx(10 * math.log10(3))


def test_images_are_clamped_and_rounded_to_levels_before_they_are_compared() -> None:
    assert quality.psnr(flat(128.4), flat(127.6)) == 100
    assert quality.psnr(flat(128.6), flat(128)) == pytest.approx(10 * math.log10(255**2))
    assert quality.psnr(flat(400), flat(255)) == 100
    assert quality.psnr(flat(-90), flat(0)) == 100


def test_equal_images_have_100_db_so_that_means_stay_finite() -> None:
    assert quality.psnr(flat(7), flat(7)) == 100


def test_the_shaved_border_doesnt_count() -> None:
    framed = flat(50, 12)
    framed[:, :, :2], framed[:, :, -2:], framed[..., :2], framed[..., -2:] = 1, 1, 1, 1
    assert quality.psnr(framed, flat(50, 12), shave=2) == 100
    assert quality.psnr(framed, flat(50, 12), shave=1) < 20
    assert quality.to_8bit(framed, 2).shape == (3, 8, 8)


def test_super_resolution_shaves_scale_plus_six_and_low_light_nothing() -> None:
    assert quality.border("super_resolution", 2) == 8
    assert quality.border("super_resolution", 3) == 9
    assert quality.border("low_light", 2) == 0


def test_ssim_is_scikit_images_on_the_rounded_and_shaved_images(splits: dict[str, Images]) -> None:
    target, output = splits["validation"].pair(0)[1], splits["validation"].reference(0)
    levels = [
        np.round(np.clip(x[0].numpy().astype(float), 0, 1) * 255)[:, 8:-8, 8:-8].transpose(1, 2, 0) / 255
        for x in (output, target)
    ]
    expected = structural_similarity(*levels, channel_axis=-1, data_range=1.0)
    assert 0.3 < expected < 0.99
    assert quality.ssim(output, target, 8) == pytest.approx(expected, abs=1e-12)
    assert quality.ssim(target, target, 8) == pytest.approx(1.0)


class Grey(nn.Module):
    """Restores every picture as half grey."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), 0.5)


def test_quality_is_per_image_and_its_mean_the_mean_over_images(splits: dict[str, Images]) -> None:
    images = splits["validation"]
    measured = quality.measure(Grey(), images, 8)
    assert measured.names == ("flag.png", "fur.png")
    by_hand = [quality.psnr(torch.full_like(images.pair(i)[1], 0.5), images.pair(i)[1], 8) for i in range(2)]
    assert measured.psnr == pytest.approx(by_hand)
    assert measured.mean_psnr == pytest.approx(sum(by_hand) / 2)
    assert measured.mean_ssim == pytest.approx(sum(measured.ssim) / 2)


def test_without_a_network_the_reference_is_measured(splits: dict[str, Images]) -> None:
    images = splits["validation"]
    measured = quality.measure(None, images, 8, with_ssim=False)
    assert measured.psnr[1] == quality.psnr(images.reference(1), images.pair(1)[1], 8)
    assert measured.ssim == ()
    assert math.isnan(measured.mean_ssim)


def test_a_constant_difference_has_no_width() -> None:
    found = quality.paired((30.5, 20.5, 25.5), (30.0, 20.0, 25.0), ("a", "b", "c"), seed=1, resamples=200)
    assert (found.mean, found.low, found.high, found.worst) == (0.5, 0.5, 0.5, 0.5)


def test_the_difference_is_first_less_second_and_the_worst_image_loses_most() -> None:
    found = quality.paired((1.1, 1.7, 3.2), (1.0, 2.0, 3.0), ("a", "b", "c"), seed=1, resamples=200)
    assert found.mean == pytest.approx(0.0)
    assert found.worst == pytest.approx(-0.3)
    assert found.worst_name == "b"
    assert found.low < 0 < found.high


def test_the_interval_covers_95_percent_of_the_resampled_means() -> None:
    signs = tuple(float(2 * (i % 2) - 1) for i in range(400))  # mean 0, deviation 1: standard error 1/20
    found = quality.paired(signs, (0.0,) * 400, ("x",) * 400, seed=3, resamples=4000)
    assert found.high == pytest.approx(1.96 / 20, abs=0.006)
    assert found.low == pytest.approx(-1.96 / 20, abs=0.006)


def test_the_bootstrap_repeats_for_a_seed() -> None:
    first, second, names = (1.0, 2.0, 4.0, 8.0), (0.9, 2.3, 3.1, 8.2), ("a", "b", "c", "d")
    one = quality.paired(first, second, names, seed=1, resamples=100)
    assert one == quality.paired(first, second, names, seed=1, resamples=100)
    assert one != quality.paired(first, second, names, seed=2, resamples=100)
