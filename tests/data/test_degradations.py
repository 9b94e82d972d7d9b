"""Small images as DIV2K's, the way back to raw, the noise, and splits made of photographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import ROOT
from PIL import Image

from pipeline.data import raw
from pipeline.data.degradations import (
    Camera,
    bicubic_downscale,
    bicubic_upscale,
    darken,
    draw_camera,
    unprocess,
)
from pipeline.data.raw import BLACK, Exposures
from pipeline.data.storage import Prepared, gathered
from pipeline.errors import UserError
from pipeline.prepare.images import load_image
from pipeline.prepare.pairs import Making, make, photographs

DATA = ROOT / "data"
PHOTOS = [DATA / "photos" / f"es_{name}.jpg" for name in ("city0", "forest1", "sea9")]


def matlab_half(line: np.ndarray) -> np.ndarray:
    """imresize(line, 0.5) along the first axis, from its definition: cubic a = −0.5 of width 8, repeated borders."""
    n = len(line) // 2
    taps = np.arange(-3, 5)[None, :] + 2 * np.arange(n)[:, None]
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3])  # of 256: the cubic at 1.75, 1.25, 0.75, 0.25, ...
    total = np.einsum("j,ij...->i...", weights, line.astype(int)[taps.clip(0, len(line) - 1)])
    return ((total + 128) // 256).clip(0, 255)


def test_half_size_images_follow_the_definition_of_imresize_to_the_last_byte() -> None:
    image = load_image(PHOTOS[0])
    expected = matlab_half(matlab_half(image).swapaxes(0, 1)).swapaxes(0, 1)
    assert np.array_equal(bicubic_downscale(image, 2), expected)


def test_rows_are_reduced_first_and_rounded_before_the_columns() -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[7, 7] = 174
    small = bicubic_downscale(image, 2)[..., 0]
    # 174 · 111/256 = 75.4 and 75 · 29/256 = 8.496; columns first: 19.7 and 20 · 111/256 = 8.67; unrounded: 8.55
    assert (small[3, 4], small[4, 3]) == (8, 9)
    assert (small[3, 3], small[4, 4]) == (33, 2)  # 75 · 111/256 = 32.5; 20 · 29/256 = 2.3
    assert small.sum() == 8 + 9 + 33 + 2  # negative lobes end at 0 after the first pass


def test_pixels_beyond_the_border_repeat_those_on_it() -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[0] = 255
    # (−3 − 9 + 29 + 111)/256 of 255 is 127.5, and halves go up; mirrored borders would give 140/256: 139
    assert bicubic_downscale(image, 2)[:, 5, 0].tolist() == [128, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("scale", [3, 4])
def test_other_scales_follow_the_same_definition(scale: int) -> None:
    line = np.random.default_rng(scale).integers(0, 256, 12 * scale)
    image = np.repeat(line[:, None, None], 12 * scale, axis=1).repeat(3, axis=2).astype(np.uint8)

    def cubic(x: float) -> float:
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    for i, value in enumerate(bicubic_downscale(image, scale)[:, 3, 0].tolist()):
        centre = scale * i + (scale - 1) / 2
        taps = range(scale * i - 3 * scale, scale * i + 4 * scale)
        weights = [cubic(abs(tap - centre) / scale) for tap in taps]
        exact = sum(w * line[min(max(tap, 0), len(line) - 1)] for w, tap in zip(weights, taps, strict=True)) / scale
        assert abs(value - min(max(exact, 0), 255)) <= 0.5 + 1e-9


def test_bicubic_up_agrees_with_the_published_figures_of_the_photographs() -> None:
    published = {e["file"]: e["bicubic_x2_psnr"] for e in json.loads((DATA / "photos" / "MANIFEST.json").read_text())}
    gaps = []
    for path in sorted((DATA / "photos").glob("*.jpg"))[::10]:
        high = torch.from_numpy(load_image(path)).permute(2, 0, 1)[None].float() / 255
        low = torch.from_numpy(bicubic_downscale(load_image(path), 2)).permute(2, 0, 1)[None].float() / 255
        error = (bicubic_upscale(low, 2) - high).square().mean()
        gaps.append(-10 * float(torch.log10(error)) - published[path.name])
    assert abs(np.mean(gaps)) < 0.3  # dB; the manifest's protocol isn't stated, so only roughly


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_flat_image_stays_flat_and_a_ramp_keeps_its_slope(scale: int) -> None:
    flat = np.full((24, 24, 3), 77, dtype=np.uint8)
    assert (bicubic_downscale(flat, scale) == 77).all()
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (24, 48, 3)).copy()
    small = bicubic_downscale(ramp, scale)[3, 2:-2, 0].astype(int)
    assert (np.diff(small) == 5 * scale).all()


def process(linear: np.ndarray, camera: Camera) -> np.ndarray:
    """The camera's own way from linear RGB to sRGB, the inverse of `unprocess` below the highlights."""
    colour = (linear * camera.gains) @ np.linalg.inv(camera.matrix).T
    display = np.clip(colour, 0, 1) ** (1 / 2.2)
    return 3 * display**2 - 2 * display**3


