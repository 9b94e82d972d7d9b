"""Stages on two devices: one MLflow run, one progress, the files that one device writes; and what a kill leaves."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chains import BIN, ENVIRONMENT, ROOT, checkout, living, run, stage, tiny

from pipeline.errors import UserError
from stages import command

QUIET = ENVIRONMENT | {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}


TORCHRUN = {
    "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": None}, None),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment; a number from 1 to 1024 is allowed"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "1000000000"}, "WORLD_SIZE is '1000000000'"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is missing .* torchrun sets all of them"),
        ({"RANK": "2"}, "RANK is '2' in the environment; a number from 0 to 1 is allowed"),
        ({"RANK": None}, "RANK is missing"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK is 'one'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is missing"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    ],
    ids=str,
)
def test_an_environment_that_torchrun_would_never_make_is_refused(
    changed: dict[str, str | None], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (TORCHRUN | changed).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if says is None:
        assert command.processes(trains=True) == int(os.environ["WORLD_SIZE"])
    else:
        with pytest.raises(UserError, match=says):
            command.processes(trains=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chain on two devices whose images are there."""
    params = tiny(ROOT / "params.yaml", devices=2, run__networks=["edsr"], run__methods=["D"])
    params["train"]["edsr"] |= {"steps": 8, "batch": 4, "validate_every": 2}
    folder = checkout(tmp_path_factory.mktemp("devices"), params)
    assert stage(folder, "prepare", "edsr").returncode == 0
    return folder


def curve(folder: Path) -> list[list[float]]:
    rows = list(csv.reader((folder / "results/train/edsr/curve.csv").read_text().splitlines()))
    return [[float(cell) for cell in row] for row in rows[1:]]


def devices(folder: Path, number: int) -> None:
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace(f"devices: {3 - number}", f"devices: {number}"))


@pytest.mark.long
def test_a_chains_trainings_on_two_devices_are_those_of_one(prepared: Path) -> None:
    for words in (("train", "edsr"), ("control", "edsr"), ("prune", "edsr", "D"), ("finetune", "edsr", "D")):
        done = stage(prepared, *words)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "warning" not in line]
        assert said
        assert all(line.startswith(f"{' '.join(words)}: ") for line in said), done.stderr  # rank 0 alone speaks
    with sqlite3.connect(prepared / "mlflow.db") as store:
        names = [name for (name,) in store.execute("select name from runs")]
    assert all(names.count(name) == 1 for name in ("train edsr", "control edsr", "prune edsr D", "finetune edsr D"))
    assert json.loads((prepared / "results/finetune/edsr/D/metrics.json").read_text())["mac_percent"] < 100
    together, written = curve(prepared), sorted(path.name for path in (prepared / "results/train/edsr").iterdir())
    devices(prepared, 1)
    assert stage(prepared, "train", "edsr").returncode == 0
    devices(prepared, 2)
    assert [row[0] for row in together] == [2, 4, 6, 8]
    for one, two in zip(curve(prepared), together, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert sorted(path.name for path in (prepared / "results/train/edsr").iterdir()) == written
    assert not living(prepared)


@pytest.mark.long
def test_a_killed_rank_ends_the_stage_in_one_sentence_and_it_goes_on(prepared: Path) -> None:
    path, before = prepared / "params.yaml", (prepared / "params.yaml").read_text()
    path.write_text(before.replace("steps: 8", "steps: 100000").replace("validate_every: 2", "validate_every: 100000"))
    assert path.read_text() != before
    program = """
import runpy, stages  # stages first: it quiets torch
from pipeline.training import loop
loop.SAVE_SECONDS = 1.0
runpy.run_module("stages.train", run_name="__main__", alter_sys=True)
"""
    words = [sys.executable, "-c", program, "edsr"]
    log = prepared / "log"
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=prepared, env=QUIET, stderr=file)
    until = time.monotonic() + 600
    while not list(prepared.glob(".scratch/train-*/state.pt")):  # a second of training: both are at it
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.2)
    (other,) = (each for each in living(prepared) if each.pid != process.pid)
    other.kill()
    assert process.wait(60) == 2
    path.write_text(before)
    (said,) = log.read_text().splitlines()
    assert said.startswith("train: error: rank 0 of 2: another rank of this training has ended; the same command goes")
    assert not living(prepared)


def test_torchrun_begins_a_stage_too(prepared: Path) -> None:
    torchrun = [
        str(BIN / "python"),
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "--local-addr=127.0.0.1",
    ]
    done = run(prepared, *torchrun, "-m", "stages.train", "edsr")
    assert done.returncode == 0, done.stderr
    assert "rank 1" not in done.stderr
    assert [row[0] for row in curve(prepared)] == [2, 4, 6, 8]
