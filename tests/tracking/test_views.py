"""The saved views of MLflow's list of runs: columns and orders that the runs really hold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import runs, store, views


def test_a_view_is_the_envelope_that_the_pages_read() -> None:
    saved = views.tags(views.OF_ALL | views.of_chains(["edsr", "sid"]), 12)
    envelope = json.loads(saved["mlflow.sharedViewState.networks"])
    assert envelope | {"state": None} == {
        "name": "Networks by MACs kept", "createdAt": 12, "updatedAt": 12, "state": None
    }  # fmt: skip
    state = json.loads(envelope["state"])
    assert state["searchFilter"] == "tags.level = 'solution'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`mac_percent`", True)
    assert state["selectedColumns"][0] == "metrics.`mac_percent`"
    assert state["columnOrder"] == state["selectedColumns"] == list(state["columnWidths"])
    chains = json.loads(json.loads(saved["mlflow.sharedViewState.chains-edsr-sid"])["state"])
    assert (chains["orderByKey"], chains["orderByAsc"]) == ("attributes.start_time", False)
    assert "metrics.`edsr_psnr_change_control`" in chains["selectedColumns"]
    assert chains["selectedColumns"][-1] == "tags.`reproduce`"


def test_a_view_of_many_networks_is_one_that_mlflow_keeps() -> None:
    saved = views.tags(views.of_chains([f"network-with-a-long-name-{number}" for number in range(60)]), 12)
    ((key, value),) = saved.items()
    assert len(key) <= 250
    assert len(value) <= 20_000


@pytest.fixture
def tags(tmp_path: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """The experiment's tags in a store of its own."""
    shutil.copyfile(new_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    return lambda: client.get_experiment_by_name(store.EXPERIMENT).tags


def test_views_come_with_the_runs_that_they_list(tags: Callable[[], dict[str, str]]) -> None:
    with runs.stage("prepare", "edsr"):
        assert {key for key in tags() if key.startswith(views.PREFIX)} == set(views.tags(views.OF_ALL, 0))
    with runs.stage("report") as run:
        runs.save_views(run, ["edsr", "sid"])
    assert "sid_mac_percent" in tags()[f"{views.PREFIX}chains-edsr-sid"]
    assert f"{views.PREFIX}trials" not in tags()  # an empty list for who has no study
    runs.study("a-study", {})
    assert "psnr_change_control" in tags()[f"{views.PREFIX}trials"]


def test_what_somebody_has_changed_in_the_ui_stays(tags: Callable[[], dict[str, str]], tmp_path: Path) -> None:
    with runs.stage("prepare", "edsr"):
        pass
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(store.EXPERIMENT).experiment_id
    mine = {f"{views.PREFIX}iterations": "mine", "mlflow.note.content": "my notes", f"{views.PREFIX}abc": "my view"}
    for key, value in mine.items():
        client.set_experiment_tag(experiment, key, value)
    client.delete_experiment_tag(experiment, f"{views.PREFIX}networks")
    with runs.stage("report") as run:
        runs.save_views(run, ["edsr"])
    assert mine.items() <= tags().items()
    where = store.page("http://127.0.0.1:1")
    assert re.search(rf"#/experiments/{experiment}/runs\?viewStateShareKey=networks&", where)
    assert f"{views.PREFIX}networks" in tags()  # what `make ui` points at is there


def test_a_store_that_cant_be_used_is_no_reason_not_to_name_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/no/such/store.db")
    assert store.page("http://127.0.0.1:1").startswith("http://127.0.0.1:1 (the MLflow store")
