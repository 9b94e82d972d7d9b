"""The report: its sentences, its tables, its one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.evaluation import crops
from pipeline.report import page, paper, verdict


def row(network: str, solution: str, share: float, mean: float) -> dict[str, Any]:
    difference = {"mean": mean, "low": mean - 0.25, "high": mean + 0.5, "worst": mean - 0.5, "worst_name": "a_b.png"}
    costs = {f"{key}_percent": share for key in paper.COSTS}
    return {"network": network, "solution": solution, "mac": share, "psnr": 30.0 + mean, **costs,
            "against_baseline": difference, "against_control": {**difference, "mean": mean - 0.125}}  # fmt: skip


ROWS = [row("edsr", "A", 76.0, 0.25), row("edsr", "D", 62.8, 0.125), row("mine", "D", 10.0, 0.0)]


TIMED = {
    "side": 256,
    "networks": [
        {"runtime": runtime, "side": side, "network": name, "ratio": ratio}
        for runtime, factor in (("torch", 1.0), ("onnxruntime", 1.25))
        for side, name, ratio in ((64, "D", 9.0), (256, "baseline", 1.0), (256, "D", 0.8 * factor), (256, "D, to 8", 9))
    ],
}


def test_the_verdict_is_the_pictured_methods_with_both_differences_and_its_time() -> None:
    assert verdict.sentence(ROWS, ["A", "D"], "D", "edsr", TIMED) == (
        "**edsr, method D: 37% of the MACs removed**, BW −37%; test PSNR +0.125 dB [−0.125, +0.625] against the "
        "baseline (0 lies within the interval: no difference measured), +0.000 dB [−0.125, +0.625] against the "
        "control (0 lies within the interval: no difference measured). "
        "The worst single image against the baseline, a\\_b.png: −0.375 dB. "
        "Time at 256×256, of the baseline's: torch 80%, onnxruntime 100%."
    )


def test_a_verdict_says_where_another_method_removed_more() -> None:
    text = verdict.sentence(ROWS, ["A", "D"], "A", "edsr", {**TIMED, "networks": []})
    assert text.endswith("Method D removed more: 37.2%.")
    equal = [row("edsr", "A", 50, 0), row("edsr", "D", 50, 0)]
    assert "removed more" not in verdict.sentence(equal, ["A", "D"], "D", "edsr", TIMED)


@pytest.mark.parametrize(
    ("low", "high", "judgement"),
    [
        (0.001, 0.3, "better"),
        (-0.3, -0.001, "worse"),
        (-0.1, 0.2, "0 lies within the interval: no difference measured)"),
        (0.0, 0.1, "0 lies within the interval"),
        (0.1, 0.1, "one image has no interval"),
    ],
)
def test_the_verdict_says_what_the_interval_shows(low: float, high: float, judgement: str) -> None:
    rows = [row("edsr", "D", 50.0, 0.1)]
    rows[0]["against_baseline"] |= {"mean": (low + high) / 2, "low": low, "high": high}
    assert f"against the baseline ({judgement}" in verdict.sentence(rows, ["D"], "D", "edsr", TIMED)


def test_a_baseline_no_better_than_its_input_leads_the_verdict() -> None:
    given = {"network": "edsr", "solution": "bicubic", "psnr": 31.0}
    rows = [given, row("edsr", "baseline", 100, 0.0), row("edsr", "D", 50, 1.0)]
    text = verdict.sentence(rows, ["D"], "D", "edsr", TIMED)
    assert text.startswith("**This baseline restores nothing: its test PSNR of 30.00 dB is no better than")
    given["psnr"] = 29.0
    assert verdict.sentence(rows, ["D"], "D", "edsr", TIMED).startswith("**edsr, method D: 50% of the MACs removed**")


def test_a_verdict_on_nothing_says_so() -> None:
    assert "nothing was removed" in verdict.sentence([row("edsr", "D", 100, 0.1)], ["D"], "D", "edsr", TIMED)


def test_methods_are_told_by_what_they_add() -> None:
    methods = {
        "A": ["adaptive"],
        "B": ["adaptive", "depth"],
        "mine": ["adaptive", "balance"],
        "B2": ["depth", "adaptive"],
    }
    assert verdict.methods_in_words(methods) == (
        "Methods: **A** a threshold that rises while iterations hold; **B** as A, a least number of channels in every "
        "group; **mine** as A, more pressure on groups that lag behind; **B2** as B."
    )


def test_the_papers_printed_costs_stand_beside_ours_in_percent_of_their_own_baseline() -> None:
    lines = paper.cost_shares(ROWS, {"edsr": "edsr", "mine": "package:network"}).splitlines()
    assert len(lines) == 4  # a network of the user's own isn't in the paper
    # 1085 of 1428, 1037 of 1367, 4481 of 5076 and 4481 of 5077 as printed
    assert lines[2] == "| edsr | A | 76.0 | 76.0 | 76.0 | 75.9 | 76.0 | 88.3 | 76.0 | 88.3 |"
    assert lines[3].split(" | ")[3] == "62.8"  # 897 of 1428
    assert paper.cost_shares(ROWS[2:], {"mine": "package:network"}) == ""


def test_table_one_has_the_papers_units_and_its_printed_figures_behind() -> None:
    costs = {"mac": 897.4e9, "weights": 857_000, "activations": 4_083_400_000, "bw": 4_084_257_000}
    rows = [
        {**row("edsr", name, 62.8, 0.125), **costs, "ssim": 0.9424} for name in ("bicubic", "baseline", "control", "D")
    ]
    rows.append({**row("mine", "D", 50.0, 0.0), **costs, "ssim": 0.9})
    lines = paper.table_one(rows, ["D"], {"edsr": "edsr", "mine": "package:network"}).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| edsr", "baseline"], ["| edsr", "D"], ["| mine", "D"]]
    assert lines[3] == (
        "| edsr | D | 897.4 | 857 | 4083 | 4084 | 30.12 | 0.942 | 897 | 857 | 4083 | 4083 | 34.42 | 0.942 |"
    )
    assert lines[2].endswith("| 1428 | 1367 | 5076 | 5077 | 34.42 | 0.942 |")  # the baseline, not the control
    assert lines[4].endswith("| 0.900 |  |  |  |  |  |  |")


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "figures" / "a b.png")
    text = "# Title\n\n![x](figures/a%20b.png)\n\n| a |\n| --- |\n| <script>alert(1)</script> |\n"
    html = page.page(text, tmp_path / "figures")
    assert re.findall(r'src="([^"]{22})', html) == ["data:image/png;base64,"]
    assert "<td>&lt;script&gt;" in html
    assert not re.search(r"https?://|<script|<link", html)
    assert 'name="viewport"' in html
    assert "color-scheme: light dark" in html


@pytest.mark.parametrize(
    ("changes", "samples"),
    [
        ({"a": -0.1, "b": 0.2, "c": 0.0}, {"largest loss": "a", "median": "c", "largest gain": "b"}),
        ({"a": -0.1, "b": 0.0}, {"largest loss": "a", "largest gain": "b"}),  # the median is the loss: shown once
        ({"a": -0.1}, {"largest loss": "a"}),
    ],
)
def test_the_test_images_shown_are_chosen_by_their_changes(changes: dict[str, float], samples: dict[str, str]) -> None:
    assert crops.samples(changes) == samples


def test_the_page_shows_what_names_hold_as_text_and_has_its_style_within(tmp_path: Path) -> None:
    html = page.page("a<b>&'c'", tmp_path)
    assert "<p>a&lt;b&gt;&amp;'c'</p>" in html
    assert html.count("<style>") == 1
    assert "color-scheme" in html.partition("<style>")[2].partition("</style>")[0]  # the style sheet is within it


def test_headlines_are_changes_with_plus_for_better() -> None:
    rows = [{**row("edsr", "D", 62.5, 0.25), "psnr_change": -0.5}, row("edsr", "control", 100, 0.5)]
    assert verdict.headlines(rows, ["D"]) == {
        "edsr": {
            "D": {"mac_percent": 62.5, "psnr_change": -0.5, "psnr_change_baseline": 0.25, "psnr_change_control": 0.125}
        }
    }
