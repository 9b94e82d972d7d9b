"""The chain as a user runs it: real `dvc repro`, real MLflow store, a tiny preset on a few of the photographs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ui
import yaml
from chains import ROOT, module, results, run
from mlflow import MlflowClient

from pipeline import config
from pipeline.errors import UserError
from pipeline.report import page
from pipeline.tracking.run import readable


def program(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a chain's folder, in a process that is forked from one with the large libraries loaded."""
    path = folder / "program.py"
    path.write_text(text)
    try:
        return module(folder, "program", PYTHONDONTWRITEBYTECODE="1")
    finally:
        path.unlink()


def test_the_chain_ends_with_a_table_of_every_solution(repro: Path) -> None:
    table = (repro / "results/report/table.csv").read_text().splitlines()
    rows = [dict(zip(table[0].split(","), line.split(","), strict=True)) for line in table[1:]]
    assert [(row["network"], row["solution"]) for row in rows] == [
        (network, solution)
        for network, given in (("edsr", "bicubic"), ("sid", "amplified input"))
        for solution in (given, "baseline", "control", "A", "D")
    ]
    for row in rows:
        assert 5 < float(row["psnr"]) < 60
        if row["solution"] in ("A", "D"):
            assert 0 < float(row["mac_percent"]) < 100
            assert float(row["against_baseline_low"]) <= float(row["against_baseline_mean"])
        if row["solution"] == "control":
            assert float(row["mac_percent"]) == 100
    markdown = (repro / "results/report/table.md").read_text()
    assert markdown.count("\n| edsr") == markdown.count("\n| sid") == 5


def test_the_chain_ends_with_a_report_of_one_page(repro: Path) -> None:
    page = (repro / "results/report/index.html").read_text()
    assert len(page) < 3_000_000
    for network in ("edsr", "sid"):
        assert re.search(rf"<strong>{network} computes \d+% less\. [A-Z]", page)
        figures = list((repro / "results/report/figures").glob(f"{network}-*.png"))
        assert {"layers", "widths", "path", "thresholds", "tradeoff", "training", "times"} < {
            figure.stem.removeprefix(f"{network}-") for figure in figures
        }
        assert all(3_000 < figure.stat().st_size < 300_000 for figure in figures)
    example = (repro / "results/report/example.png").read_bytes()
    assert example == (repro / "results/report/figures/edsr-largest-loss.png").read_bytes()  # never the flattering one
    samples = [json.loads(path.read_text()) for path in repro.glob("results/evaluate/*/samples.json")]
    charts = len(list((repro / "results/report/figures").iterdir())) - sum(map(len, samples))
    assert page.count("data:image/png") == charts + 5 * sum(map(len, samples))  # a test image is five crops of it
    assert 'src="figures' not in page
    assert "paper (%)" in (repro / "results/report/report.md").read_text()
    commit = run(repro, "git", "rev-parse", "--short", "HEAD").stdout.strip()
    assert re.search(rf"Made 20\d\d-\d\d-\d\d \d\d:\d\d, commit {commit}, a params.yaml of your own, timed on ", page)


MEASURE = """{
    window: [innerWidth, innerHeight],
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")].filter((one) => !one.closest("table")
        && one.getBoundingClientRect().right > innerWidth).map((one) => one.outerHTML.slice(0, 80)),
    pictures: [...document.images].map((one) => one.complete && one.naturalWidth > 0),
    ends: [".verdict", ".tiles", ".worst .crops span:nth-child(3)"].map((name) =>
        document.querySelector(name).getBoundingClientRect().bottom),
    change: document.querySelectorAll("main table th")[2].getBoundingClientRect().right,
}"""