def taken_back(image: np.ndarray, camera: Camera) -> np.ndarray:
    """[n, 3] sRGB levels through `unprocess`, in float64."""
    pixels = torch.from_numpy(image.astype(np.uint8)).T.reshape(1, 3, 1, -1)
    linear = unprocess(pixels, torch.from_numpy(camera.matrix)[None], torch.from_numpy(camera.gains)[None])
    return linear.reshape(3, -1).T.numpy()


def test_unprocessing_is_undone_by_the_camera_pipeline() -> None:
    rng = np.random.default_rng(3)
    camera = draw_camera(rng)
    # Moderate colours: a saturated one can be negative in camera space, or fall into the protected highlights.
    image = rng.integers(80, 200, (40, 1)) + rng.integers(-12, 12, (40, 3))
    assert np.allclose(process(taken_back(image, camera), camera), image / 255, atol=1e-9)


def test_unprocessing_one_grey_gives_the_hand_computed_values() -> None:
    camera = Camera(np.eye(3), np.array([2.0, 1.0, 1.6]))
    # 51 is 0.2. Tone curve: 0.5 - sin(asin(0.6)/3) = 0.287140; gamma: 0.287140^2.2 = 0.064240.
    assert np.allclose(taken_back(np.full((1, 3), 51), camera), [[0.032120, 0.064240, 0.040150]], atol=1e-6)


def test_white_and_black_survive_the_inverse_gains() -> None:
    for seed in range(20):
        camera = draw_camera(np.random.default_rng(seed))
        assert np.allclose(taken_back(np.full((1, 3), 255), camera), 1.0)
        assert np.allclose(taken_back(np.zeros((1, 3)), camera), 0.0)


def test_cameras_keep_grey_and_stay_in_the_published_ranges() -> None:
    cameras = [draw_camera(np.random.default_rng(seed)) for seed in range(300)]
    assert all(np.allclose(camera.matrix.sum(axis=1), 1.0) for camera in cameras)
    gains = np.array([camera.gains for camera in cameras])
    red, blue = (gains[:, 0] / gains[:, 1], gains[:, 2] / gains[:, 1])
    assert (red.min(), red.max(), blue.min(), blue.max()) == pytest.approx((1.9, 2.4, 1.5, 1.9), abs=0.02)
    assert (1 / gains[:, 1]).mean() == pytest.approx(0.8, abs=0.02)
    assert (1 / gains[:, 1]).std() == pytest.approx(0.1, abs=0.02)


def test_packing_goes_round_the_cell() -> None:
    mosaic = torch.tensor(
        [[[0, 1, 10, 11], [2, 3, 12, 13]]]
    )  # digits: 0 is (0, 0), 1 is (0, 1), 2 is (1, 0), 3 is (1, 1)
    packed = raw.pack_bayer(mosaic)
    assert packed.tolist() == [[[[0, 10]], [[1, 11]], [[3, 13]], [[2, 12]]]]
    assert torch.equal(raw.unpack_bayer(packed), mosaic)


def test_the_mosaic_keeps_red_green_blue_green() -> None:
    rgb = torch.arange(3.0)[:, None, None].expand(3, 4, 6) * 100 + torch.arange(24.0).view(4, 6)
    packed = raw.mosaic_packed(rgb)
    assert packed[:, 1, 2].tolist() == [
        16.0,
        117.0,
        223.0,
        122.0,
    ]  # red (2, 4), green (2, 5), blue (3, 5), green (3, 4)


def test_noise_has_the_stated_variance_at_every_signal() -> None:
    shot, read = 0.004, 2e-5
    clean = torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 4, 300, 300)
    ratio, one = torch.full((3,), 2.0), torch.ones(3)
    samples = raw.expose(clean, ratio, one * shot, one * read, torch.Generator().manual_seed(0))
    x = (samples - raw.BLACK) / raw.RANGE
    signal = torch.tensor([0.1, 0.25, 0.5])
    assert torch.allclose(x.mean(dim=(1, 2, 3)), signal, atol=5e-4)
    assert torch.allclose(x.var(dim=(1, 2, 3)), shot * signal + read, rtol=0.02)  # 360,000 samples: sd of 0.24%
    assert torch.equal(samples, samples.round())


