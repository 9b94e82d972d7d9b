"""What is done with a chain that has run: studies, stops, and the sentences of bad input; by real commands."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chains import ENVIRONMENT, ROOT, checkout, results, run, stage, tiny
from mlflow import MlflowClient

from pipeline import networks
from pipeline.data.dataset import load_images
from pipeline.evaluation import metrics
from pipeline.networks import checkpoint
from pipeline.tracking.run import readable


def test_a_study_runs_against_the_chains_baseline_goes_on_and_tells_its_winner(repro: Path) -> None:
    words = ("--network", "edsr", "--method", "D", "--storage", f"sqlite:///{repro / 'study.db'}")
    before = results(repro)
    first = stage(repro, "search", *words, "--trials", "2", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert "trial 2/2" in first.stderr
    done = stage(repro, "search", *words, "--trials", "3", "--apply")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"dvc exp run -S 'run.networks=\[edsr\]' -S 'run.methods=\[D\]' "
        r"-S report.method=D (-S \+\+methods\.D\.networks\.edsr\.\w+=\S+ ?){3}\n",
        done.stdout,
    ), done.stdout
    assert results(repro).keys() - before.keys() == {
        f"results/search/edsr-D/{name}" for name in ("trials.json", "importances.json", "history.png", "contour.png",
                                                     "tradeoff.png", "importances.png")
    }  # fmt: skip
    assert {name: results(repro)[name] for name in before} == before
    trials = json.loads((repro / "results/search/edsr-D/trials.json").read_text())
    assert len(trials) == 3
    applied = yaml.safe_load((repro / "params.yaml").read_text())["methods"]["D"]["networks"]["edsr"]
    best = min((t for t in trials if t.get("feasible")), key=lambda t: t["mac_percent"])
    assert {key: float(applied[key]) for key in best["params"]} == best["params"]  # YAML 1.1 takes 1e-05 for a text
    again = stage(repro, "search", *words, "--trials", "3")
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    run(repro, "git", "checkout", "-q", "params.yaml")

    client = MlflowClient(f"sqlite:///{repro / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name = 'architecture-aware pruning'")[0].experiment_id
    (study,) = client.search_runs([experiment], "tags.level = 'study'")
    assert study.info.status == "FINISHED"
    assert study.data.metrics["mac_percent"] == readable(best["mac_percent"])
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{study.info.run_id}'")
    assert {child.info.run_name for child in children} == {"trial 0", "trial 1", "trial 2"}
    won = next(child for child in children if child.info.run_name == f"trial {best['trial']}")
    figures = ("mac_percent", "psnr_change", "ssim_change", "psnr_change_baseline", "psnr_change_control")
    assert {key: won.data.metrics[key] for key in figures} == {
        key: readable(best[key]) for key in figures
    }  # not an iteration's
    assert won.data.metrics["feasible"] == 1.0
    assert float(won.data.params["threshold_scale"]) == best["params"]["threshold_scale"]
    assert len(client.get_metric_history(won.info.run_id, "mac_percent")) > 1
    shutil.rmtree(repro / "results/search")


@pytest.mark.long
def test_another_machine_pulls_what_a_study_needs_and_takes_part(repro: Path, tmp_path: Path) -> None:
    remote, other = tmp_path / "remote", tmp_path / "other"
    needed = ("prepare", "train@edsr", "control@edsr")
    assert run(tmp_path, "git", "clone", "-q", str(repro), str(other)).returncode == 0
    committed = run(repro, "git", "ls-files", "-o", "--exclude-standard", "dvc.lock", "results").stdout.split("\n")[:-1]
    for name in committed:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repro / name, other / name)
    for folder, act in ((repro, "push"), (other, "pull")):
        run(folder, "dvc", "remote", "add", "--local", "-f", "-d", "shared", str(remote))
        done = run(folder, "dvc", act, *needed)
        assert done.returncode == 0, done.stderr
    (repro / ".dvc" / "config.local").unlink()
    done = stage(other, "search", "--network", "edsr", "--trials", "1", "--storage", f"sqlite:///{tmp_path}/study.db")
    assert done.returncode == 0, done.stderr
    assert "search: trial 0 wins" in done.stdout
    assert not (other / "results/finetune/edsr/D/network.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--network", "vdsr"), "network 'vdsr' isn't in params.yaml, which has edsr, sid"),
        (("--method", "E"), "method 'E' isn't in params.yaml, which has A, B, C, D"),
        (("--trials", "0"), "--trials is 0; at least 1 is allowed"),
        (("--storage", "nonsense"), "the storage .*nonsense.* can't be used"),
    ],
)
def test_a_study_that_cant_be_run_is_refused_in_one_sentence(repro: Path, words: tuple[str, ...], said: str) -> None:
    done = stage(repro, "search", *words)
    assert done.returncode == 2
    assert re.fullmatch(f"search: error: {said}.*\n", done.stderr), done.stderr


def test_a_worker_of_a_study_is_stopped_by_the_first_ctrl_c_and_ignores_the_second() -> None:
    program = """
