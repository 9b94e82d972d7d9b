"""Runs of the MLflow store: a parent for one `dvc repro`, a child for each stage, a grandchild for each iteration."""

from __future__ import annotations

import json
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
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from pipeline import stores
from pipeline.errors import UserError
from pipeline.files import digest, read_json
from pipeline.schema import flat, parsed_yaml, read_yaml
from pipeline.tracking import views
from pipeline.tracking.processes import close_orphaned_runs, gone, owner, process_tags, session
from pipeline.tracking.store import StoreLostError, address, answers, client_and_experiment, one_at_a_time
from pipeline.tracking.store import save_views as save_missing_views

# What each run is, for who meets it in the UI
NOTES = {
    "prepare": "The images of {network}: train, validation and test, which never mix.",
    "train": "The baseline of {network}; psnr and loss by step.",
    "analyze": "Costs of {network} before pruning, by layer, and its groups of coupled channels.",
    "control": "{network} with nothing removed, given the training that a pruned network gets: what the extra training "
    "alone is worth.",
    "prune": "{network} pruned by method {method}. By step, that is by iteration, and last the result: MACs kept "
    "(mac_percent), PSNR less the gate's reference's (psnr_change), channels and threshold of each group, a crop of a "
    "validation image. The runs below are the iterations, with the reason: accepted, rejected, or accepted and then "
    "undone by the fine-tune.",
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

    def metrics(
        self, values: dict[str, float], step: int = 0, model: str | None = None, data: Dataset | None = None
    ) -> None:
        """Figures of a step; `model`: the id of the logged model that they are of, whose list they then sort."""
        self._log_metrics([_metric(key, value, step, model, data) for key, value in values.items()])

    def curve(self, key: str, points: list[tuple[int, float]]) -> None:
        self._log_metrics([_metric(key, value, step) for step, value in points])

    @answers()
    def data(self, split: Path, context: str) -> Dataset:
        """Log a prepared split as a dataset that the run has used, as training, validation or test."""
        images = len(read_json(split / "index.json", "names")["names"])
        name = f"{split.parent.name} {split.name}"
        source = json.dumps({"uri": str(split)})
        dataset = Dataset(name, digest(split / "index.json"), "local", source, profile=json.dumps({"images": images}))
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        return dataset

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
            self.end(ending(error))

    @answers()
    def model(self, network: Any, channels: int, name: str, file: Path) -> str | None:
        """Log a network as an MLflow model for images of any height and width; its own modules' code goes with it.

        file: the network's own, by whose digest the model is found again. Gives the model's id. A network that can't be
        pickled (a local class, a parametrized weight) isn't logged, and the run says why.
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
            return None
        packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
        code = {path for name in packages for path in (Path(name), Path(f"{name}.py")) if path.exists()}
        mlflow.set_tracking_uri(address())
        with _quiet(), mlflow.start_run(run_id=self.id):
            logged = mlflow.pytorch.log_model(
                network,
                name=name,
                tags={"network": digest(file)},
                signature=ModelSignature(spec(channels), spec(1 if channels == 1 else 3)),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
                code_paths=sorted({"pipeline", *map(str, code)}),
                serialization_format="pickle",
            )
        return logged.model_id


def ending(error: BaseException) -> str:
    """The status of a run that ended so: a stop is none of its failures."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


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


def _metric(key: str, value: float, step: int, model: str | None = None, data: Dataset | None = None) -> Metric:
    of = {"dataset_name": data.name, "dataset_digest": data.digest} if data and model else {}
    return Metric(stores.key(key), readable(value), int(time.time() * 1000), step, model_id=model, **of)


def readable(value: float) -> float:
    """A figure as people read it: four digits behind the point, or four significant ones of a small number."""
    return round(float(value), 4) if abs(value) >= 1 else float(f"{value:.4g}")


def model_of(run: Run, name: str, file: Path) -> str | None:
    """The id of the logged model of this name and this network's file; None where it isn't logged."""
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    with answers():
        found = run.client.search_logged_models([run.experiment], f"name = '{name}'", order_by=newest)
    return next((model.model_id for model in found if model.tags.get("network") == digest(file)), None)


ALIAS = "pruned"  # of the registered model's newest version


def register(network: str, method: str, file: Path) -> str:
    """Put a logged network into the registry, as the newest version of the model of its name; what was done."""
    import mlflow

    with one_at_a_time():
        client, experiment = client_and_experiment()
        mlflow.set_tracking_uri(address())  # where the registry looks for the model itself
        model = model_of(Run(client, "", experiment), f"{network}-{method}", file)
        if model is None:
            raise UserError(
                f"the MLflow store {stores.masked(address())} has no model of {file}; "
                f"dvc repro -s -f finetune@{network}-{method} logs it"
            )
        with answers():
            if not client.search_registered_models(f"name = '{network}'"):
                client.create_registered_model(network, description=f"{network}, pruned: {GOAL}")
            known = client.search_model_versions(f"name = '{network}'")
            version = next((one for one in known if one.source == f"models:/{model}"), None)
            if version is None:
                logged = client.get_logged_model(model)
                tags = {"method": method}
                version = client.create_model_version(
                    network, f"models:/{model}", logged.source_run_id, tags, model_id=model
                )
            client.set_registered_model_alias(network, ALIAS, version.version)
    return f"{network} version {version.version}, method {method}: models:/{network}@{ALIAS}"


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
            run = client.create_run(experiment, run_name=stores.text(name, LIMITS["name"]), tags=tagged(marks | own))
            return Run(client, run.info.run_id, experiment)


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
            for found in run.client.search_runs([run.experiment], words, max_results=METRICS):
                number = int(found.data.tags.get("iteration", 0))
                verdict = "accepted" if number <= place else "partly undone" if number - 1 < place else "undone"
                if verdict != found.data.tags["verdict"]:
                    child = Run(run.client, found.info.run_id, run.experiment)
                    child.tags({"verdict": verdict})
                    child.tell(f"**{verdict.capitalize()} by the fine-tune**, which had to give channels back.")


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
