"""Runs of the MLflow store: a parent for one `dvc repro`, a child for each stage, a grandchild for each iteration."""

from __future__ import annotations

import os
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline import stores
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.schema import flat, parsed_yaml, read_yaml
from pipeline.tracking import views
from pipeline.tracking.processes import close_orphaned_runs, gone, owner, process_tags, session
from pipeline.tracking.run import LIMITS, METRICS, Run, ending, note, tagged
from pipeline.tracking.store import StoreLostError, answers, client_and_experiment, one_at_a_time
from pipeline.tracking.store import save_views as save_missing_views

# what the chain itself rewrites is no change
CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!dvc.lock")
GOAL = "fewer MACs and less memory traffic at no loss of validation PSNR"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
    except OSError:  # without git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The commit of the code, as people read it; nothing without git."""
    name = _git("rev-parse", "--short", "HEAD")
    return f"{name} with changes" if name and _git(*CHANGES) else name


def _parent(client: MlflowClient, experiment: str) -> Run:
    """The run of the chain that this stage belongs to, made by the first of its stages."""
    key = stores.key(session(), ":")
    parents = client.search_runs([experiment], f"tags.session = '{key}' and tags.level = 'chain'", max_results=1)
    if parents:
        return Run(client, parents[0].info.run_id, experiment)
    params = _params()
    own = {"session": key, "params": digest(params)[:12], **process_tags(owner())}
    unfinished = _unfinished(client, experiment, own["params"])
    if unfinished is not None:
        unfinished.tags(own)
        client.update_run(unfinished.id, status="RUNNING")
        return unfinished
    name = stores.text(os.environ.get("DVC_EXP_NAME") or "", LIMITS["name"]) or time.strftime("chain %Y-%m-%d %H:%M")
    command = f"dvc exp apply {name} && dvc repro" if os.environ.get("DVC_EXP_NAME") else "dvc repro"
    tags = {
        **own,
        "level": "chain",
        "goal": GOAL,
        "reproduce": command,
        "mlflow.source.git.commit": _git("rev-parse", "HEAD"),
        "uncommitted": "yes" if _git(*CHANGES) else "no",
        "mlflow.note.content": f"One run of the chain: {GOAL}. Its stages are the runs below it.",
    }
    changes = _changes(params)
    if changes:
        told = "; ".join(f"{key} {value} (committed: {old})" for key, (value, old) in changes.items())
        tags |= {"changed": told}
        tags["mlflow.note.content"] = f"**Changed: {told}.**\n\n{tags['mlflow.note.content']}"
    run = Run(client, client.create_run(experiment, run_name=name, tags=tagged(tags)).info.run_id, experiment)
    values = flat(params)
    run.params({key: values[key] for key in sorted(values, key=lambda key: key not in changes)})
    return run


