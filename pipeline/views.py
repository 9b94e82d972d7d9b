"""Saved views of MLflow's list of runs: which runs, which columns, what sorts them.

The list shows no metric until somebody picks it, and the browser keeps the choice. A view saved with the experiment is
there for everybody, in the list's *Views* menu and by its address. MLflow keeps one as a tag of the experiment: a JSON
envelope {name, createdAt, updatedAt, state}, its state the page's JSON (as the pages of MLflow 3.17 write and read it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

PREFIX = "mlflow.sharedViewState."
COMPARE = "networks"  # the view to begin with
WIDTH = 150  # pixels of a column: enough for its name


@dataclass(frozen=True)
class View:
    """The runs of one level, a row each."""

    name: str
    level: str  # tag of the runs that it lists
    metrics: tuple[str, ...]  # its columns
    tags: tuple[str, ...]  # and further ones
    least: str | None = None  # the metric whose least value stands first; none: the latest run does


def views(networks: Sequence[str]) -> dict[str, View]:
    """By key: a view for each kind of run that somebody compares. networks: those that the chain runs over."""
    measured, whose = ("mac_percent", "psnr", "ssim"), ("network", "method")
    ends = tuple(f"{n}_{key}" for n in networks for key in ("mac_percent", "drop_baseline", "drop_control"))
    drops = ("psnr_drop_baseline", "psnr_drop_control")
    return {
        COMPARE: View(
            "Networks by MACs kept", "solution", (*measured, "drop_baseline", "drop_control"), whose, "mac_percent"
        ),
        "iterations": View(
            "Iterations by MACs kept", "iteration", (*measured, "psnr_drop"), (*whose, "verdict"), "mac_percent"
        ),
        "chains": View("Runs of the chain", "chain", ends, ("goal", "reproduce")),
        "trials": View("Trials by MACs kept", "trial", ("mac_kept", *drops), (*whose, "feasible"), "mac_kept"),
    }


def tags(networks: Sequence[str], now: int) -> dict[str, str]:
    """The views as tags of the experiment. now: when they were made, in milliseconds since 1970."""
    found = {}
    for key, view in views(networks).items():
        columns = [f"metrics.`{name}`" for name in view.metrics] + [f"tags.`{name}`" for name in view.tags]
        state = {
            "searchFilter": f"tags.level = '{view.level}'",
            "orderByKey": f"metrics.`{view.least}`" if view.least else "attributes.start_time",
            "orderByAsc": view.least is not None,
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": dict.fromkeys(columns, WIDTH),
        }
        envelope = {"name": view.name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        found[PREFIX + key] = json.dumps(envelope)
    return found
