"""Runs of the MLflow store: a parent for one `dvc repro`, a child for each stage, a grandchild for each iteration."""

from __future__ import annotations

import logging
import os
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline import stores
from pipeline.tracking import views
from pipeline.tracking.processes import close_orphaned_runs, process_tags, session
from pipeline.tracking.store import StoreLostError, address, answers, client_and_experiment, one_at_a_time
from pipeline.tracking.store import save_views as save_missing_views

# What each run is, for who meets it in the UI
NOTES = {
    "prepare": "The images of {network}: train, validation and test, which never mix.",
    "train": "The baseline of {network}; psnr and loss by step.",
    "analyze": "Costs of {network} before pruning, by layer, and its groups of coupled channels.",
    "control": "{network} with nothing removed, given the training that a pruned network gets: what the extra training "
    "alone is worth.",
    "prune": "{network} pruned by method {method}. By step, that is by iteration: MACs kept (mac_percent), PSNR less "
    "the gate's reference's (psnr_change), channels and threshold of each group, a crop of a validation image. The "
    "runs below are the iterations, accepted and rejected, with the reason.",
    "finetune": "The last training of {network} as method {method} left it; psnr_change and ssim_change are what the "
    "gate judged, attempts.json says what was given back. The model takes images of any height and width.",
    "evaluate": "Every solution of {network} on the test images; the runs below compare: mac_percent, and PSNR less "
    "the baseline's and the control's in dB (psnr_change_baseline, psnr_change_control), plus is better.",
    "input": "What {network} is given, unrestored, on the test images.",
    "baseline": "{network} as it was trained, on the test images: what the others are measured against.",
    "solution": "{network} pruned by method {method} and fine-tuned, on the test images: MACs kept (mac_percent), and "
    "PSNR less the baseline's and the control's in dB (psnr_change_baseline, psnr_change_control), plus is better.",
    "trial": "One trial of a study: {network} pruned by method {method} with the parameters below. By step: its "
    "iterations, then its end, after the fine-tune.",
    "latency": "Measured time and memory of {network}, baseline and pruned; on another machine they differ.",
    "report": "The table, the report (index.html opens offline) and the figures.",
}
# what the chain itself rewrites is no change
CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!dvc.lock")
LIMITS = {"param": 6000, "tag": 5000, "name": 250}  # characters; MLflow's, or what its tables hold
BATCH = 100  # tags or parameters in one request, MLflow's limit
METRICS = 1000  # in one request
GOAL = "fewer MACs and less memory traffic at no loss of validation PSNR"


def note(kind: str, network: str = "", method: str = "") -> dict[str, str]:
    """The tag that a run's page shows as its description."""
    return {"mlflow.note.content": NOTES[kind].format(network=network, method=method)}