@pytest.mark.parametrize("size", [(1400, 900), (390, 844)])
def test_a_moved_reports_first_screen_fits_a_desk_and_a_phone(
    repro: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Verdict, numbers and picture before any scrolling; nothing is wider than the screen; every picture is shown.

    Of the picture its first row on a phone: this baseline is worse than its input, which takes the verdict more lines.
    """
    if shutil.which("chromium") is None:
        pytest.skip("Debian's package chromium isn't installed: no browser to look at the report with")
    path = tmp_path / "moved" / "index.html"
    path.parent.mkdir()
    shutil.copy(repro / "results/report/index.html", path)
    seen = ui.framed(path, size, MEASURE, tmp_path / "profile")
    assert seen["window"] == [*size]
    assert seen["width"] <= size[0], seen["wide"]
    assert seen["wide"] == []
    assert all(seen["pictures"])
    assert len(seen["pictures"]) > 20
    assert all(0 < end <= size[1] for end in seen["ends"]), seen["ends"]
    assert seen["change"] <= size[0]  # the table's first figure, the change against the baseline


def test_a_moved_reports_markdown_finds_its_pictures(repro: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(repro / "results/report", tmp_path / "moved")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (moved / "report.md").read_text())
    assert len(pictures) == len(set(pictures)) == len(list((moved / "figures").iterdir()))
    assert all((moved / picture).is_file() for picture in pictures)


@pytest.mark.parametrize(
    ("broken", "content", "sentence"),
    [
        (
            "latency/sid/latency.json",
            None,
            "can't be read: No such file or directory; the stage that writes it must run first: dvc repro latency@sid",
        ),
        ("latency/sid/latency.json", b"{}", "has no processor, simd_width"),
        ("evaluate/sid/samples.json", b"[]", "is [] but should be a section of keys; dvc repro -s -f evaluate@sid"),
        ("evaluate/sid/samples.json", b"{}", "has no largest loss"),
        ("finetune/sid/D/attempts.json", b'["a", 1]', "entry 1 is 1 but should be a valid string; dvc repro -s -f"),
        ("prune/sid/D/path.csv", b"number,verdict,mac,psnr_change\n0,accepted\n", "has no rows with number, verdict"),
        ("evaluate/sid/frames/largest-loss/D.png", b"\x89PNG", "can't be read as an image: it is damaged"),
        ("evaluate/sid/frames/largest-loss/D.png", None, "can't be read as an image: No such file"),
    ],
)
def test_a_report_of_broken_results_is_one_sentence_and_leaves_the_last_one(
    repro: Path, tmp_path: Path, broken: str, content: bytes | None, sentence: str
) -> None:
    shutil.copytree(repro / "results", tmp_path / "results")
    path = tmp_path / "results" / broken
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = results(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + re.escape(sentence)):
        page.write(tmp_path / "results", tmp_path / "results" / "report", config.read(repro / "params.yaml"))
    assert results(tmp_path) == before


def test_names_of_layers_and_images_are_shown_as_they_are(repro: Path, tmp_path: Path) -> None:
    shutil.copytree(repro / "results", tmp_path / "results")
    for path in (tmp_path / "results").rglob("*.[jc]s*"):
        if path.parts[-2] == "edsr" and "prune" not in path.parts:
            text = path.read_text().replace("body.0.conv1", "a_{$|*<b>`").replace("es_city", "a]b*c_d|<i>e*")
            path.unlink()
            path.write_text(text)
    folder = tmp_path / "report"
    page.write(tmp_path / "results", folder, config.read(repro / "params.yaml"))
    text = (folder / "index.html").read_text()
    assert re.search(r"<h3>Test image with the [a-z ]+: a\]b\*c_d\|&lt;i&gt;e\*\d\.jpg", text)
    assert re.search(r"on the worst image, a\]b\*c_d\|&lt;i&gt;e\*\d\.jpg", text)
    assert "<i>" not in text


def test_dvc_compares_experiments_by_few_metrics(repro: Path) -> None:
    shown = json.loads(run(repro, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(shown) == ["results/report/metrics.json"]
    figures = shown["results/report/metrics.json"]["data"]
    assert [(network, [*methods]) for network, methods in figures.items()] == [
        ("edsr", ["A", "D"]),
        ("sid", ["A", "D"]),
    ]
    tuned = json.loads((repro / "results/finetune/sid/D/metrics.json").read_text())
    assert figures["sid"]["D"].keys() == {"mac_percent", "psnr_change", "psnr_change_baseline", "psnr_change_control"}
    assert figures["sid"]["D"]["mac_percent"] == pytest.approx(tuned["mac_percent"])
    assert figures["sid"]["D"]["psnr_change"] == tuned["psnr_change"]
    test = json.loads((repro / "results/evaluate/sid/metrics.json").read_text())
    for rival, key in (("baseline", "psnr_change_baseline"), ("control", "psnr_change_control")):
        assert figures["sid"]["D"][key] == pytest.approx(test["D"]["psnr"] - test[rival]["psnr"])


def test_dvc_plots_the_curves_and_the_reports_figures(repro: Path) -> None:
    done = run(repro, "dvc", "plots", "show", "--json")
    shown = json.loads(done.stdout)["data"]
    assert "results/report/figures/edsr-path.png" in shown  # they open without a network; the curves need a script
    for path, field in {
        "train/sid/curve.csv": "psnr", "analyze/edsr/layers.csv": "mac", "prune/edsr/D/path.csv": "psnr",
        "evaluate/sid/images.csv": "psnr_change",
    }.items():  # fmt: skip
        (plot,) = shown[f"results/{path}"]
        assert field in plot["content"]["data"]["values"][0], path  # its template was found and filled
        assert f'"field": "{field}"' in json.dumps(plot["content"]), path


def test_a_second_repro_does_nothing(repro: Path) -> None:
    before = results(repro)
    done = run(repro, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert results(repro) == before


def test_one_methods_parameter_reruns_that_method_alone(repro: Path) -> None:
    params = yaml.safe_load((repro / "params.yaml").read_text())
    params["methods"]["D"]["overrides"] = {"balance_strength": 3.0}
    (repro / "params.yaml").write_text(yaml.safe_dump(params))
    stages = {line.split(":")[0] for line in run(repro, "dvc", "status").stdout.splitlines() if line[:1].isalpha()}
    run(repro, "git", "checkout", "-q", "params.yaml")
    # analyze, too, which takes seconds: methods say whether channels under a normalisation may go
    assert {name for name in stages if name.startswith(("prune", "train", "control", "prepare"))} == {
        "prune@edsr-D",
        "prune@sid-D",
    }


def test_the_reported_method_reruns_what_pictures_and_times_it_alone(repro: Path) -> None:
    params = yaml.safe_load((repro / "params.yaml").read_text())
    params["report"]["method"] = "A"
    (repro / "params.yaml").write_text(yaml.safe_dump(params))
    status = json.loads(run(repro, "dvc", "status", "--json").stdout)
    run(repro, "git", "checkout", "-q", "params.yaml")
    assert {name.partition("@")[0] for name in status} == {"evaluate", "latency", "report"}


def test_the_store_shows_chain_stages_and_iterations_with_their_architecture(repro: Path) -> None:
    client = MlflowClient(f"sqlite:///{repro / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name = 'architecture-aware pruning'")[0].experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    by_level: dict[str, list] = {}
    for one in runs:
        by_level.setdefault(one.data.tags["level"], []).append(one)
    assert len(by_level["chain"]) == 1
    chain = by_level["chain"][0]
    assert chain.info.status == "FINISHED"
    assert chain.data.tags["uncommitted"] == "no"
    assert chain.data.tags.keys() >= {
        "goal",
        "reproduce",
        "result.edsr",
        "result.sid",
        "data",
        "mlflow.source.git.commit",
    }
    names = {one.info.run_name for one in by_level["stage"]}
    assert names >= {"prepare sid", "train edsr", "control sid", "prune edsr D", "finetune sid A", "report"}
    assert all(one.data.tags["mlflow.parentRunId"] == chain.info.run_id for one in by_level["stage"])

    prune = next(one for one in by_level["stage"] if one.info.run_name == "prune edsr D")
    log = json.loads((repro / "results/prune/edsr/D/log.json").read_text())
    path = client.get_metric_history(prune.info.run_id, "mac_percent")
    assert [point.step for point in path] == [*range(len(log)), len(log)]  # the last one is the result
    children = [one for one in by_level["iteration"] if one.data.tags["mlflow.parentRunId"] == prune.info.run_id]
    assert len(children) == len(log)
    first = next(one for one in children if one.info.run_name == "edsr D iteration 1")
    assert first.data.params["width.body.0.conv1"] == str(log[1]["widths"]["body.0.conv1"])
    assert first.data.metrics["psnr"] == readable(log[1]["psnr"])
    assert first.data.tags["verdict"] == log[1]["verdict"]


@pytest.mark.long
def test_the_ui_shows_the_chain_its_iterations_and_pictures_in_a_browser(repro: Path, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("Debian's package chromium isn't installed: no browser to look at the UI with")
    if not (ROOT / ".venv" / "ready").exists():
        pytest.skip("`make ui` needs the environment that `make setup` makes")
    client = MlflowClient(f"sqlite:///{repro / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name = 'architecture-aware pruning'")[0].experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    chain = next(one for one in runs if one.data.tags["level"] == "chain")
    prune = next(one for one in runs if one.info.run_name == "prune edsr D")
    first = next(one for one in runs if one.info.run_name == "edsr D iteration 1")
    with ui.served(repro, ROOT) as address:

        def shown(place: str) -> str:
            return ui.page(f"{address}/#/experiments/{experiment}/{place}", tmp_path)

        assert chain.info.run_name in shown("runs")
        told = (repro / "ui.log").read_text()
        begin = re.search(rf"{address}/#/experiments/{experiment}/(runs\?\S+)", told)
        assert begin, told
        compared = shown(begin[1])  # the list that `make ui` begins with
        assert "Networks by MACs kept" in compared
        assert {"mac_percent", "psnr_change_baseline", "psnr_change_control"} <= set(re.findall(r">(\w+)<", compared))
        place = {name: compared.index(f">{name}<") for name in ("sid D", "edsr baseline")}
        assert place["sid D"] < place["edsr baseline"]  # fewest MACs first
        assert "edsr D iteration 1" not in compared  # other runs have lists of their own
        overview = shown(f"runs/{chain.info.run_id}")
        assert "One run of the chain" in overview
        assert "edsr_mac_percent" in overview
        path = shown(f"runs/{prune.info.run_id}")
        assert "edsr pruned by method D" in path
        assert "mac_percent" in path
        iteration = shown(f"runs/{first.info.run_id}")
        assert "psnr_change" in iteration
        assert f"{first.data.tags['verdict']}: " in iteration
        artifacts = shown(f"runs/{chain.info.run_id}/artifacts/figures/edsr-path.png")
        assert "edsr-path.png" in artifacts
        assert re.search(r'<img[^>]+src="blob:', artifacts)
    images = [artifact.path for artifact in client.list_artifacts(prune.info.run_id, "images")]
    assert any("+step+0+" in path for path in images), images  # the baseline's crop, the first to leaf through


def test_the_logged_model_restores_another_image_size(repro: Path) -> None:
    script = """
import sys, numpy as np, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
experiment = client.search_experiments(filter_string="name = 'architecture-aware pruning'")[0].experiment_id
run = client.search_runs([experiment], "tags.stage = 'finetune edsr D'")[0]
model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/edsr-D")
for size in ((1, 3, 20, 31), (2, 3, 17, 12)):
    print(*model.predict(np.full(size, 0.5, np.float32)).shape)
"""
    done = program(repro, script)
    assert done.stdout.split("\n")[:2] == ["1 3 40 62", "2 3 34 24"], done.stderr
