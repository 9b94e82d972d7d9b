"""A network of one's own, added by one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from chains import ROOT, stage

from pipeline import config
from pipeline.errors import UserError
from stages import add
from stages.add import extended, sections

TEXT = (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("scale", [1, 2])
def test_every_section_has_the_network_and_comments_stay(tmp_path: Path, scale: int) -> None:
    text = extended(TEXT, sections("mynet:build", "data/photos", scale), "mine")
    (tmp_path / "params.yaml").write_text(text)
    params = config.read(tmp_path / "params.yaml")
    assert params.run.networks == ("mine",)
    assert params.networks["mine"].scale == scale
    remarks = [line.partition("#")[2].strip() for line in TEXT.splitlines() if "#" in line]
    assert [remark for remark in remarks if remark not in text] == []


WINDOWS = """
from torch import nn
class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
    def forward(self, x):
        n, c, h, w = x.shape
        y = self.first(x.view(n, c, h // 7, 7, w // 7, 7).transpose(3, 4).reshape(-1, c, 7, 7))
        return self.last(y).view(n, h // 7, w // 7, c, 7, 7).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
"""


def test_sides_of_a_network_of_windows_are_found_by_trying_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "windows7.py").write_text(WINDOWS)
    (tmp_path / "photos").symlink_to(ROOT / "data" / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["add", "mine", "windows7:Windows", "--images", "photos", "--scale", "1", "--channels", "1"]
    monkeypatch.setattr("sys.argv", words)
    add.main()
    params = config.read(tmp_path / "params.yaml")
    section = params.networks["mine"]
    assert (section.multiple, section.channels, params.train["mine"].patch) == (7, 1, 28)
    assert params.analyze["mine"].size == (1015, 1015)


def test_a_network_that_is_there_and_sections_that_arent_are_said() -> None:
    added = sections("mynet:build", "data/photos", 2)
    with pytest.raises(UserError, match="networks has edsr already"):
        extended(TEXT, added, "edsr")
    with pytest.raises(UserError, match="has no section prepare, train, analyze, retrain, tolerance, finetune;"):
        extended("run: {networks: [a]}\nnetworks: {}\n", added, "mine")


def test_missing_sections_are_named_all_at_once() -> None:
    values = yaml.safe_load(TEXT)
    values["run"]["networks"] = ["mine"]
    values["networks"]["mine"] = {"factory": "a:b", "task": "restoration", "scale": 1}
    said = (
        r"which prepare doesn't have; it has .*, nor train, analyze, retrain, tolerance, finetune; python -m stages.add"
    )
    with pytest.raises(UserError, match=said):
        config.checked_params(values, "params.yaml")


def test_a_network_that_cant_be_built_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "photos").mkdir()
    for folder in ("pipeline", "stages"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = stage(tmp_path, "add", "mine", "nomod:x", "--images", "photos")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "'nomod' cannot be imported" in done.stderr or "'nomod:x' cannot be imported" in done.stderr
    assert (tmp_path / "params.yaml").read_text() == TEXT
