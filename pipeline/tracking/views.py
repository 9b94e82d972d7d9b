"""Saved views of MLflow's list of runs: which runs, which columns, what sorts them.

The list shows no metric until somebody picks it, and the browser keeps the choice. A view saved with the experiment is
there for everybody, in the list's *Views* menu and by its address. MLflow keeps one as a tag of the experiment: a JSON
envelope {name, createdAt, updatedAt, state}, its state the page's JSON (as the pages of MLflow 3.17 write and read it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import stores

PREFIX = "mlflow.sharedViewState."
COMPARE = "networks"  # the view to begin with
WORDS = 200  # characters of a view's name
SHOWN = 20  # networks with columns of their own: MLflow keeps no more than 20,000 characters of a view
WIDTH = 130  # pixels of a column: enough for its name


@dataclass(frozen=True)
class View:
    """The runs of one level, a row each."""

    name: str
    level: str  # tag of the runs that it lists
    columns: tuple[str, ...]  # metrics, and tags with a # before them; the first ones are seen without scrolling
    least: str | None = None  # the metric whose least value stands first; none: the latest run does


SOLUTION = ("mac_percent", "psnr_change_baseline", "psnr_change_control", "#network", "#method", "psnr", "ssim")
ITERATION = ("mac_percent", "psnr_change", "#verdict", "#network", "#method", "psnr", "ssim")
OF_ALL = {
    COMPARE: View("Networks by MACs kept", "solution", SOLUTION, "mac_percent"),
    "iterations": View("Iterations by MACs kept", "iteration", ITERATION, "mac_percent"),
}
TRIAL = ("mac_percent", "#feasible", "psnr_change_baseline", "psnr_change_control", "#network", "#method")
OF_STUDIES = {"trials": View("Trials of studies by MACs kept", "trial", TRIAL, "mac_percent")}


def of_chains(networks: Sequence[str]) -> dict[str, View]:
    """The view of the chains that ran over these networks, with columns for each one's end."""
    ends = tuple(f"{network}_{key}" for network in networks[:SHOWN] for key in SOLUTION[:3])
    return {
        stores.key("-".join(("chains", *networks))): View(
            f"Chains of {', '.join(networks)}"[:WORDS], "chain", (*ends, "#reproduce")
        )
    }


def tags(views: Mapping[str, View], now: int) -> dict[str, str]:
    """Views as tags of the experiment. now: when they were made, in milliseconds since 1970."""
    experiment_tags = {}
    for key, view in views.items():
        columns = [f"tags.`{name[1:]}`" if name[0] == "#" else f"metrics.`{name}`" for name in view.columns]
        state = {
            "searchFilter": f"tags.level = '{view.level}'",
            "orderByKey": f"metrics.`{view.least}`" if view.least else "attributes.start_time",
            "orderByAsc": view.least is not None,
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": dict.fromkeys(columns, WIDTH),
        }
        envelope = {"name": view.name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        experiment_tags[PREFIX + key] = json.dumps(envelope)
    return experiment_tags
