"""Pruning in five lines: the chain's steps for a network at hand, and what is refused before anything trains."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import ROOT
from PIL import Image
from skimage import data
from torch import nn
from torch.nn import functional as F

from pipeline import Pruner, networks
from pipeline.errors import UserError
from pipeline.networks import checkpoint, duplicate
from pipeline.pruner.arguments import file_of
from pipeline.pruner.length import Length, fitting
from pipeline.training import control


class Small(nn.Module):
    """A bicubic enlargement and a learned rest: as good as its input before it is trained."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 4 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = F.interpolate(x, scale_factor=2, mode="bicubic")
        return large + 0.01 * F.pixel_shuffle(self.last(F.relu(self.first(x))), 2)


class Writing(Small):
    """It writes into its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.1
        return super().forward(x) + 0.1


def compiled() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # torch's, that it is deprecated
        return nn.Sequential(torch.jit.script(nn.Conv2d(3, 12, 3, padding=1)), nn.PixelShuffle(2))


class Failing(Small):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no state")


class Mute(Small):
    def __repr__(self) -> str:
        raise ValueError("no words")


class Thinned(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to_sparse()


class Unfilled(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to("meta")


class Numbered(Small):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {1: torch.ones(2)}


class Leaving(Small):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise SystemExit(3)


class Merging(Small):
    """As LoRA's layers do, it has other weights in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        if self.training != mode:
            self.last.weight.data += 0.01 if self.training else -0.01
        return super().train(mode)


class Modeless(Small):
    """As networks that freeze their batch norms are often written: a `return` is missing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class Sharing(Small):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        made = Small()
        made.load_state_dict(self.state_dict())
        made.last = self.last
        return made


class Redrawn(Small):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return Redrawn()


class Flat(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


def sparse() -> nn.Module:
    network = Small()
    with warnings.catch_warnings(action="ignore"):  # torch's, that they are new
        network.register_buffer("sparse", torch.eye(3).to_sparse_csr())
    return network


def spoilt() -> nn.Module:
    network = Small()
    nn.init.constant_(network.last.bias, math.nan)
    return network


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    picture = data.astronaut()
    for number, name in enumerate(("face", "flag", "helmet", "suit", "arm")):
        top, left = 90 * number, 80 * number
        Image.fromarray(np.ascontiguousarray(picture[top : top + 64, left : left + 56])).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps for each part, and no timing of it."""
    monkeypatch.setattr("pipeline.pruner.fitting", lambda minutes, step, quality: Length(2, 2, 2))
    monkeypatch.setattr("pipeline.pruner.seconds", lambda network, setup: (0.01, 0.01))
    monkeypatch.setattr(control, "TRIED_STEPS", 2)