class Run:
    """A run of the store, with batches where MLflow would make a request for each value."""

    def __init__(self, client: MlflowClient, run_id: str, experiment: str) -> None:
        self.client, self.id, self.experiment = client, run_id, experiment

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self._log_metrics([Metric(stores.key(key), float(value), now, step) for key, value in values.items()])

    def curve(self, key: str, points: list[tuple[int, float]]) -> None:
        now = int(time.time() * 1000)
        self._log_metrics([Metric(stores.key(key), float(value), now, step) for step, value in points])

    @answers()
    def _log_metrics(self, metrics: list[Metric]) -> None:
        for begin in range(0, len(metrics), METRICS):
            self.client.log_batch(self.id, metrics=metrics[begin : begin + METRICS])

    @answers()
    def params(self, values: dict[str, Any]) -> None:
        params = [Param(stores.key(key), stores.text(value, LIMITS["param"])) for key, value in values.items()]
        for begin in range(0, len(params), BATCH):
            self.client.log_batch(self.id, params=params[begin : begin + BATCH])

    @answers()
    def tags(self, values: dict[str, str]) -> None:
        tags = [RunTag(key, value) for key, value in tagged(values).items()]
        for begin in range(0, len(tags), BATCH):
            self.client.log_batch(self.id, tags=tags[begin : begin + BATCH])

    @answers()
    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def image(self, pixels: Any, key: str, step: int) -> None:
        """An array [H, W, 3] uint8, to be leafed through by step. A tag has the name where it can't be the key."""
        allowed = stores.key(key)
        if allowed != key:
            self.tags({f"image.{allowed}": key})
        with answers():
            self.client.log_image(self.id, pixels, key=allowed, step=step)

    @answers()
    def table(self, value: Any, name: str) -> None:
        self.client.log_dict(self.id, value, name)

    @answers()
    def child(self, name: str, tags: dict[str, str] | None = None) -> Run:
        marks = tagged({"mlflow.parentRunId": self.id, **process_tags(), **(tags or {})})
        run = self.client.create_run(self.experiment, run_name=stores.text(name, LIMITS["name"]), tags=marks)
        return Run(self.client, run.info.run_id, self.experiment)

    @answers()
    def tell(self, result: str) -> None:
        """Put what came out before the run's description, in Markdown."""
        description = self.client.get_run(self.id).data.tags.get("mlflow.note.content", "")
        self.tags({"mlflow.note.content": f"{result}\n\n{description}"})

    @answers()
    def end(self, status: str = "FINISHED") -> None:
        self.client.set_terminated(self.id, status)

    @answers()
    def status(self) -> str:
        return self.client.get_run(self.id).info.status

    def fail(self, error: BaseException, key: str = "error") -> None:
        """End the run as failed, with the reason. If the store is lost too, the error alone is told."""
        if isinstance(error, StoreLostError):
            return  # the next stage closes this run, as the run of a process that is gone
        with suppress(StoreLostError):
            self.tags({key: f"{type(error).__name__}: {error}"})
            self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    @answers()
    def model(self, network: Any, channels: int, name: str) -> None:
        """Log a network as an MLflow model for images of any height and width; its own modules' code goes with it.

        A network that can't be pickled (a local class, a parametrized weight) isn't logged, and the run says why.
        """
        import pickle

        import mlflow
        import mlflow.pytorch
        import numpy as np
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        def spec(count: int) -> Schema:
            # -1: any batch, height and width; an inferred signature would pin them to the example's
            return Schema([TensorSpec(np.dtype("float32"), (-1, count, -1, -1))])

        try:
            pickle.dumps(network.cpu())
        except Exception as error:  # pickling runs the modules' own code
            self.tags({"model": f"not logged, since it can't be pickled: {error}"})
            return
        packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
        code = {path for name in packages for path in (Path(name), Path(f"{name}.py")) if path.exists()}
        mlflow.set_tracking_uri(address())
        with _quiet(), mlflow.start_run(run_id=self.id):
            mlflow.pytorch.log_model(
                network,
                name=name,
                signature=ModelSignature(spec(channels), spec(3)),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
                code_paths=sorted({"pipeline", *map(str, code)}),
                serialization_format="pickle",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow's model logging warns about choices that are made on purpose here."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def tagged(values: dict[str, str]) -> dict[str, str]:
    """Tags as every store takes them."""
    return {
        key if key.startswith("mlflow.") else stores.key(key): stores.text(value, LIMITS["tag"])
        for key, value in values.items()
    }


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
    except OSError:  # without git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _parent(client: MlflowClient, experiment: str) -> Run:
    """The run of the chain that this stage belongs to, made by the first of its stages."""
    key = stores.key(session(), ":")
    parents = client.search_runs([experiment], f"tags.session = '{key}' and tags.level = 'chain'", max_results=1)
    if parents:
        return Run(client, parents[0].info.run_id, experiment)
    name = stores.text(os.environ.get("DVC_EXP_NAME") or "", LIMITS["name"]) or time.strftime("chain %Y-%m-%d %H:%M")
    command = f"dvc exp apply {name} && dvc repro" if os.environ.get("DVC_EXP_NAME") else "dvc repro"
    tags = {
        "session": key,
        "level": "chain",
        "goal": GOAL,
        "reproduce": command,
        "mlflow.source.git.commit": _git("rev-parse", "HEAD"),
        "uncommitted": "yes" if _git(*CHANGES) else "no",
        "mlflow.note.content": f"One run of the chain: {GOAL}. Its stages are the runs below it.",
    }
    run = client.create_run(experiment, run_name=name, tags=tagged(tags))
    return Run(client, run.info.run_id, experiment)


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
                parent.end("FAILED")
        raise
    try:
        run.end()
        _end_chain(name, parent)
    except StoreLostError as error:  # no reason to fail: the results are written
        reason = str(error).partition(";")[0]
        warnings.warn(f"{reason}; the results are written, and the run stays open until a later stage", stacklevel=1)


def _end_chain(name: str, parent: Run) -> None:
    # one network's failure is the chain's, whatever the other network's stages do; the report needs them all
    if name == "report" or parent.status() != "FAILED":
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
            run = client.create_run(experiment, run_name=stores.text(name, LIMITS["name"]), tags=tagged(marks | own))
            return Run(client, run.info.run_id, experiment)


def iteration_figures(done: Any, baseline_mac: int) -> dict[str, float]:
    """The metrics of an iteration, charted by step."""
    return {
        "mac_percent": 100 * done.mac / baseline_mac,
        "weights": done.weights,
        "activations": done.activations,
        "bw": done.bw,
        "psnr": done.psnr,
        "ssim": done.ssim,
        "psnr_change": done.psnr_change,
        "ssim_change": done.ssim_change,
        "alpha": done.alpha,
        "accepted": float(done.verdict == "accepted"),
    }


def iteration(run: Run, done: Any, baseline_mac: int, network: str, method: str) -> None:
    """A grandchild for one pruning iteration, and the same figures by step on the stage's own run."""
    figures = iteration_figures(done, baseline_mac)
    run.metrics(figures, done.number)
    thresholds = {f"threshold.{name}": value for name, value in done.thresholds.items()}
    channels = {f"channels.{name}": count for name, count in done.channels.items()}
    widths = {f"width.{name}": width for name, width in done.widths.items()}
    run.metrics(channels, done.number)
    run.metrics(thresholds, done.number)
    description = f"{network}, method {method}, iteration {done.number}: {done.verdict}: {done.reason}"
    child = run.child(
        f"{network} {method} iteration {done.number}",
        {"level": "iteration", "network": network, "method": method, "verdict": done.verdict}
        | {"mlflow.note.content": description},
    )
    child.metrics(figures, done.number)
    child.metrics(thresholds, done.number)
    child.params(widths)
    table = {"channels": done.channels, "widths": done.widths, "removed": done.removed, "thresholds": done.thresholds}
    changed = {stores.key(name): name for name in (*channels, *thresholds, *widths) if stores.key(name) != name}
    child.table(table | ({"names of keys": changed} if changed else {}), "architecture.json")
    child.end()
