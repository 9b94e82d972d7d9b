"""MLflow: a parent run for one `dvc repro`, a child for each stage, a grandchild for each pruning iteration.

The only module that knows MLflow. The store is `mlflow.db` beside dvc.yaml, or what MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import views
from pipeline.errors import UserError

# where a store is made, MLflow and Alembic tell of every table
for chatty in ("mlflow", "alembic"):
    logging.getLogger(chatty).setLevel(logging.WARNING)

EXPERIMENT = "architecture-aware pruning"
# What each run is, for who meets it in the UI
NOTES = {
    "prepare": "The images of {network}: train, validation and test, which never mix.",
    "train": "The baseline of {network}; psnr and loss by step.",
    "analyze": "Costs of {network} before pruning, by layer, and its groups of coupled channels.",
    "control": "{network} with nothing removed, given the training that a pruned network gets: what the extra training "
    "alone is worth.",
    "prune": "{network} pruned by method {method}. By step, that is by iteration: MACs kept (mac_percent), PSNR drop "
    "against the gate's reference, channels and threshold of each group, a crop of a validation picture. The runs "
    "below are the iterations, accepted and rejected, with the reason.",
    "finetune": "The last training of {network} as method {method} left it; psnr_drop and ssim_drop are what the gate "
    "judged, attempts.json says what was undone. The model takes images of any height and width.",
    "evaluate": "Every solution of {network} on the test images; the runs below compare: mac_percent, drop_baseline "
    "and drop_control in dB, negative is better.",
    "input": "What {network} is given, unrestored, on the test images.",
    "baseline": "{network} as it was trained, on the test images: what the others are measured against.",
    "original": "The control: {network} with nothing removed, given the training that a pruned network gets, on the "
    "test images.",
    "solution": "{network} pruned by method {method} and fine-tuned, on the test images: MACs kept (mac_percent), PSNR "
    "drop in dB against the baseline and against the control, negative is better.",
    "trial": "One trial of a study: {network} pruned by method {method} with the parameters below; mac_kept, and by "
    "step its iterations.",
    "latency": "Measured time and memory of {network}, original and pruned; on another machine they are others.",
    "report": "The table, the report (index.html opens offline) and the pictures.",
}
VIEWS = "Lists to begin with: *Views*, above on the right, in *Model training*."
# what the chain itself rewrites is no change
CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!dvc.lock")
GOAL = "fewer MACs and less memory traffic at no loss of validation PSNR"


def note(kind: str, network: str = "", method: str = "") -> dict[str, str]:
    """The tag that a run's page shows as its description."""
    return {"mlflow.note.content": NOTES[kind].format(network=network, method=method)}


