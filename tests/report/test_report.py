"""The report: its sentences, its tables, its one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation import crops
from pipeline.report import page, paper, pictures, tables, verdict


def row(network: str, solution: str, share: float, mean: float) -> dict[str, Any]:
    difference = {"mean": mean, "low": mean - 0.25, "high": mean + 0.5, "worst": mean - 0.5, "worst_name": "a_b.png"}
    costs = {f"{key}_percent": share for key in paper.COSTS}
    return {"network": network, "solution": solution, "mac": share, "psnr": 30.0 + mean, **costs,
            "against_baseline": difference, "against_control": {**difference, "mean": mean - 0.125}}  # fmt: skip


ROWS = [row("edsr", "A", 76.0, 0.25), row("edsr", "D", 62.8, 0.125), row("mine", "D", 10.0, 0.0)]


TIMED = {
    "side": 256,
    "networks": [
        {"runtime": runtime, "side": side, "network": name, "ratio": ratio, "seconds": 0.33433 * ratio}
        for runtime, factor in (("torch", 1.0), ("onnxruntime", 1.25))
        for side, name, ratio in (
            (64, "D", 9.0),
            (256, "baseline", 1.0),
            (256, "D", 0.56 * factor),
            (256, "D, to 8", 9),
        )
    ],
}


def test_the_verdict_says_in_one_sentence_what_was_saved_and_what_became_of_quality() -> None:
    assert verdict.sentence(ROWS, ["A", "D"], "D", "edsr") == (
        "**edsr computes 37% less. No loss on average:** +0.125 dB against the baseline (no difference measured), "
        "0.000 dB against the control (no difference measured); "
        "−0.375 dB against the baseline on the worst image, a\\_b.png."
    )


def test_the_verdict_says_by_what_the_gate_let_it_pass() -> None:
    passed = [row("edsr", "D", 62.8, -0.5) | {"psnr_change": -0.0084}]
    assert verdict.sentence(passed, ["D"], "D", "edsr").endswith(
        "a\\_b.png. On the validation images, by which the gate let it pass: −0.008 dB."
    )


def test_three_numbers_say_what_was_saved_with_their_units() -> None:
    before = {"network": "edsr", "solution": "baseline", "mac": 129.14e9, "bw": 947.9e6}
    after = {"network": "edsr", "solution": "D", "mac": 59.27e9, "bw": 617.0e6, "mac_percent": 45.9, "bw_percent": 65.1}
    computing, traffic, time = verdict.tiles([before, after], "D", "edsr", TIMED)
    assert computing == verdict.Tile("54% less", "computing (MACs)", "129 → 59.3 billion multiply-adds")
    assert traffic == verdict.Tile("35% less", "memory traffic (BW)", "948 → 617 million numbers read and written")
    assert time == verdict.Tile(
        "44% less", "time, measured", "torch: 334 → 187 ms; onnxruntime: 334 → 234 ms, 30% less"
    )


@pytest.mark.parametrize(
    ("percent", "words"), [(45.9, "54% less"), (100.4, "no less"), (99.6, "no less"), (103.2, "3% more")]
)
def test_what_is_kept_is_told_as_what_was_saved(percent: float, words: str) -> None:
    assert verdict.less(percent) == words


@pytest.mark.parametrize(
    ("value", "text"), [(334.3, "334"), (59.27, "59.3"), (99.96, "100"), (8.043, "8.04"), (0.01234, "0.0123")]
)
def test_a_measured_number_has_three_figures_at_most(value: float, text: str) -> None:
    assert tables.short(value) == text


def test_a_verdict_says_where_another_method_removed_more() -> None:
    text = verdict.sentence(ROWS, ["A", "D"], "A", "edsr")
    assert text.endswith("Method D computes still less: 37% less.")
    equal = [row("edsr", "A", 50, 0), row("edsr", "D", 50, 0)]
    assert "still less" not in verdict.sentence(equal, ["A", "D"], "D", "edsr")


@pytest.mark.parametrize(
    ("low", "high", "judgement", "outcome"),
    [
        (0.001, 0.3, "a gain", "No loss on average:"),  # nothing is shown against the control
        (-0.3, -0.001, "a loss", "Its quality fell on average:"),
        (-0.1, 0.2, "no difference measured", "No loss on average:"),
        (0.0, 0.1, "no difference measured", "No loss on average:"),
        (0.0, 0.0, "no difference measured", "No loss on average:"),  # networks that are one
        (0.1, 0.1, "one image has no interval", "Its quality, on one image:"),
    ],
)
def test_the_verdict_says_what_the_interval_shows(low: float, high: float, judgement: str, outcome: str) -> None:
    rows = [row("edsr", "D", 50.0, 0.1)]
    rows[0]["against_baseline"] |= {"mean": (low + high) / 2, "low": low, "high": high}
    text = verdict.sentence(rows, ["D"], "D", "edsr")
    assert f"against the baseline ({judgement})" in text
    assert f" {outcome}** " in text
    rows[0]["against_control"] = rows[0]["against_baseline"]
    risen = "Its quality rose on average:" if low > 0 and low < high else outcome
    assert f" {risen}** " in verdict.sentence(rows, ["D"], "D", "edsr")
    rows[0]["against_control"] = rows[0]["against_baseline"] | {"mean": -0.2, "low": -0.3, "high": -0.1}
    mixed = "Its quality rose against one and fell against the other:" if judgement == "a gain" else "fell on average:"
    assert mixed in verdict.sentence(rows, ["D"], "D", "edsr")


def test_a_baseline_no_better_than_its_input_leads_the_verdict() -> None:
    given = {"network": "edsr", "solution": "bicubic", "psnr": 31.0}
    rows = [given, row("edsr", "baseline", 100, 0.0), row("edsr", "D", 50, 1.0)]
    text = verdict.sentence(rows, ["D"], "D", "edsr")
    assert text.startswith("**This baseline restores nothing: it has 30.00 dB, its input (bicubic) 31.00 dB. ")
    given["psnr"] = 28.75
    text = verdict.sentence(rows, ["D"], "D", "edsr")
    assert text.startswith("**edsr computes 50% less. ")
    assert text.endswith(" For scale: before pruning, the network was 1.25 dB better than its input (bicubic).")


def test_a_verdict_on_nothing_says_so() -> None:
    assert "method D removed nothing" in verdict.sentence([row("edsr", "D", 100, 0.1)], ["D"], "D", "edsr")


def test_methods_are_told_by_what_they_add() -> None:
    methods = {
        "A": ["adaptive"],
        "B": ["adaptive", "depth"],
        "mine": ["adaptive", "balance"],
        "B2": ["depth", "adaptive"],
    }
    assert verdict.methods_in_words(methods) == (
        "Methods: **A** removes more after an accepted iteration, less after a rejected one; **B** as A, keeps a least "
        "number of channels in every group; **mine** as A, takes more from groups that have lost little; **B2** as B."
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


GIVEN = {
    "made": None, "place": "results", "method": "D", "methods": "",
    "networks": [], "table": "", "counted": "", "protocol": "", "sets": "",
    "cost_shares": "", "table_one": "", "next": {}, "processor": "CPU",
}  # fmt: skip


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a b.png")
    crop = pictures.Crop("what <it> is", np.zeros((2, 2, 3), np.uint8))
    table = "![x](figures/a%20b.png) ![y](figures/c.png)\n\n| a |\n| --- |\n| <script>alert(1)</script> |\n"
    html = page.page(GIVEN | {"table": table}, tmp_path, {"c.png": [crop, crop]})
    assert re.findall(r'src="([^"]{22})', html) == 3 * ["data:image/png;base64,"]
    assert html.count("what &lt;it&gt; is") == 4  # the crops' titles, and their alternative texts
    assert "<td>&lt;script&gt;" in html
    assert not re.search(r"https?://|<script|<link", html)
    assert 'name="viewport"' in html
    assert html.count("<style>") == 1
    assert "color-scheme: light dark" in html.partition("<style>")[2].partition("</style>")[0]  # it is within the page


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


def test_the_page_shows_what_names_hold_as_text() -> None:
    assert page.html("a<b>&'c'", str).strip() == "<p>a&lt;b&gt;&amp;'c'</p>"


@pytest.mark.parametrize(
    ("factory", "load", "export"),
    [
        ("edsr", "checkpoint.load(Path('n.pt'))", "python -m pipeline.export n.pt --output mine.onnx"),
        (
            "mynet:build",
            "checkpoint.load(Path('n.pt'), 'mynet:build')",
            "python -m pipeline.export n.pt --network mynet:build --output mine.onnx",
        ),
    ],
)
def test_a_users_network_is_loaded_and_exported_by_its_factory(factory: str, load: str, export: str) -> None:
    first, second, third = page.commands(Path("n.pt"), "mine", "D", factory).values()
    assert load in first
    assert second == export
    assert third == 'make search ARGS="--network mine --method D"'


def test_headlines_are_changes_with_plus_for_better() -> None:
    rows = [{**row("edsr", "D", 62.5, 0.25), "psnr_change": -0.5}, row("edsr", "control", 100, 0.5)]
    assert verdict.headlines(rows, ["D"]) == {
        "edsr": {
            "D": {"mac_percent": 62.5, "psnr_change": -0.5, "psnr_change_baseline": 0.25, "psnr_change_control": 0.125}
        }
    }