import os, signal
from stages import search
signal.signal(signal.SIGINT, search._once)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print("stopped once")
"""
    assert run(ROOT, sys.executable, "-c", program).stdout == "stopped once\n"


def test_a_study_before_the_chain_says_what_is_missing(tmp_path: Path) -> None:
    folder = checkout(tmp_path, tiny(ROOT / "params.yaml"))
    done = stage(folder, "search")
    assert done.returncode == 2
    assert "results/train/edsr/metrics.json can't be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_pruned_checkpoint_loads_without_the_pruner_and_fits_its_log(repro: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from pipeline.networks import checkpoint
network, meta = checkpoint.load(Path("results/finetune/edsr/D/network.pt"))
print(*network(torch.zeros(1, 3, 9, 14)).shape, *("pipeline.pruning.coupling" in sys.modules, "mlflow" in sys.modules))
"""
    assert run(repro, sys.executable, "-c", script).stdout.split() == ["1", "3", "18", "28", "False", "False"]


def test_a_killed_prune_goes_on_and_ends_with_the_same_bits(repro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(repro, folder, symlinks=True)
    wanted = {key: value for key, value in results(repro).items() if "/prune/edsr/D/" in key}
    shutil.rmtree(folder / "results/prune/edsr/D")
    words = [sys.executable, "-m", "stages.prune", "edsr", "D"]
    child = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while child.poll() is None and not list(folder.glob(".scratch/prune-*/log.json")):
        time.sleep(0.02)
        assert time.monotonic() - began < 900
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = stage(folder, "prune", "edsr", "D")
    assert done.returncode == 0, done.stderr
    assert {key: value for key, value in results(folder).items() if "/prune/edsr/D/" in key} == wanted


@pytest.mark.parametrize(
    ("name", "arguments", "spoil", "sentence"),
    [
        ("train", ["edsr"], lambda p: p["train"]["edsr"].update(stesp=3), "train.edsr.stesp is an unknown key"),
        ("train", ["edsr"], lambda p: p.pop("seed"), "seed is missing"),
        ("train", ["edsr"], lambda p: p["train"]["edsr"].update(lr="fast"), "train.edsr.lr is 'fast'"),
        ("train", ["vdsr"], lambda p: None, "network 'vdsr' isn't in params.yaml"),
        ("prune", ["edsr", "Z"], lambda p: None, "method 'Z' isn't in params.yaml"),
        ("prepare", ["edsr"], lambda p: p["prepare"]["edsr"].update(folder="empty"), "empty"),
        (
            "prepare",
            ["sid"],
            lambda p: [p["prepare"].pop("sid"), p["run"].update(networks=["edsr"])],
            "isn't in prepare",
        ),
        ("finetune", ["edsr", "B"], lambda p: None, "holds no accepted-*.pt: prune makes them"),
        ("check", [], lambda p: p["networks"]["edsr"].update(factory="nomod:x"), "'nomod:x' cannot be imported"),
        ("check", ["--results"], lambda p: None, "table.md isn't there"),
        ("check", [], lambda p: p["latency"].update(sides=[32, 400_000_000]), "latency.sides"),
        ("check", [], lambda p: p["networks"]["edsr"].update(factory="torch.nn:Identity"), "no parameter that can"),
        ("ui", ["70000"], lambda p: None, "PORT is '70000'; a whole number from 1 to 65535 is allowed"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_writes_nothing(
    repro: Path, tmp_path: Path, name: str, arguments: list[str], spoil: Any, sentence: str
) -> None:
    params = yaml.safe_load((repro / "params.yaml").read_text())
    spoil(params)
    for folder in ("pipeline", "stages", "data"):
        (tmp_path / folder).symlink_to(repro / folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = stage(tmp_path, name, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def test_a_network_of_other_weights_is_refused_by_name(repro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(repro, folder, symlinks=True)
    target = folder / "results/train/edsr/network.pt"
    target.unlink()
    shutil.copy(repro / "results/train/sid/network.pt", target)
    done = stage(folder, "prune", "edsr", "D")
    assert done.returncode == 2
    assert "'sid'" in done.stderr
    assert "'edsr'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_exploding_baseline_stops_with_the_step_named(repro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exploding"
    shutil.copytree(repro, folder, symlinks=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"]["edsr"] |= {"lr": 10.0, "clip": 0.0, "steps": 9}
    params["networks"]["edsr"]["args"]["blocks"] = 16
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = stage(folder, "train", "edsr")
    assert done.returncode == 2
    assert "not finite at step" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_store_is_said_before_any_work(repro: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unreachable"
    shutil.copytree(repro, folder, symlinks=True)
    before = results(folder)
    for uri in ("http://127.0.0.1:9", "sqlite:////proc/no/such/folder/store.db"):
        began = time.monotonic()
        done = stage(folder, "train", "edsr", MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 2, done.stderr
        assert "can't be reached" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - began < 40
    assert results(folder) == before


def test_given_weights_are_the_baseline_without_training_and_pruning_goes_on_from_them(tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = networks.build("edsr", {"blocks": 2, "channels": 8})
    theirs = {"head": "conv_first", "body_end": "conv_after_body", "tail": "conv_last"}
    state = {}  # as BasicSR would hold this network: its tensors but the biases are those of ours
    for key, value in network.state_dict().items():
        name, _, rest = key.partition(".")
        if key != "mean":
            state[f"{theirs.get(name, name)}.{rest}"] = 255 * value if key.endswith("bias") else value
    folder = checkout(tmp_path, tiny(ROOT / "params.yaml", run__networks=["edsr"], train__edsr__checkpoint="given.pth"))
    torch.save({"params": state}, folder / "given.pth")
    script = """
import sys
from pipeline import config
from pipeline.training import loop
from stages import analyze, control, prepare, prune, train
params = config.read()
fit = loop.fit
loop.fit = None  # whoever trains now fails
prepare.prepare(params, "edsr")
train.train(params, "edsr")
loop.fit = fit
analyze.analyze(params, "edsr")
control.control(params, "edsr")
prune.prune(params, "edsr", "D")
"""
    done = run(folder, sys.executable, "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "given.pth instead of training: keys of BasicSR, biases divided by 255" in done.stderr

    images = load_images(folder / "results/prepare/edsr/validation", "cpu")
    wanted = metrics.measure(network, images, metrics.border("super_resolution", 2))
    measured = json.loads((folder / "results/train/edsr/metrics.json").read_text())
    assert measured["psnr"] == pytest.approx(wanted.mean_psnr, abs=1e-3)
    assert measured["ssim"] == pytest.approx(wanted.mean_ssim, abs=1e-4)
    curve = (folder / "results/train/edsr/curve.csv").read_text()
    assert curve == f"step,psnr,loss\n0,{measured['psnr']:.5f},\n"
    baseline, _ = checkpoint.load(folder / "results/train/edsr/network.pt")
    assert torch.allclose(baseline.head.bias, network.head.bias)
    assert torch.equal(baseline.head.weight, network.head.weight)
    for following in ("control/edsr/curve.json", "prune/edsr/D/log.json"):
        start = json.loads((folder / "results" / following).read_text())[0]
        assert start["psnr"] == pytest.approx(measured["psnr"], abs=1e-6)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.search_experiments(filter_string="name = 'architecture-aware pruning'")[0].experiment_id
    (logged,) = client.search_runs([experiment], "tags.stage = 'train edsr'")
    assert logged.data.metrics["psnr"] == readable(measured["psnr"])
    assert logged.data.tags["checkpoint"] == "given.pth"

    torch.save({"params": {**state, "conv_last.bias": torch.zeros(4)}}, folder / "given.pth")
    before = results(folder)
    done = stage(folder, "train", "edsr")
    assert done.returncode == 2
    assert re.fullmatch(r"train: error: train\.edsr\.checkpoint: given\.pth doesn't fit .*\n", done.stderr), done.stderr
    assert results(folder) == before
