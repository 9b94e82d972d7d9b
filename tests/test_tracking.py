"""The MLflow store: whole or absent, whatever is killed while it is made."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.errors import UserError


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_store_that_was_left_half_made_under_its_temporary_name_is_made_anew(uri: str, tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / ".mlflow.db.new")
    half.execute("CREATE TABLE metrics (step INTEGER)")  # MLflow can't go on from here
    half.commit()
    half.close()
    with tracking.stage("prepare", "edsr"):
        assert not (tmp_path / ".mlflow.db.new").exists()
    experiment = MlflowClient(uri).search_experiments(filter_string=f"name = '{tracking.EXPERIMENT}'")[0]
    assert {run.info.status for run in MlflowClient(uri).search_runs([experiment.experiment_id])} == {"FINISHED"}


def test_a_store_that_isnt_whole_is_named(uri: str, tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / "mlflow.db")
    half.execute("CREATE TABLE datasets (name TEXT)")
    half.commit()
    half.close()
    with pytest.raises(UserError, match=r"mlflow\.db can't be reached.*whole or absent"), tracking.stage("prepare"):
        pass