def test_a_network_is_pruned_saved_and_exported_in_five_lines(
    small: nn.Module, photos: Path, tmp_path: Path, quick: None
) -> None:
    before = {key: value.clone() for key, value in small.state_dict().items()}
    pruner = Pruner(small, images=photos, task="super_resolution", scale=2, work=tmp_path / "work")
    result = pruner.run(method="D", minutes=1)
    result.save(tmp_path / "small.pt")
    result.export(tmp_path / "small.onnx")
    assert "Small computes " in str(result) or "Small: method D removed nothing" in str(result)
    page = result.report.read_text()
    assert page.startswith("<!doctype html>")
    (named,) = set(re.findall(r"From ([^ <]*)/finetune/|, ([^ <]*)/finetune/", page)[0]) - {""}
    assert (tmp_path / "work" / named / "finetune" / "Small" / "D" / "attempts.json").is_file()
    assert "results/" not in page
    assert page.index("The fine-tunes of each method:") < page.index("<li>D: ") < page.index("/Small/METHOD/path.csv")
    image = torch.rand(1, 3, 20, 24)
    loaded, _ = checkpoint.load(tmp_path / "small.pt", Small())  # whatever weights it has
    assert torch.equal(loaded(image), result.network(image))
    assert (tmp_path / "small.onnx").stat().st_size > 0
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    small = Writing(channels=1)  # so that a network of luma is pruned here too, and one that writes into its input
    first = Pruner(small, photos, work=tmp_path / "whole").run(minutes=1)
    assert "figures of Writing are of luma" in " ".join(first.table.split())
    whole = first.network.state_dict()
    from pipeline.pruner import steps

    def stop(*rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "finetune", stop)
        with pytest.raises(KeyboardInterrupt):
            Pruner(small, photos, work=tmp_path / "stopped").run(minutes=1)
    monkeypatch.setattr(steps, "control", lambda *rest: None)  # it is there: nothing trains it again
    resumed = Pruner(duplicate(small), photos, work=tmp_path / "stopped").run(minutes=1).network.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_two_runs_of_the_same_dont_work_in_one_folder(
    small: nn.Module, photos: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.pruner import steps

    def again(*rest: Any) -> None:
        monkeypatch.undo()
        Pruner(duplicate(small), photos, work=tmp_path).run(minutes=1)

    monkeypatch.setattr(steps, "prepare", again)  # in the middle of the first one
    with pytest.raises(UserError, match="is in use: the same run goes on in another process; wait for it, or give"):
        Pruner(small, photos, work=tmp_path).run(minutes=1)


@pytest.mark.parametrize("change", ["a layer is frozen", "a number", "the code"])
def test_a_network_that_computes_or_trains_otherwise_with_equal_weights_is_another_run(
    small: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    class Louder(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.001

    Louder.__qualname__ = Small.__qualname__
    Louder.__name__ = Small.__name__
    other = duplicate(small)
    if change == "a layer is frozen":
        other.first.requires_grad_(False)
    elif change == "a number":
        other.gain = 0.5
    else:
        other = Louder()
        other.load_state_dict(small.state_dict())
    folders: list[Path] = []
    monkeypatch.setattr("pipeline.pruner.steps.prepare", lambda params, name, folder, listing: folders.append(folder))
    for network in (small, duplicate(small), other):
        with pytest.raises(UserError):  # there are no prepared images
            Pruner(network, photos, work=tmp_path).run(minutes=1)
    assert folders[0] == folders[1] != folders[2]


def test_whole_minutes_are_the_same_run_as_a_number_or_a_fraction(
    small: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    monkeypatch.setattr("pipeline.pruner.steps.prepare", lambda params, name, folder, listing: folders.append(folder))
    for minutes in (20, 20.0, 21):
        with pytest.raises(UserError):  # there are no prepared images
            Pruner(small, photos, work=tmp_path).run(minutes=minutes)
    assert folders[0] == folders[1] != folders[2]


def test_no_image_is_in_two_splits(small: nn.Module, photos: Path, tmp_path: Path) -> None:
    parts = Pruner(small, photos, work=tmp_path / "work").listing.parts
    names = [source.name for part in parts.values() for source in part.sources]
    assert set(parts) == {"train", "validation", "test"}
    assert sorted(names) == sorted(path.name for path in photos.iterdir())


def test_task_and_scale_are_those_of_what_the_network_makes(small: nn.Module, photos: Path, tmp_path: Path) -> None:
    section = Pruner(small, photos, work=tmp_path / "work")._section
    assert (section.task, section.scale, section.channels) == ("super_resolution", 2, 3)
    assert Pruner(Small(channels=1), photos, work=tmp_path / "work")._section.channels == 1
    same = networks.build("edsr", {"scale": 1, "blocks": 1, "channels": 4})
    section = Pruner(same, photos, noise=25.0, work=tmp_path / "work")._section
    assert (section.task, section.scale) == ("restoration", 1)


def test_minutes_become_steps_by_the_measured_time() -> None:
    # 20 min less 22 measurings of 1 s and 200 trial steps of 0.1 s; eight iterations twice and 3.5 fine-tunes of 30
    assert fitting(20, 0.1, 1.0) == Length(8, 95, 2850)


def test_the_images_folder_is_never_written_into(small: nn.Module, photos: Path) -> None:
    before = sorted(photos.iterdir())
    with pytest.raises(UserError, match="is the folder of the images; what is made needs another one"):
        Pruner(small, photos, work=photos / ".." / photos.name)
    assert sorted(photos.iterdir()) == before


def test_a_folder_of_images_that_links_to_itself_is_one_sentence(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to("photos")
    with pytest.raises(UserError, match="photos: there is no such folder of images"):
        Pruner(small, tmp_path / "photos", work=tmp_path / "work")


def test_an_image_that_goes_before_the_run_is_named(small: nn.Module, photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    pruner = Pruner(small, folder, work=tmp_path / "work")
    (folder / "face.png").unlink()
    with pytest.raises(UserError, match=r"face.png can't be read: No such file .* when this Pruner was made"):
        pruner.run(minutes=1)
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def test_too_few_minutes_are_refused_with_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"minutes is 1, too few here; 18 are enough: one training step .* 1 s"):
        fitting(1, 1.0, 1.0)


NO_NOISE = "noise is missing: .* has no inputs/ and targets/"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": Small}, "network must be a torch.nn.Module that is built, .* not the class Small"),
        ({"network": 3}, "network must be a torch.nn.Module that is built, or a file of weights, not int"),
        ({"images": "nowhere"}, "^nowhere: there is no such folder of images"),
        ({"task": "colour"}, "task is 'colour'; allowed are super_resolution, restoration, low_light"),
        ({"scale": 3}, r"needs an output \(1, 3, 72, 72\) in torch.float32, but it gives \(1, 3, 48, 48\)"),
        ({"scale": 90}, "^scale is 90"),
        ({"task": "restoration", "scale": 1}, NO_NOISE),
        ({"task": "low_light", "scale": 3}, "scale is 3, but low_light always makes 2 pixels of one"),
        (
            {"channels": 1},
            "^the network takes and makes images of three channels, but channels is 1",
        ),
        ({"network": Small(1), "channels": 3}, "images of one channel, but channels is 3; channels: 1 fits it"),
        ({"channels": 2}, "^channels is 2, but a network has 3, which are RGB, or 1, which is luma"),
        ({"task": "low_light", "scale": 2, "channels": 1}, "low_light always makes RGB of packed Bayer"),
        ({"task": "restoration", "scale": 1, "noise": 0.0}, "^noise is 0.0 but should be greater than 0"),
        ({"args": {"channels": 3}}, "args are those of a factory, which is missing"),
        ({"factory": "edsr"}, "factory edsr builds another network than the one given"),
        ({"network": Small(4)}, r"takes 4 channels and makes \(1, 4, 96, 96\) of \(1, 4, 48, 48\); images have 3"),
        ({"network": Small().requires_grad_(False)}, "^the network has no parameter that can be trained"),
        (
            {"network": compiled()},
            "^Sequential gives what torch.jit.script or .* made, as 0, which can't be pruned",
        ),
        (
            {"network": sparse()},
            "^the network's sparse is a tensor of float32, sparse_csr; dense ones of 16 to 64 bits",
        ),
        (
            {"network": Unfilled()},
            r"needs an output .* but it gives \(1, 3, 48, 48\) torch.float32, on the meta device",
        ),
        ({"network": Numbered()}, r"^1, a key of Numbered's state_dict, must be a text"),
        ({"network": Leaving()}, r"^Leaving can't be copied \(copy.deepcopy\): SystemExit"),
        ({"network": Thinned()}, r"needs an output .* but it gives \(1, 3, 48, 48\) torch.float32, sparse_coo"),
        ({"network": spoilt()}, "^the network's last.bias must be finite, but holds infinite values or NaN"),
        ({"network": "weights.pth"}, "weights.pth can't be read: there is no such file"),
        ({"images": 5}, "^images is 5; a path is allowed"),
        ({"images": "a\0b"}, "^images is .*; a null character isn't allowed"),
        ({"work": None}, "^work is None; a path is allowed"),
        ({"factory": 5}, "^factory is 5; a text is allowed"),
        ({"factory": "edsr", "args": [1]}, r"^args is \[1\]; a dictionary is allowed"),
        ({"images": "\ud800"}, r"^images is '\\ud800', which has a character that no path has"),
        pytest.param({"network": Mute()}, r"^repr\(\) of Mute fails: ValueError: no words", id="mute"),
        pytest.param({"work": "w" * 5000}, "^work is 'w.*w': File name too long", id="a long name"),
        ({"network": Failing()}, r"^state_dict\(\) of Failing fails: ValueError: no state"),
        ({"network": Modeless()}, r"^train\(\) of Modeless must return the network, as torch's does: return self"),
        ({"network": Sharing()}, r"^a copy of Sharing \(copy.deepcopy\) shares last.weight with the network"),
        ({"network": Redrawn()}, r"^a copy of Redrawn \(copy.deepcopy\) has other weights than the network"),
        ({"network": Flat(), "task": None, "scale": None}, r"makes \(3, 96, 96\) of \(1, 3, 48, 48\); an image is"),
        ({"norms": "yes"}, "^norms is 'yes'; True or False is allowed"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_before_any_work(
    small: nn.Module, photos: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    given = {"network": small, "images": photos, "task": "super_resolution", "scale": 2, "work": tmp_path / "work"}
    with pytest.raises(UserError, match=sentence):
        Pruner(**(given | changes))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"method": "Z"}, "method is 'Z'; allowed are A, B, C, D"),
        ({"method": ["D"]}, r"^method is \['D'\]; a text is allowed"),
        ({"minutes": 0}, "minutes is 0; a number above 0"),
        ({"minutes": float("nan")}, "minutes is nan; a number above 0"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_is_refused(
    small: nn.Module, photos: Path, tmp_path: Path, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Pruner(small, photos, work=tmp_path / "work").run(**asked)


def test_a_refused_run_leaves_no_images_in_the_work_folder(small: nn.Module, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few here"):
        Pruner(small, photos, work=tmp_path / "work").run(minutes=1e-6)
    assert not list((tmp_path / "work").iterdir())


def test_a_refused_run_keeps_what_a_stopped_one_has_made(
    small: nn.Module, photos: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    def refused(*given: Any) -> None:
        raise UserError("refused")

    pruner = Pruner(small, photos, work=tmp_path / "work")
    monkeypatch.setattr(pruner, "_pruned", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruner.run(minutes=1)
    made = sorted(path for path in (tmp_path / "work").rglob("*") if path.is_file())
    monkeypatch.setattr(pruner, "_length", refused)
    with pytest.raises(UserError, match="refused"):
        pruner.run(minutes=1)
    assert made == sorted(path for path in (tmp_path / "work").rglob("*") if path.is_file())


def test_a_network_whose_modes_change_its_weights_is_taken(photos: Path, tmp_path: Path) -> None:
    network = Merging()
    Pruner(network, photos, work=tmp_path / "work")
    assert network.training


def test_a_network_of_other_pixel_values_is_refused(photos: Path, tmp_path: Path, quick: None) -> None:
    class Bytes(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(super().forward(x) - 4) + 4

    with pytest.raises(UserError, match=r"with pixels in 0\.\.255"):
        Pruner(Bytes(), photos, scale=2, work=tmp_path / "work").run(minutes=1)


def test_weights_are_pruned_on_the_command_line(
    photos: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.__main__ import main

    args = {"scale": 2, "blocks": 1, "channels": 4}
    torch.save(networks.build("edsr", args).state_dict(), tmp_path / "weights.pth")
    words = ["prune", tmp_path / "weights.pth", "--images", photos, "--network", "edsr", "--args", json.dumps(args)]
    main([*map(str, words), "--minutes", "1", "--work", str(tmp_path / "work")])
    assert {"network.pt", "network.onnx", "report.html"} <= {path.name for path in (tmp_path / "work").iterdir()}
    assert checkpoint.load(tmp_path / "work" / "network.pt", "edsr")[1]["args"] == args
    assert "report.html" in capsys.readouterr().out


def test_what_cant_be_written_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.__main__ import main

    (tmp_path / "network.pt").write_text("pruned before")  # it would be written over
    (tmp_path / "folder" / "network.onnx").mkdir(parents=True)
    cases = (
        (tmp_path, "which is read to make it"),
        (tmp_path / "folder", "network.onnx can't be written: Is a directory"),
    )
    for work, reason in cases:
        with pytest.raises(SystemExit):
            main(["prune", str(tmp_path / "network.pt"), "--images", "nowhere", "--work", str(work)])
        assert reason in capsys.readouterr().err
    assert (tmp_path / "network.pt").read_text() == "pruned before"


def test_a_command_line_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.__main__ import main

    for words in (
        ["prune", "w.pth"],
        ["prune", "w.pth", "--images", "x", "--args", "[1"],
        ["prune", "w.pth", "--images", "x"],
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert said.startswith("prune: error: ")
        assert said.count("\n") == 1


def test_minutes_that_cant_be_meant_are_told_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pipeline.__main__ import main

    with pytest.raises(SystemExit):
        main(
            [
                "prune",
                str(tmp_path / "none.pth"),
                "--images",
                str(tmp_path),
                "--work",
                str(tmp_path),
                "--minutes",
                "nan",
            ]
        )
    assert capsys.readouterr().err == "prune: error: minutes is nan; a number above 0 and up to 1,000,000 is allowed\n"


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(
    photos: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((ROOT / "examples" / "prune.ipynb").read_text())["cells"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert (tmp_path / "pruned" / "small.onnx").is_file()


def test_the_package_is_imported_without_torch_and_the_pruner_without_mlflow() -> None:
    code = (
        "import sys, pipeline; assert 'torch' not in sys.modules; pipeline.Pruner; "
        "assert not {'mlflow', 'dvc', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (3, "^path is 3; a path is allowed"),
        ("\ud800", "^path is .* has a character that no path has"),
        ("", "is a folder"),
    ],
)
def test_a_result_is_saved_under_a_path_alone(path: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        file_of(path)
