"""Small real pictures, a tiny network and a setup to prune it by, for the tests of training and pruning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from pipeline import config, networks
from pipeline.data.dataset import Images, load_images
from pipeline.data.storage import gathered
from pipeline.prepare.pairs import Making, make, photographs
from pipeline.pruning.prune import Setup
from pipeline.training.device import Machine, choose

pytest.register_assert_rewrite("removals")  # its failed assertions say what they compared, as a test's do

TINY = {"scale": 2, "blocks": 2, "channels": 8}

# Files of chains, studies, browsers and whole commands; what make test-fast leaves out, with the folder hostile.
SLOW = {"test_chain", "test_chain_use", "test_presets", "test_search", "test_stops", "test_examples",
        "test_user_networks", "test_export", "test_latency", "test_tracking", "test_odd_networks", "test_devices",
        "test_several_devices", "test_types"}  # fmt: skip
LONGEST = ("test_chain", "test_pruner", "test_search", "test_devices", "test_chain_use", "test_types",
           "test_several_devices", "test_export", "test_tracking", "test_stops")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW or item.path.parent.name == "hostile":
            item.add_marker(pytest.mark.slow)
    # the longest files first: begun late, one would leave its worker alone at the end
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The CPU, one thread, fp32: what golden traces and equal bits are stated for."""
    return choose("cpu", 1, "fp32")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """56×48 crops of the photographs inside scikit-image: three to train with, two to validate with."""
    folder = tmp_path_factory.mktemp("pictures")

    def crop(name: str, picture: np.ndarray, top: int, left: int) -> Path:
        path = folder / f"{name}.png"
        Image.fromarray(picture[top : top + 56, left : left + 48]).save(path)
        return path

    astronaut, coffee, cat = data.astronaut(), data.coffee(), data.chelsea()
    return {
        "train": [crop("face", astronaut, 80, 190), crop("cup", coffee, 150, 260), crop("eye", cat, 90, 120)],
        "validation": [crop("flag", astronaut, 200, 20), crop("fur", cat, 180, 240)],
    }


@pytest.fixture(scope="session")
def splits(pictures: dict[str, list[Path]]) -> dict[str, Images]:
    making = Making("super_resolution", scale=2, minimum=24)
    made = {name: gathered(*make(photographs(paths), making)) for name, paths in pictures.items()}
    return {name: load_images(split, "cpu") for name, split in made.items()}


@pytest.fixture
def network() -> nn.Module:
    """EDSR with 2 blocks of 8 channels and fresh weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build("edsr", TINY)


@pytest.fixture
def recipe() -> config.Train:
    return config.Train(steps=10, batch=4, patch=8, lr=1e-3, lr_final=1e-5, clip=1.0, average=0.9, validate_every=5)


@pytest.fixture
def setup(splits: dict[str, Images], machine: Machine, recipe: config.Train) -> Setup:
    """Iterations of 5 steps, and a gate that lets everything pass that is a number."""
    return Setup(
        name="tiny",
        network=config.Network(factory="edsr", args=TINY, task="super_resolution", scale=2),
        train=splits["train"],
        validation=splits["validation"],
        recipe=recipe,
        retrain=config.Retrain(
            max_iterations=3,
            steps=5,
            lr=5e-4,
        ),
        gate=config.Gate(reference="baseline", max_psnr_drop=100.0, max_ssim_drop=2.0),
        tolerance=(0.0, 0.0),
        machine=machine,
        size=(16, 16),
        seed=7,
    )


@pytest.fixture
def settings() -> config.Settings:
    """Round settings for the rules; tests change what they are about with model_copy."""
    return config.Settings(
        threshold_scale=1.0,
        threshold_growth=0.1,
        max_share=0.5,
        patience=3,
        target_mac=0.0,
        sparsity=1e-5,
        imbalance=1e-3,
        depth_channels=2,
        depth_share=0.25,
        efficiency_power=1.0,
        efficiency_range=(0.5, 2.0),
        balance_strength=2.0,
        balance_range=(0.5, 2.0),
    )


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, to be copied: making one takes seconds."""
    from pipeline.tracking import store

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        store.client_and_experiment()
    return folder / "mlflow.db"