def _changes(params: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The parameters that differ from the committed ones, as they are and as they were."""
    try:
        committed = flat(parsed_yaml(_git("show", "HEAD:./params.yaml").encode(), Path("params.yaml")) or {})
    except UserError:
        return {}
    now = flat(params)
    both = now.keys() | committed.keys()
    changed = {key: (now.get(key, "none"), committed.get(key, "none")) for key in sorted(both)}
    return {key: pair for key, pair in changed.items() if committed and pair[0] != pair[1]}


def _unfinished(client: MlflowClient, experiment: str, params: str) -> Run | None:
    """The last chain's run, where that chain had these parameters, was ended before its report, and is to go on."""
    named = os.environ.get("DVC_EXP_NAME")
    latest = client.search_runs([experiment], "tags.level = 'chain'", max_results=1)
    for run in latest:
        tags, experimental = run.data.tags, run.data.tags.get("reproduce", "").startswith("dvc exp")
        if tags.get("params") == params and "reported" not in tags and gone(tags) and not (named or experimental):
            return Run(client, run.info.run_id, experiment)
    return None


def _params() -> dict[str, Any]:
    """What params.yaml holds; nothing where it isn't there."""
    path = Path("params.yaml")
    return read_yaml(path) if path.is_file() else {}


@contextmanager
def stage(name: str, network: str = "", method: str = "", params: dict[str, Any] | None = None) -> Iterator[Run]:
    """The run of one stage execution; fails before any work when the store can't be reached."""
    label = " ".join(word for word in (name, network, method) if word)
    with one_at_a_time():
        client, experiment = client_and_experiment()
        with answers():
            close_orphaned_runs(client, experiment)
            parent = _parent(client, experiment)
    marks = {"level": "stage", "stage": label, "network": network, "method": method, **note(name, network, method)}
    run = parent.child(label, {key: value for key, value in marks.items() if value})
    run.params(params or {})
    try:
        yield run
    except BaseException as error:
        run.fail(error)
        if not isinstance(error, StoreLostError):
            with suppress(StoreLostError):
                parent.end(ending(error))
        raise
    try:
        run.end()
        _end_chain(name, parent)
    except StoreLostError as error:  # no reason to fail: the results are written
        reason = str(error).partition(";")[0]
        warnings.warn(f"{reason}; the results are written, and the run stays open until a later stage", stacklevel=1)


def _end_chain(name: str, parent: Run) -> None:
    # one network's failure or stop is the chain's, whatever the other network's stages do; the report needs them all
    if name == "report":
        parent.tags({"reported": "yes"})
    if name == "report" or parent.status() not in ("FAILED", "KILLED"):
        parent.end()


def save_views(run: Run, networks: Sequence[str]) -> None:
    """Save a view of the chains that ran over these networks."""
    with answers():
        save_missing_views(run.client, run.experiment, views.of_chains(networks))


@answers()
def parent_of(run: Run) -> Run:
    """The chain's run above a stage's."""
    above = run.client.get_run(run.id).data.tags["mlflow.parentRunId"]
    return Run(run.client, above, run.experiment)


def study(name: str, tags: dict[str, str]) -> Run:
    """The run of an Optuna study, made where there is none: its workers and its later continuations share it.

    tags: of the command that begins or continues it, whose process the run belongs to; workers give none.
    """
    marks = {"session": stores.key(name), "level": "study", "goal": GOAL}
    own = process_tags() | tags if tags else {}
    with one_at_a_time():
        client, experiment = client_and_experiment()
        with answers():
            close_orphaned_runs(client, experiment)
            words = f"tags.session = '{marks['session']}' and tags.level = 'study'"
            studies = client.search_runs([experiment], words, max_results=1)
            if studies:
                run = Run(client, studies[0].info.run_id, experiment)
                client.update_run(run.id, status="RUNNING")
                if own:
                    run.tags(process_tags())
                return run
            save_missing_views(client, experiment, views.OF_STUDIES)
            marks |= {"mlflow.source.git.commit": _git("rev-parse", "HEAD")}
            made = client.create_run(experiment, run_name=stores.text(name, LIMITS["name"]), tags=tagged(marks | own))
            return Run(client, made.info.run_id, experiment)


def iteration_figures(done: Any, baseline_mac: int) -> dict[str, float]:
    """The metrics of an iteration, charted by step."""
    return {
        "mac_percent": 100 * done.mac / baseline_mac,
        "psnr": done.psnr,
        "ssim": done.ssim,
        "psnr_change": done.psnr_change,
        "ssim_change": done.ssim_change,
        "alpha": done.alpha,
    }


def undone(run: Run, network: str, method: str, place: float) -> None:
    """Mark the iterations that the fine-tune gave back, on the runs of the newest pruning of this network and method.

    place: the delivered network's, as of records.path_of. run: any run of the store.
    """
    with answers():
        words = f"tags.stage = 'prune {network} {method}' and attributes.status = 'FINISHED'"
        for stage_run in run.client.search_runs([run.experiment], words, max_results=1):
            words = f"tags.`mlflow.parentRunId` = '{stage_run.info.run_id}' and tags.verdict != 'rejected'"
            accepted = run.client.search_runs([run.experiment], words, max_results=METRICS)
            numbered = [(int(found.data.tags.get("iteration", 0)), found) for found in accepted]
            before = 0
            for number, found in sorted(numbered, key=itemgetter(0)):
                verdict = "accepted" if number <= place else "partly undone" if before < place else "undone"
                before = number
                if verdict != found.data.tags["verdict"]:
                    child = Run(run.client, found.info.run_id, run.experiment)
                    child.tags({"verdict": verdict})
                    why = (
                        "had to give channels back" if number > place else "delivers a network without what it removed"
                    )
                    child.tell(f"**{verdict.capitalize()} by the fine-tune**, which {why}.")


def iteration(run: Run, done: Any, baseline_mac: int, network: str, method: str) -> None:
    """A grandchild for one pruning iteration, and the same figures by step on the stage's own run.

    What stands before a slash is a section of MLflow's charts: the many figures stay behind the few that matter.
    """
    figures = iteration_figures(done, baseline_mac)
    figures |= {f"costs/{key}": getattr(done, key) for key in ("mac", "weights", "activations", "bw")}
    run.metrics(figures, done.number)
    thresholds = {f"threshold/{name}": value for name, value in done.thresholds.items()}
    channels = {f"channels/{name}": count for name, count in done.channels.items()}
    widths = {f"width.{name}": width for name, width in done.widths.items()}
    run.metrics(channels, done.number)
    run.metrics(thresholds, done.number)
    description = f"{network}, method {method}, iteration {done.number}: {done.verdict}: {done.reason}"
    child = run.child(
        f"{network} {method} iteration {done.number}",
        {"level": "iteration", "network": network, "method": method, "verdict": done.verdict}
        | {"iteration": f"{done.number}"}
        | {"mlflow.note.content": description},
    )
    child.metrics(figures, done.number)
    child.metrics(thresholds, done.number)
    child.params(widths)
    table = {"channels": done.channels, "widths": done.widths, "removed": done.removed, "thresholds": done.thresholds}
    changed = {stores.key(name): name for name in (*channels, *thresholds, *widths) if stores.key(name) != name}
    child.table(table | ({"names of keys": changed} if changed else {}), "architecture.json")
    child.end()