def test_noise_levels_lie_on_the_published_line() -> None:
    shot, read = raw.sample_noise(np.random.default_rng(0), 4000, (1e-4, 0.012))
    assert (shot.min(), shot.max()) == pytest.approx((1e-4, 0.012), rel=0.01)
    off_line = np.log(read) - (2.18 * np.log(shot) + 1.20)
    assert (off_line.mean(), off_line.std()) == pytest.approx((0.0, 0.26), abs=0.015)


def test_samples_stay_in_the_converters_range() -> None:
    clean = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 4, 50, 50)
    wide = torch.ones(2)
    samples = raw.expose(clean, wide, wide, wide, torch.Generator().manual_seed(0))
    assert (samples.min(), samples.max()) == (0, 16383)


def test_amplifying_is_sids_formula() -> None:
    samples = torch.tensor([0, 512, 512 + 15871 // 200, 16383]).view(1, 4, 1, 1)
    assert raw.amplify(samples, torch.tensor([100.0])).flatten().tolist() == pytest.approx([0, 0, 7900 / 15871, 1])
    assert raw.amplify(samples, torch.tensor([1000.0])).flatten()[2] == 1.0  # 300 × 79 / 15871 is 1.49
    one_step = torch.full((1, 4, 1, 1), 513)
    assert float(raw.amplify(one_step, torch.tensor([1000.0]))[0, 0]) == pytest.approx(300 / 15871)


def test_demosaicing_keeps_a_flat_colour_up_to_the_border() -> None:
    rgb = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 6, 8)
    image = raw.demosaic_amplified(raw.mosaic_packed(rgb))
    assert image.shape == (1, 3, 6, 8)
    assert torch.allclose(image, rgb ** (1 / 2.2), atol=1e-6)


def test_demosaicing_is_bilinear_inside() -> None:
    rgb = (torch.arange(64.0).view(1, 1, 8, 8) / 64).expand(1, 3, 8, 8)  # linear in both directions
    inside = raw.demosaic_amplified(raw.mosaic_packed(rgb))[..., 1:-1, 1:-1]
    assert torch.allclose(inside, rgb[..., 1:-1, 1:-1] ** (1 / 2.2), atol=1e-6)


def real_crop() -> np.ndarray:
    with np.load(next((DATA / "raw").glob("*.npz")), allow_pickle=False) as stored:
        assert (int(stored["white"]), stored["black"].tolist()) == (raw.WHITE, [raw.BLACK] * 4)
        return stored["bayer"]


def test_the_noise_model_fits_a_real_sensor() -> None:
    shot, read = raw.estimate_noise(real_crop())
    assert shot == pytest.approx(6.5e-4, rel=0.15)
    assert raw.Exposures().shot[0] < shot < raw.Exposures().shot[1]
    # The read noise that the model draws at this shot noise, give or take five standard deviations of its spread.
    assert abs(np.log(read) - (2.18 * np.log(shot) + 1.20)) < 5 * 0.26


def test_the_estimate_returns_the_noise_that_was_put_in() -> None:
    clean = torch.linspace(0, 1, 400).expand(1, 4, 400, 400)
    one = torch.ones(1)
    samples = raw.expose(clean, one * 5, one * 6.5e-4, one * 4e-7, torch.Generator().manual_seed(0))
    shot, _ = raw.estimate_noise(raw.unpack_bayer(samples)[0].numpy())
    assert shot == pytest.approx(6.5e-4, rel=0.03)


def low_light(seed: int, minimum: int = 96, fixed: bool = True, exposures: raw.Exposures | None = None) -> Making:
    return Making("low_light", 2, minimum, exposures or raw.Exposures(), seed=seed, fixed=fixed)


def prepared(paths: list[Path], making: Making) -> Prepared:
    return gathered(*make(photographs(paths), making))


def write(path: Path, h: int, w: int) -> Path:
    Image.fromarray(np.random.default_rng(h * w).integers(0, 256, (h, w, 3), dtype=np.uint8)).save(path)
    return path


def test_preparing_cuts_right_and_bottom_to_a_multiple_of_the_scale(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.png", 31, 40), write(tmp_path / "b.png", 36, 38)]
    split = prepared(paths, Making("super_resolution", scale=3, minimum=30))
    assert split["sizes"].tolist() == [[10, 13], [12, 12]]
    high = split["high"]
    assert np.array_equal(high[: 30 * 39].reshape(30, 39, 3), load_image(paths[0])[:30, :39])
    assert np.array_equal(high[30 * 39 :].reshape(36, 36, 3), load_image(paths[1])[:, :36])
    assert len(split["low"]) == 10 * 13 + 12 * 12
    assert prepared(paths, low_light(0, 30))["sizes"].tolist() == [[15, 20], [18, 19]]


@pytest.mark.parametrize("task", ["super_resolution", "low_light"])
def test_too_small_a_image_is_refused_with_its_size(tmp_path: Path, task: str) -> None:
    paths = [write(tmp_path / "fine.png", 96, 96), write(tmp_path / "small.png", 97, 95)]

    def prepare(minimum: int) -> Prepared:
        return prepared(paths, replace(low_light(0, minimum, fixed=False), task=task))

    assert len(prepare(94)["names"]) == 2
    with pytest.raises(UserError, match=r"small\.png.*95×97.*at least 95"):
        prepare(95)  # 95 wide, but an even 94 is all that can be used


def test_no_image_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        prepared([], Making("super_resolution", 2, 8))


def test_low_light_is_each_images_own_and_fixed_by_the_seed() -> None:
    split = prepared(PHOTOS, low_light(7))
    again = prepared(PHOTOS[::-1], low_light(7))
    samples = split["raw"].reshape(3, 4, 128, 128)
    assert np.array_equal(samples[0], again["raw"].reshape(3, 4, 128, 128)[2])  # whatever else is in the split
    other = prepared(PHOTOS, low_light(8))
    assert not np.array_equal(samples[0], other["raw"].reshape(3, 4, 128, 128)[0])
    assert len(set(split["ratio"].tolist())) == 3
    assert ((split["ratio"] >= 100) & (split["ratio"] <= 300)).all()
    assert prepared(PHOTOS[:1], low_light(7, fixed=False)).keys() == {
        "task",
        "names",
        "scale",
        "sizes",
        "high",
        "exposures",
        "cameras",
    }


def test_one_camera_gives_all_images_its_colours_and_random_ones_to_each() -> None:
    """By one grey of sRGB, whose raw is linear grey over the gains: red and blue are alike for one camera alone."""
    grey = torch.full((5, 3, 64, 64), 128, dtype=torch.uint8)
    ratios: dict[str, list[float]] = {}
    for cameras in ("one", "random"):
        exposures = Exposures((1.0, 1.0), (1e-9, 1e-9), cameras)
        samples, _ = darken(grey, np.random.default_rng(3), exposures)
        means = (samples.double() - BLACK).mean(dim=(2, 3))
        ratios[cameras] = (means[:, 1] / means[:, 0]).tolist()  # green over red
    assert ratios["one"] == pytest.approx([2.1] * 5, rel=0.01)
    assert max(ratios["random"]) - min(ratios["random"]) > 0.1


def test_the_dark_samples_show_the_photograph() -> None:
    split = prepared(PHOTOS[:1], low_light(7))
    samples = split["raw"].reshape(4, 16, 8, 16, 8).mean(axis=(0, 2, 4)).ravel()  # blocks: the noise averages out
    bright = split["high"].reshape(16, 16, 16, 16, 3).mean(axis=(1, 3, 4)).ravel()
    rank = np.corrcoef(np.argsort(np.argsort(samples)), np.argsort(np.argsort(bright)))[0, 1]
    assert rank > 0.8  # the same image, its brightness order kept
    assert (samples.min() > 512, samples.max() < 512 + 15871 / 100 + 20) == (True, True)  # 1/ratio of the range


def test_the_exposures_asked_for_are_drawn() -> None:
    bright = raw.Exposures(ratio=(100.0, 100.0), shot=(1e-4, 1e-4))
    split = prepared(PHOTOS, low_light(7, exposures=bright))
    assert split["ratio"].tolist() == [100.0] * len(PHOTOS)
    noisy = prepared(PHOTOS, low_light(7, exposures=raw.Exposures((100.0, 100.0), (0.01, 0.01))))
    assert noisy["raw"].astype(float).std() > 5 * split["raw"].astype(float).std()
    assert split["exposures"].tolist() == [[100.0, 100.0], [1e-4, 1e-4]]
