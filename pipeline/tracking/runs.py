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
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import stores
from pipeline.errors import UserError
from pipeline.tracking import views

# where a store is made, MLflow and Alembic tell of every table
for chatty in ("mlflow", "alembic"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
# what a lost store's SQL was, and that a server is tried again: the sentence says enough
for chatty in ("mlflow.store", "urllib3", "sqlalchemy"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)

EXPERIMENT = "architecture-aware pruning"
# What each run is, for who meets it in the UI
NOTES = {
    "prepare": "The images of {network}: train, validation and test, which never mix.",
    "train": "The baseline of {network}; psnr and loss by step.",
    "analyze": "Costs of {network} before pruning, by layer, and its groups of coupled channels.",
    "control": "{network} with nothing removed, given the training that a pruned network gets: what the extra training "
    "alone is worth.",
    "prune": "{network} pruned by method {method}. By step, that is by iteration: MACs kept (mac_percent), PSNR change "
    "against the gate's reference, channels and threshold of each group, a crop of a validation picture. The runs "
    "below are the iterations, accepted and rejected, with the reason.",
    "finetune": "The last training of {network} as method {method} left it; psnr_change and ssim_change are what the "
    "gate judged, attempts.json says what was undone. The model takes images of any height and width.",
    "evaluate": "Every solution of {network} on the test images; the runs below compare: mac_percent, "
    "psnr_change_baseline and psnr_change_control in dB, plus is better.",
    "input": "What {network} is given, unrestored, on the test images.",
    "baseline": "{network} as it was trained, on the test images: what the others are measured against.",
    "solution": "{network} pruned by method {method} and fine-tuned, on the test images: MACs kept (mac_percent), PSNR "
    "change in dB against the baseline and against the control, plus is better.",
    "trial": "One trial of a study: {network} pruned by method {method} with the parameters below; mac_kept, and by "
    "step its iterations.",
    "latency": "Measured time and memory of {network}, baseline and pruned; on another machine they are others.",
    "report": "The table, the report (index.html opens offline) and its figures.",
}
VIEWS = "Lists to begin with: *Views*, above on the right, in *Model training*."
# what the chain itself rewrites is no change
CHANGES = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!dvc.lock")
LIMITS = {"param": 6000, "tag": 5000, "name": 250}  # characters; MLflow's, or what its tables hold
CLOCK_SECONDS = 2.0  # what a process's start may seem to move by
BATCH = 100  # tags or parameters in one request, MLflow's limit
METRICS = 1000  # in one request
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


class StoreLostError(UserError):
    """The store could be used when the stage began, and can't any more."""


@contextmanager
def _answers() -> Iterator[None]:
    """A store that is lost on the way is one sentence. What is trained lies in .scratch and results, not in it."""
    uri = store()
    try:
        stores.probe(uri)  # an open connection would go on writing into a file that was deleted
        yield
    except (stores.UnusableError, MlflowException, SQLAlchemyError, OSError) as error:
        raise StoreLostError(
            f"the MLflow store {stores.masked(uri)} was lost: {stores.reason(error, uri)}; what was trained is kept: "
            "when it can be used again, the same command goes on"
        ) from None


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

    @_answers()
    def _log_metrics(self, found: list[Metric]) -> None:
        for begin in range(0, len(found), METRICS):
            self.client.log_batch(self.id, metrics=found[begin : begin + METRICS])

    @_answers()
    def params(self, values: dict[str, Any]) -> None:
        found = [Param(stores.key(key), stores.text(value, LIMITS["param"])) for key, value in values.items()]
        for begin in range(0, len(found), BATCH):
            self.client.log_batch(self.id, params=found[begin : begin + BATCH])

    @_answers()
    def tags(self, values: dict[str, str]) -> None:
        found = [RunTag(key, value) for key, value in _tags(values).items()]
        for begin in range(0, len(found), BATCH):
            self.client.log_batch(self.id, tags=found[begin : begin + BATCH])

    @_answers()
    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def picture(self, pixels: Any, key: str, step: int) -> None:
        """An array [H, W, 3] uint8, to be leafed through by step. A tag has the name where it can't be the key."""
        allowed = stores.key(key)
        if allowed != key:
            self.tags({f"picture.{allowed}": key})
        with _answers():
            self.client.log_image(self.id, pixels, key=allowed, step=step)

    @_answers()
    def table(self, value: Any, name: str) -> None:
        self.client.log_dict(self.id, value, name)

    @_answers()
    def child(self, name: str, tags: dict[str, str] | None = None) -> Run:
        marks = _tags({"mlflow.parentRunId": self.id, **_process_tags(), **(tags or {})})
        run = self.client.create_run(self.experiment, run_name=stores.text(name, LIMITS["name"]), tags=marks)
        return Run(self.client, run.info.run_id, self.experiment)

    @_answers()
    def tell(self, result: str) -> None:
        """Put what came out before the run's description, in Markdown."""
        said = self.client.get_run(self.id).data.tags.get("mlflow.note.content", "")
        self.tags({"mlflow.note.content": f"{result}\n\n{said}"})

    @_answers()
    def end(self, status: str = "FINISHED") -> None:
        self.client.set_terminated(self.id, status)

    @_answers()
    def status(self) -> str:
        return self.client.get_run(self.id).info.status

    def fail(self, error: BaseException, key: str = "error") -> None:
        """End the run with the reason. A store that is lost stays so: what failed matters more than that."""
        if isinstance(error, StoreLostError):
            return  # the next stage closes the run of a process that is gone
        with suppress(StoreLostError):
            self.tags({key: f"{type(error).__name__}: {error}"})
            self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    @_answers()
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


def _tags(values: dict[str, str]) -> dict[str, str]:
    """Tags as every store takes them."""
    return {
        key if key.startswith("mlflow.") else stores.key(key): stores.text(value, LIMITS["tag"])
        for key, value in values.items()
    }


def _process_tags() -> dict[str, str]:
    return {
        "process": f"{socket.gethostname()}:{os.getpid()}",
        "process.began": f"{psutil.Process().create_time():.2f}",  # seconds since 1970
        "process.machine": _machine(),
        "mlflow.user": os.environ.get("USER", ""),
    }


def _machine() -> str:
    """Names the space that process ids are unique in: this start of the machine, and this container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _dead(tags: dict[str, str]) -> bool:
    """Whether the process that a run's tags name is gone. One that can't be seen from here counts as alive."""
    host, _, pid = tags.get("process", "").rpartition(":")
    if not pid.isdigit():
        return False
    machine, here = tags.get("process.machine", ""), _machine()
    if machine and machine != here:  # of an earlier start of this machine, unless another one has the same name
        return host == socket.gethostname() and machine.split(" ")[0] != here.split(" ")[0]
    if not machine and host != socket.gethostname():
        return False
    try:
        began = psutil.Process(int(pid)).create_time()
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):
        return False
    # the clock may have been set since: it moves all such times; two processes of one id are further apart
    return "process.began" in tags and abs(began - float(tags["process.began"])) > CLOCK_SECONDS


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
        if stores.sqlite_file(uri):  # a connection that is kept would see a file that is no longer there
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        stores.probe(uri, absent=True)
        _create(uri)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            where = None if uri.startswith("http") else (root() / "mlartifacts").as_uri()
            found = client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=where))
        if not {f"{views.PREFIX}{key}" for key in views.OF_ALL} <= found.tags.keys():
            _save_views(client, found.experiment_id, views.OF_ALL)
        return client, found.experiment_id
    except (stores.UnusableError, MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"the MLflow store {stores.masked(uri)} can't be reached: {stores.reason(error, uri)}; "
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
    path = stores.sqlite_file(uri)
    if path is None or (path.exists() and path.stat().st_size):
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
    key = stores.key(session(), ":")
    found = client.search_runs([experiment], f"tags.session = '{key}' and tags.level = 'chain'", max_results=1)
    if found:
        return Run(client, found[0].info.run_id, experiment)
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
    run = client.create_run(experiment, run_name=name, tags=_tags(tags))
    return Run(client, run.info.run_id, experiment)


def _bury(client: MlflowClient, experiment: str) -> None:
    """A killed process can't close its runs: the next one does, and the chain's above them."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if not _dead(run.data.tags):
            continue
        client.set_terminated(run.info.run_id, "KILLED")
        above = run.data.tags.get("mlflow.parentRunId")
        if above:
            tags = (found := client.get_run(above)).data.tags
            if found.info.status == "RUNNING" and tags.get("level") == "chain":
                client.set_terminated(above, "KILLED")


@contextmanager
def stage(name: str, network: str = "", method: str = "", params: dict[str, Any] | None = None) -> Iterator[Run]:
    """The run of one stage execution; fails before any work when the store can't be reached."""
    label = " ".join(word for word in (name, network, method) if word)
    with _one_at_a_time():
        client, experiment = _client()
        with _answers():
            _bury(client, experiment)
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
    except StoreLostError as error:  # the stage has done its work, and what it could go on from is gone
        reason = str(error).partition(";")[0]
        warnings.warn(f"{reason}; the results are written, and the run stays open until a later stage", stacklevel=1)


def _end_chain(name: str, parent: Run) -> None:
    # one network's failure is the chain's, whatever the other network's stages do; the report needs them all
    if name == "report" or parent.status() != "FAILED":
        parent.end()


def save_views(run: Run, networks: Sequence[str]) -> None:
    """Save a view of the chains that ran over these networks."""
    with _answers():
        _save_views(run.client, run.experiment, views.of_chains(networks))


def address(server: str) -> str:
    """Where a server of the store shows the view to begin with; its first page where the store can't be written."""
    try:
        with _one_at_a_time():
            client, experiment = _client()
            with _answers():
                _bury(client, experiment)
    except UserError as error:
        return f"{server} ({error})"
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={views.COMPARE}&workflowType=machine_learning"


@_answers()
def parent_of(run: Run) -> Run:
    """The chain's run above a stage's."""
    above = run.client.get_run(run.id).data.tags["mlflow.parentRunId"]
    return Run(run.client, above, run.experiment)


def study(name: str, tags: dict[str, str]) -> Run:
    """The run of an Optuna study, found or made: its workers and its later continuations share it.

    tags: of the command that begins or continues it, whose process the run belongs to; workers give none.
    """
    marks = {"session": stores.key(name), "level": "study", "goal": GOAL}
    own = _process_tags() | tags if tags else {}
    with _one_at_a_time():
        client, experiment = _client()
        with _answers():
            _bury(client, experiment)
            words = f"tags.session = '{marks['session']}' and tags.level = 'study'"
            found = client.search_runs([experiment], words, max_results=1)
            if found:
                run = Run(client, found[0].info.run_id, experiment)
                client.update_run(run.id, status="RUNNING")
                if own:
                    run.tags(_process_tags())
                return run
            _save_views(client, experiment, views.OF_STUDIES)
            marks |= {"mlflow.source.git.commit": _git("rev-parse", "HEAD")}
            made = client.create_run(experiment, run_name=stores.text(name, LIMITS["name"]), tags=_tags(marks | own))
            return Run(client, made.info.run_id, experiment)


def iteration_figures(done: Any, original_mac: int) -> dict[str, float]:
    """What is charted of an iteration."""
    return {
        "mac_percent": 100 * done.mac / original_mac,
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


def iteration(run: Run, done: Any, original_mac: int, network: str, method: str) -> None:
    """A grandchild for one pruning iteration, and the same figures by step on the stage's own run."""
    figures = iteration_figures(done, original_mac)
    run.metrics(figures, done.number)
    thresholds = {f"threshold.{name}": value for name, value in done.thresholds.items()}
    channels = {f"channels.{name}": count for name, count in done.channels.items()}
    widths = {f"width.{name}": width for name, width in done.widths.items()}
    run.metrics(channels, done.number)
    run.metrics(thresholds, done.number)
    said = f"{network}, method {method}, iteration {done.number}: {done.verdict}: {done.reason}"
    child = run.child(
        f"{network} {method} iteration {done.number}",
        {"level": "iteration", "network": network, "method": method, "verdict": done.verdict}
        | {"mlflow.note.content": said},
    )
    child.metrics(figures, done.number)
    child.metrics(thresholds, done.number)
    child.params(widths)
    table = {"channels": done.channels, "widths": done.widths, "removed": done.removed, "thresholds": done.thresholds}
    changed = {stores.key(name): name for name in (*channels, *thresholds, *widths) if stores.key(name) != name}
    child.table(table | ({"names of keys": changed} if changed else {}), "architecture.json")
    child.end()
