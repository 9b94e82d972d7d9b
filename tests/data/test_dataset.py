"""Training batches and evaluation pairs: aligned, repeatable, evenly drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from chains import ROOT

from pipeline.data import degradations, raw
from pipeline.data.dataset import load_images
from pipeline.data.degradations import bicubic_upscale
from pipeline.data.storage import Prepared, gathered, save_split
from pipeline.errors import UserError
from pipeline.prepare.pairs import Making, make, photographs

PHOTOS = [ROOT / "data" / "photos" / f"es_{name}.jpg" for name in ("city0", "forest1", "sea9", "fog6")]
SIZES = [(20, 31), (44, 17), (16, 16)]  # input pixels, all different


def coordinates(h: int, w: int, image: int) -> np.ndarray:
    """[h, w, 3] uint8 that says of each pixel its row, its column and its image."""
    rows, columns = np.mgrid[:h, :w]
    return np.stack([rows, columns, np.full((h, w), image)], axis=2).astype(np.uint8)


def common(task: str, scale: int) -> Prepared:
    low = [coordinates(h, w, i) for i, (h, w) in enumerate(SIZES)]
    high = [image.repeat(scale, axis=0).repeat(scale, axis=1) for image in low]
    return {
        "task": np.array(task),
        "names": np.array(["a.png", "b.png", "c.png"]),
        "scale": np.array(scale),
        "sizes": np.array(SIZES),
        "low": np.concatenate([image.reshape(-1, 3) for image in low]),
        "high": np.concatenate([image.reshape(-1, 3) for image in high]),
    }


@pytest.mark.parametrize("scale", [2, 3])
def test_input_and_target_patches_show_the_same_place(scale: int) -> None:
    images = load_images(common("super_resolution", scale), "cpu")
    orientations, seen = set(), set()
    for step in range(12):
        given, target = images.batch(step, seed=0, batch=16, patch=12)
        assert given.shape == (16, 3, 12, 12)
        assert torch.equal(target, given.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
        levels = (given * 255).round().int()
        row, column, image = levels.unbind(1)
        assert (image == image[:, :1, :1]).all()
        for r, c, p in zip(row, column, image, strict=True):
            steps = (int(r[1, 0] - r[0, 0]), int(r[0, 1] - r[0, 0]), int(c[1, 0] - c[0, 0]), int(c[0, 1] - c[0, 0]))
            span = torch.arange(12)
            assert torch.equal(r - r[0, 0], span[:, None] * steps[0] + span * steps[1])  # a whole square, no wrapping
            assert torch.equal(c - c[0, 0], span[:, None] * steps[2] + span * steps[3])
            orientations.add(steps)
            seen.add((int(p[0, 0]), int(r.min()), int(c.min())))
    assert len(orientations) == 8
    for image, (h, w) in enumerate(SIZES):
        corners = [(r, c) for p, r, c in seen if p == image]
        assert max(r for r, _ in corners) <= h - 12
        assert max(c for _, c in corners) <= w - 12


def test_every_place_can_be_drawn_up_to_the_last_row_and_column() -> None:
    images = load_images(common("super_resolution", 2), "cpu")
    given = torch.cat([images.batch(step, 1, 16, 14)[0] for step in range(12)]) * 255
    smallest = given[given[:, 2, 0, 0] == 2]  # the 16×16 image has 3×3 places for a patch of 14
    places = {(int(p[0].min()), int(p[1].min())) for p in smallest.round()}
    assert places == {(r, c) for r in range(3) for c in range(3)}


def test_flips_and_turns_leave_red_at_the_corner_of_the_bayer_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = common("low_light", 2)
    del prepared["low"]
    high = [coordinates(2 * h, 2 * w, i) for i, (h, w) in enumerate(SIZES)]  # now all four places of a cell differ
    prepared["high"] = np.concatenate([image.reshape(-1, 3) for image in high])
    plain = degradations.Camera(np.eye(3), np.ones(3))
    monkeypatch.setattr(degradations, "draw_camera", lambda rng: plain)
    prepared["exposures"] = np.array([[1.0, 1.0], [1e-4, 1e-4]])
    monkeypatch.setattr(degradations, "sample_noise", lambda rng, count, shot: (np.zeros(count), np.zeros(count)))
    images = load_images(prepared, "cpu")
    linear = torch.from_numpy(degradations.LINEAR).float()
    for step in range(6):
        given, target = images.batch(step, seed=0, batch=16, patch=12)
        scene = linear[(target * 255).round().long()]
        for channel, (colour, dy, dx) in enumerate([(0, 0, 0), (1, 0, 1), (2, 1, 1), (1, 1, 0)]):
            seen = scene[:, colour, dy::2, dx::2]
            assert torch.allclose(given[:, channel], seen, atol=1 / raw.RANGE)  # the raw's own rounding


@pytest.fixture(scope="module")
def low_light() -> Prepared:
    return gathered(*make(photographs(PHOTOS), Making("low_light", 2, 96, raw.Exposures(), seed=5, fixed=True)))


@pytest.fixture(scope="module")
def super_resolution() -> Prepared:
    return gathered(*make(photographs(PHOTOS), Making("super_resolution", 2, 96)))


@pytest.mark.parametrize("task", ["super_resolution", "low_light"])
def test_a_step_gives_the_same_bits_whenever_it_is_asked_for(task: str, request: pytest.FixtureRequest) -> None:
    prepared = request.getfixturevalue(task)
    first = load_images(prepared, "cpu")
    wanted = first.batch(3, 9, 4, 24)
    later = load_images(prepared, "cpu")
    torch.manual_seed(1)
    later.batch(0, 9, 4, 24)
    assert all(torch.equal(a, b) for a, b in zip(wanted, later.batch(3, 9, 4, 24), strict=True))
    for other in (later.batch(4, 9, 4, 24), later.batch(3, 8, 4, 24)):
        assert not torch.equal(wanted[1], other[1])


def test_batches_are_floats_from_0_to_1_of_the_promised_shapes(low_light: Prepared) -> None:
    given, target = load_images(low_light, "cpu").batch(0, 0, 5, 16)
    assert (given.shape, target.shape) == ((5, 4, 16, 16), (5, 3, 32, 32))
    assert given.dtype == target.dtype == torch.float32
    assert all(float(t.min()) >= 0 and float(t.max()) <= 1 for t in (given, target))
    assert given.is_contiguous()
    assert target.is_contiguous()


def test_training_exposures_are_fresh_and_evaluation_exposures_fixed(low_light: Prepared) -> None:
    one = {key: low_light[key] for key in ("task", "scale", "exposures")} | {
        "names": low_light["names"][:1],
        "sizes": low_light["sizes"][:1],
        "high": low_light["high"][:65536],
    }
    whole = load_images(one, "cpu")  # a patch of the image's size: only flips, turns and exposures are left to differ
    by_target: dict[bytes, list[torch.Tensor]] = {}
    for step in range(12):
        given, target = whole.batch(step, 0, 1, 128)
        by_target.setdefault(target.numpy().tobytes(), []).append(given)
    repeated = [inputs for inputs in by_target.values() if len(inputs) > 1]
    assert repeated
    assert not any(torch.equal(inputs[0], inputs[1]) for inputs in repeated)
    brightness = [float(given.mean()) for inputs in by_target.values() for given in inputs]
    assert np.std(brightness) > 0.02 * np.mean(brightness)  # cameras differ, and not their noise alone
    images = load_images(low_light, "cpu")
    assert torch.equal(images.pair(0)[0], images.pair(0)[0])


def test_the_most_varied_of_four_places_is_taken() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[:, :32] = 128  # the left half is flat
    prepared = common("super_resolution", 1) | {"names": np.array(["a"]), "sizes": np.array([[64, 64]])}
    prepared |= {"high": noise.reshape(-1, 3), "low": noise.reshape(-1, 3)}
    given = torch.cat([load_images(prepared, "cpu").batch(step, 0, 50, 8)[0] for step in range(10)])
    flat = float((given.flatten(1).std(dim=1) == 0).float().mean())
    # 25 of 57 columns leave a patch wholly flat; four such in a row: (25 / 57)^4 = 3.7%, where one place alone has 44%.
    assert flat == pytest.approx(0.037, abs=0.025)


def test_a_patch_larger_than_a_image_is_refused_by_the_images_name() -> None:
    images = load_images(common("super_resolution", 2), "cpu")
    assert images.batch(0, 0, 2, 16)[0].shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=r"patch: 17 .* c\.png .*at most 16"):
        images.batch(0, 0, 2, 17)


def test_pairs_are_the_whole_images_in_order() -> None:
    images = load_images(common("super_resolution", 2), "cpu")
    assert (len(images), images.names, images.task) == (3, ["a.png", "b.png", "c.png"], "super_resolution")
    for i, (h, w) in enumerate(SIZES):
        given, target = images.pair(i)
        expected = torch.from_numpy(coordinates(h, w, i)).permute(2, 0, 1)[None] / 255
        assert torch.equal(given, expected)
        assert torch.equal(target, expected.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_low_light_pairs_are_the_stored_samples_amplified(low_light: Prepared) -> None:
    images = load_images(low_light, "cpu")
    given, target = images.pair(2)
    samples = low_light["raw"].reshape(4, 4, 128, 128)[2].astype(np.float64)
    expected = np.clip(np.maximum(samples - 512, 0) / (16383 - 512) * low_light["ratio"][2], 0, 1)
    assert np.allclose(given[0].numpy(), expected, atol=1e-6)
    assert np.array_equal(
        (target[0].permute(1, 2, 0) * 255).round().numpy(), low_light["high"].reshape(4, 256, 256, 3)[2]
    )


def test_references_are_bicubic_and_the_amplified_input(low_light: Prepared, super_resolution: Prepared) -> None:
    small, dark = load_images(super_resolution, "cpu"), load_images(low_light, "cpu")
    assert torch.equal(small.reference(1), bicubic_upscale(small.pair(1)[0], 2))
    assert torch.equal(dark.reference(1), raw.demosaic_amplified(dark.pair(1)[0]))
    assert small.reference(1).shape == dark.reference(1).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("task", ["super_resolution", "low_light"])
def test_a_split_reads_the_same_from_its_files(tmp_path: Path, task: str, request: pytest.FixtureRequest) -> None:
    prepared = request.getfixturevalue(task)
    save_split(tmp_path / "train", prepared)
    from_file, direct = load_images(tmp_path / "train", "cpu"), load_images(prepared, "cpu")
    assert from_file.names == [path.name for path in PHOTOS]
    assert all(torch.equal(a, b) for a, b in zip(from_file.batch(1, 2, 3, 24), direct.batch(1, 2, 3, 24), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(from_file.pair(2), direct.pair(2), strict=True))


def test_a_batch_from_files_larger_than_memory_reads_the_patches_alone(tmp_path: Path) -> None:
    """Four gigabytes of pixels, a hole in the disk: the process must not grow by a hundredth of them."""
    import resource

    split = common("super_resolution", 1) | {"sizes": np.array([[32000, 20000]] * 3)}
    for key in ("high", "low"):
        path = tmp_path / f"{key}.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, (3 * 32000 * 20000, 3)).flush()
        split[key] = np.lib.format.open_memmap(path, "r")  # as load_split maps it once its checksum is right
    images = load_images(split, "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given, _ = images.batch(0, 0, 4, 16)
    assert given.shape == (4, 3, 16, 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


def raw_pairs() -> Prepared:
    """Two short exposures of one scene and one of another: samples that tell their place, targets likewise.

    A sample of the mosaic at row y and column x is 512 + 97·y + x, and so is the target's red; green says the colour
    under the place, blue the scene.
    """
    scenes = [(20, 24), (18, 30)]
    high, raws = [], []
    for number, (h, w) in enumerate(scenes):
        rows, columns = np.mgrid[: 2 * h, : 2 * w]
        value = 512 + 97 * rows + columns
        high.append(np.stack([value, 2 * (rows % 2) + columns % 2, np.full_like(value, number)], axis=2))
        raws.append(np.stack([value[dy::2, dx::2] for dy, dx in raw.PACKING]).astype(np.int16).ravel())
    return {
        "task": np.array("low_light"),
        "names": np.array(["a", "b", "c"]),
        "scale": np.array(2),
        "sizes": np.array([scenes[0], scenes[0], scenes[1]]),
        "shown": np.array([0, 0, 1]),
        "ratio": np.array([1.0, 2.0, 1.0], dtype=np.float32),
        "high": np.concatenate([image.reshape(-1, 3) for image in high]).astype(np.uint16),
        "raw": np.concatenate([raws[0], raws[0], raws[1]]),
    }


def test_flipped_patches_of_real_raw_begin_with_red_and_show_their_targets_place() -> None:
    images = load_images(raw_pairs(), "cpu")
    orientations = set()
    for step in range(12):
        given, target = images.batch(step, seed=0, batch=16, patch=12)
        assert (given.shape, target.shape) == ((16, 4, 12, 12), (16, 3, 24, 24))
        levels = (target * 65535).round().int()
        for k, (dy, dx) in enumerate(raw.PACKING):
            place = levels[:, 0, dy::2, dx::2].float()
            exact = (place - 512) / raw.RANGE
            seen = torch.isclose(given[:, k], exact, atol=1e-6) | torch.isclose(given[:, k], 2 * exact, atol=1e-6)
            assert seen.all()  # ratio 1 or 2
            colour = levels[:, 1, dy::2, dx::2]  # 0 red, 3 blue, else green
            assert {0: (colour == 0), 1: (colour % 3 > 0), 2: (colour == 3), 3: (colour % 3 > 0)}[k].all()
        assert all(len(image.unique()) == 1 for image in levels[:, 2])
        steps = (levels[:, 0, 1, 0] - levels[:, 0, 0, 0], levels[:, 0, 0, 1] - levels[:, 0, 0, 0])
        orientations |= set(zip(*(s.tolist() for s in steps), strict=True))
    assert len(orientations) == 8


def test_a_raw_patch_as_high_as_its_image_is_never_flipped_out_of_it() -> None:
    images = load_images(raw_pairs(), "cpu")
    rows = torch.cat([images.batch(step, 0, 8, 18)[1] for step in range(6)]) * 65535
    scene = rows[rows[:, 2, 0, 0].round() == 1]  # 18 cells high
    assert len(scene) > 4
    places = (scene[:, 0].round() - 512) // 97
    assert (places.amin(dim=(1, 2)) == 0).all()
    assert (places.amax(dim=(1, 2)) == 35).all()


def test_inputs_that_share_a_target_show_it_whole() -> None:
    images = load_images(raw_pairs(), "cpu")
    assert torch.equal(images.pair(0)[1], images.pair(1)[1])
    assert torch.allclose(2 * images.pair(0)[0], images.pair(1)[0])
    given, target = images.pair(2)
    assert (given.shape, target.shape) == ((1, 4, 18, 30), (1, 3, 36, 60))
    assert (target[0, 2] * 65535).round().unique().tolist() == [1]
    assert images.reference(2).shape == target.shape


def noisy() -> Prepared:
    return gathered(*make(photographs(PHOTOS), Making("restoration", 1, 96, noise=25.0, seed=11)))


def test_noise_is_fresh_in_training_fixed_in_evaluation_and_of_the_stated_strength() -> None:
    images = load_images(noisy(), "cpu")
    for given, target in (images.batch(0, 0, 8, 96), images.pair(1)):
        off = (given - target) * 255
        assert given.shape == target.shape
        assert float(off.std()) == pytest.approx(25, rel=0.02)
        assert abs(float(off.mean())) < 0.3
    assert torch.equal(images.pair(1)[0], images.pair(1)[0])
    alone = load_images(
        gathered(*make(photographs(PHOTOS[1:2]), Making("restoration", 1, 96, noise=25.0, seed=11))), "cpu"
    )
    assert torch.equal(images.pair(1)[0], alone.pair(0)[0])  # whatever else is in the split
    assert not torch.equal(images.pair(0)[0] - images.pair(0)[1], images.pair(1)[0] - images.pair(1)[1])
    first, second = (images.batch(step, 0, 1, 256) for step in (0, 1))
    assert not torch.equal(first[0] - first[1], second[0] - second[1])
    assert torch.equal(images.reference(2), images.pair(2)[0])