def root() -> Path:
    """The repository that the store belongs to; a queued DVC experiment runs in a copy and names the original."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def store() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def session() -> str:
    """Names the command that the stages of one chain share: a DVC experiment, `make repro`, or a dvc process."""
    named = os.environ.get("DVC_EXP_NAME") or os.environ.get("REPRO_SESSION")
    if named:
        return named
    for process in psutil.Process().parents():
        try:
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                return f"dvc-{process.pid}-{int(process.create_time())}"
        except psutil.Error:
            break
    return f"stage-{os.getpid()}-{int(time.time())}"


class Run:
    """A run of the store, with batches where MLflow would make a request for each value."""

    def __init__(self, client: MlflowClient, run_id: str, experiment: str) -> None:
        self.client, self.id, self.experiment = client, run_id, experiment

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        found = [Metric(key, float(value), now, step) for key, value in values.items()]
        self.client.log_batch(self.id, metrics=found)

    def curve(self, key: str, points: list[tuple[int, float]]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(key, float(value), now, step) for step, value in points])

    def params(self, values: dict[str, Any]) -> None:
        self.client.log_batch(self.id, params=[Param(key, str(value)[:6000]) for key, value in values.items()])

    def tags(self, values: dict[str, str]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def picture(self, pixels: Any, key: str, step: int) -> None:
        """An array [H, W, 3] uint8, to be leafed through by step."""
        self.client.log_image(self.id, pixels, key=key, step=step)

    def table(self, value: Any, name: str) -> None:
        self.client.log_dict(self.id, value, name)

    def child(self, name: str, tags: dict[str, str] | None = None) -> Run:
        marks = {"mlflow.parentRunId": self.id, **_process_tags(), **(tags or {})}
        run = self.client.create_run(self.experiment, run_name=name, tags=marks)
        return Run(self.client, run.info.run_id, self.experiment)

    def tell(self, result: str) -> None:
        """Put what came out before the run's description, in Markdown."""
        said = self.client.get_run(self.id).data.tags.get("mlflow.note.content", "")
        self.tags({"mlflow.note.content": f"{result}\n\n{said}"[:5000]})

    def end(self, status: str = "FINISHED") -> None:
        self.client.set_terminated(self.id, status)

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
            self.tags({"model": f"not logged, since it can't be pickled: {error}"[:4000]})
            return
        packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
        found = {path for name in packages for path in (Path(name), Path(f"{name}.py")) if path.exists()}
        mlflow.set_tracking_uri(store())
        with _quiet(), mlflow.start_run(run_id=self.id):
            mlflow.pytorch.log_model(
                network,
                name=name,
                signature=ModelSignature(spec(channels), spec(3)),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
                code_paths=sorted({"pipeline", *map(str, found)}),
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


def _process_tags() -> dict[str, str]:
    return {"process": f"{socket.gethostname()}:{os.getpid()}", "mlflow.user": os.environ.get("USER", "")}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _client() -> tuple[MlflowClient, str]:
    """The store's client and the experiment's id; a sentence when the store can't be reached."""
    uri = store()
    if uri.startswith("http"):  # say so within seconds, not after MLflow's minutes of retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        _create(uri)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            where = None if uri.startswith("http") else f"file://{root() / 'mlartifacts'}"
            found = client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=where))
        if not {f"{views.PREFIX}{key}" for key in views.OF_ALL} <= found.tags.keys():
            _save_views(client, found.experiment_id, views.OF_ALL)
        return client, found.experiment_id
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"the MLflow store {uri} can't be reached: {str(error).splitlines()[0]}; "
            "MLFLOW_TRACKING_URI must name a running server or a writable sqlite:/// file, whole or absent"
        ) from None


def _save_views(client: MlflowClient, experiment: str, found: dict[str, views.View]) -> None:
    """Save with the experiment what it doesn't have yet; what somebody has changed there stays."""
    there = client.get_experiment(experiment).tags
    made = views.tags(found, int(1000 * time.time()))
    made |= {"mlflow.note.content": VIEWS, "mlflow.experimentKind": "custom_model_development"}  # not pages of traces
    for key in made.keys() - there.keys():
        client.set_experiment_tag(experiment, key, made[key])


def _create(uri: str) -> None:
    """Make an absent SQLite store under another name and rename it: MLflow can't go on with one half-made."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{new.name}*"):  # by a process that was killed; its journal too
        left.unlink()
    MlflowClient(f"sqlite:///{new}").search_experiments()
    os.replace(new, path)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Creating the tables, or the parent run, twice at once ends in a crash or two parents."""
    try:
        (root() / ".scratch").mkdir(exist_ok=True)
        lock = open(root() / ".scratch" / "tracking.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{root() / '.scratch'} can't be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parent(client: MlflowClient, experiment: str) -> Run:
    key = session()
    found = client.search_runs([experiment], f"tags.session = '{key}' and tags.level = 'chain'", max_results=1)
    if found:
        return Run(client, found[0].info.run_id, experiment)
    name = os.environ.get("DVC_EXP_NAME") or time.strftime("chain %Y-%m-%d %H:%M")
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
    run = client.create_run(experiment, run_name=name, tags=tags)
    return Run(client, run.info.run_id, experiment)


def _bury(client: MlflowClient, experiment: str, label: str) -> None:
    """A killed stage can't close its run: its next execution does."""
    words = f"tags.stage = '{label}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], words):
        host, _, pid = run.data.tags.get("process", "").partition(":")
        if host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            for child in client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run.info.run_id}'"):
                if child.info.status == "RUNNING":
                    client.set_terminated(child.info.run_id, "KILLED")
            client.set_terminated(run.info.run_id, "KILLED")
            above = run.data.tags.get("mlflow.parentRunId")
            if above and client.get_run(above).info.status == "RUNNING":
                client.set_terminated(above, "KILLED")


