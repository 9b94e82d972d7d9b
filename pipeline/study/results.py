"""What a study leaves in results/search/: its table (trials.json), the parameters' importances, and its figures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna

from pipeline.files import write_json
from pipeline.study import figures
from pipeline.study.slots import slots
from pipeline.study.worker import INTERNAL


def write(folder: Path, rows: list[dict[str, Any]], ranked: dict[str, float]) -> list[Path]:
    """Write the table and the importances, and draw the figures; the table's path and theirs."""
    write_json(folder / "trials.json", rows)
    write_json(folder / "importances.json", ranked)
    return [folder / "trials.json", *figures.draw(folder)]


def table(study: optuna.Study, total: int) -> list[dict[str, Any]]:
    """One row for each slot, in the order they began."""
    rows = []
    for trial in slots(study, total).values():
        notes = {key: value for key, value in trial.user_attrs.items() if key not in INTERNAL}
        state = trial.state.name.lower()
        rows.append({"trial": trial.number, "state": state, "params": dict(trial.params), **notes})
    return rows


def finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the trials that were measured or given up."""
    return [row for row in rows if row["state"] in ("complete", "pruned")]


def saved_share(rows: list[dict[str, Any]]) -> float:
    """The mean share of its training steps that a trial didn't run, since it was given up."""
    return sum(row.get("saved_share", 0.0) for row in finished(rows)) / max(1, len(finished(rows)))


def importances(study: optuna.Study) -> dict[str, float]:
    """Of each parameter for the MACs kept; nothing where the trials are too few or all alike."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (RuntimeError, ValueError):
        return {}
