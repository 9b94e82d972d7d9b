"""The saved views of MLflow's list of runs: columns and orders that the runs really hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import tracking, views


def test_a_view_is_the_envelope_that_the_pages_read() -> None:
    made = views.tags(views.of_chains(["edsr"]), 12)
    envelope = json.loads(made["mlflow.sharedViewState.networks"])
    assert envelope | {"state": None} == {
        "name": "Networks by MACs kept", "createdAt": 12, "updatedAt": 12, "state": None
    }  # fmt: skip
    state = json.loads(envelope["state"])
    assert state["searchFilter"] == "tags.level = 'solution'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`mac_percent`", True)
    assert state["selectedColumns"][0] == "metrics.`mac_percent`"
    assert state["columnOrder"] == state["selectedColumns"] == list(state["columnWidths"])
    chains = json.loads(json.loads(made["mlflow.sharedViewState.chains"])["state"])
    assert (chains["orderByKey"], chains["orderByAsc"]) == ("attributes.start_time", False)
    assert "metrics.`edsr_drop_control`" in chains["selectedColumns"]
    assert chains["selectedColumns"][-1] == "tags.`reproduce`"


def test_a_store_has_the_views_from_its_first_run_on_and_the_chains_end_adds_its_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")

    def tags() -> dict[str, str]:
        return client.get_experiment_by_name(tracking.EXPERIMENT).tags

    with tracking.stage("prepare", "edsr"):
        made = tags()
    assert {key for key in made if key.startswith(views.PREFIX)} == set(views.tags(views.of_chains(()), 0))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    client.set_experiment_tag(experiment, f"{views.PREFIX}networks", "somebody's own")
    with tracking.stage("prepare", "edsr"):
        pass
    assert tags()[f"{views.PREFIX}networks"] == "somebody's own"
    with tracking.stage("report") as run:
        tracking.save_views(run, ["edsr", "sid"])
    assert "sid_mac_percent" in tags()[f"{views.PREFIX}chains"]
    assert f"{views.PREFIX}trials" not in tags()  # an empty list for who has no study
    tracking.study("a-study", {})
    assert "mac_kept" in tags()[f"{views.PREFIX}trials"]
