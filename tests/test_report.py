"""The report: its sentences, its tables, its one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import figures, report


def row(network: str, solution: str, share: float, mean: float) -> dict[str, Any]:
    difference = {"mean": mean, "low": mean - 0.25, "high": mean + 0.5}
    costs = {f"{key}_percent": share for key in report.COSTS}
    return {"network": network, "solution": solution, "mac": share, "psnr": 30.0 + mean, **costs,
            "against_baseline": difference, "against_original": {**difference, "mean": mean - 0.125}}  # fmt: skip


ROWS = [row("edsr", "A", 76.0, 0.25), row("edsr", "D", 62.8, 0.125), row("mine", "D", 10.0, 0.0)]


def test_the_verdict_is_the_method_that_removed_most_with_both_differences() -> None:
    assert report.verdict(ROWS, ["A", "D"], "edsr") == (
        "**edsr, method D: 37% of the MACs removed**, BW −37%; test PSNR +0.125 dB [-0.125, +0.625] against the "
        "baseline, +0.000 dB [-0.125, +0.625] against the equally trained control."
    )


def test_the_papers_printed_costs_stand_beside_ours_as_shares_of_their_own_original() -> None:
    lines = report.beside_the_paper(ROWS, {"edsr": "edsr", "mine": "package:network"}).splitlines()
    assert len(lines) == 4  # a network of the user's own isn't in the paper
    # 1085 of 1428, 1037 of 1367, 4481 of 5076 and 4481 of 5077 as printed
    assert lines[2] == "| edsr | A | 76.0 | 76.0 | 76.0 | 75.9 | 76.0 | 88.3 | 76.0 | 88.3 |"
    assert lines[3].split(" | ")[3] == "62.8"  # 897 of 1428
    assert report.beside_the_paper(ROWS[2:], {"mine": "package:network"}) == ""


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "pictures" / "a b.png")
    text = "# Title\n\n![x](pictures/a%20b.png)\n\n| a |\n| --- |\n| <script>alert(1)</script> |\n"
    made = report.page(text, tmp_path)
    assert re.findall(r'src="([^"]{22})', made) == ["data:image/png;base64,"]
    assert "<td>&lt;script&gt;" in made
    assert not re.search(r"https?://|<script|<link", made)
    assert 'name="viewport"' in made
    assert "color-scheme: light dark" in made


@pytest.mark.parametrize(
    ("drops", "shown"),
    [
        ({"a": 0.1, "b": -0.2, "c": 0.0}, {"largest loss": "a", "median": "c", "largest gain": "b"}),
        ({"a": 0.1, "b": 0.0}, {"largest loss": "a", "largest gain": "b"}),  # the median is the loss: shown once
        ({"a": 0.1}, {"largest loss": "a"}),
    ],
)
def test_the_images_looked_at_closer_are_chosen_by_their_drops(drops: dict[str, float], shown: dict[str, str]) -> None:
    assert figures.chosen(drops) == shown