@contextmanager
def stage(name: str, network: str = "", method: str = "", params: dict[str, Any] | None = None) -> Iterator[Run]:
    """The run of one stage execution; fails before any work when the store can't be reached."""
    label = " ".join(word for word in (name, network, method) if word)
    with _one_at_a_time():
        client, experiment = _client()
        parent = _parent(client, experiment)
        _bury(client, experiment, label)
    marks = {"level": "stage", "stage": label, "network": network, "method": method, **note(name, network, method)}
    run = parent.child(label, {key: value for key, value in marks.items() if value})
    run.params(params or {})
    try:
        yield run
    except BaseException as error:
        run.tags({"error": f"{type(error).__name__}: {error}"[:4000]})
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        parent.end("FAILED")
        raise
    run.end()
    # one network's failure is the chain's, whatever the other network's stages do; the report needs them all
    if name == "report" or client.get_run(parent.id).info.status != "FAILED":
        parent.end()


def save_views(run: Run, networks: Sequence[str]) -> None:
    """Save a view of the chains that ran over these networks."""
    _save_views(run.client, run.experiment, views.of_chains(networks))


def address(server: str) -> str:
    """Where a server of the store shows the view to begin with; its first page where the store can't be written."""
    try:
        with _one_at_a_time():
            _, experiment = _client()
    except UserError as error:
        return f"{server} ({error})"
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={views.COMPARE}&workflowType=machine_learning"


def parent_of(run: Run) -> Run:
    """The chain's run above a stage's."""
    above = run.client.get_run(run.id).data.tags["mlflow.parentRunId"]
    return Run(run.client, above, run.experiment)


def study(name: str, tags: dict[str, str]) -> Run:
    """The run of an Optuna study, found or made: its workers and its later continuations share it."""
    with _one_at_a_time():
        client, experiment = _client()
        found = client.search_runs([experiment], f"tags.session = '{name}' and tags.level = 'study'", max_results=1)
        if found:
            run = Run(client, found[0].info.run_id, experiment)
            _bury_trials(run)
            client.update_run(run.id, status="RUNNING")
            return run
        marks = {"session": name, "level": "study", "goal": GOAL, "mlflow.source.git.commit": _git("rev-parse", "HEAD")}
        _save_views(client, experiment, views.OF_STUDIES)
        made = client.create_run(experiment, run_name=name, tags=marks | tags)
        return Run(client, made.info.run_id, experiment)


def _bury_trials(run: Run) -> None:
    """A killed worker can't close its trial's run: whoever goes on with the study does."""
    words = f"tags.mlflow.parentRunId = '{run.id}' and attributes.status = 'RUNNING'"
    for child in run.client.search_runs([run.experiment], words):
        host, _, pid = child.data.tags.get("process", "").partition(":")
        if host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            run.client.set_terminated(child.info.run_id, "KILLED")


def iteration_figures(done: Any, original_mac: int) -> dict[str, float]:
    """What is charted of an iteration."""
    return {
        "mac_percent": 100 * done.mac / original_mac,
        "weights": done.weights,
        "activations": done.activations,
        "bw": done.bw,
        "psnr": done.psnr,
        "ssim": done.ssim,
        "psnr_drop": done.psnr_drop,
        "ssim_drop": done.ssim_drop,
        "alpha": done.alpha,
        "accepted": float(done.verdict == "accepted"),
    }


def iteration(run: Run, done: Any, original_mac: int, network: str, method: str) -> None:
    """A grandchild for one pruning iteration, and the same figures by step on the stage's own run."""
    figures = iteration_figures(done, original_mac)
    run.metrics(figures, done.number)
    run.metrics({f"channels.{_key(name)}": count for name, count in done.channels.items()}, done.number)
    run.metrics({f"threshold.{_key(name)}": value for name, value in done.thresholds.items()}, done.number)
    said = f"{network}, method {method}, iteration {done.number}: {done.verdict}: {done.reason}"
    child = run.child(
        f"{network} {method} iteration {done.number}",
        {"level": "iteration", "network": network, "method": method, "verdict": done.verdict}
        | {"mlflow.note.content": said},
    )
    child.metrics(figures, done.number)
    child.metrics({f"threshold.{_key(name)}": value for name, value in done.thresholds.items()}, done.number)
    child.params({f"width.{_key(name)}": width for name, width in done.widths.items()})
    child.table(
        {"channels": done.channels, "widths": done.widths, "removed": done.removed, "thresholds": done.thresholds},
        "architecture.json",
    )
    child.end()


def _key(name: str) -> str:
    """Group names as MLflow allows them in a key."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
