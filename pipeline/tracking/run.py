"""One run of the MLflow store, and what its page says."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from pipeline import stores
from pipeline.files import digest, read_json
from pipeline.tracking.processes import process_tags
from pipeline.tracking.store import StoreLostError, address, answers

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
    "gate judged, attempts.json names the networks that were tried. The model takes images of any height and width.",
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
LIMITS = {"param": 6000, "tag": 5000, "name": 250}  # characters; MLflow's, or what its tables hold
BATCH = 100  # tags or parameters in one request, MLflow's limit
METRICS = 1000  # in one request


def note(kind: str, network: str = "", method: str = "") -> dict[str, str]:
    """The tag that a run's page shows as its description."""
    return {"mlflow.note.content": NOTES[kind].format(network=network, method=method)}


class Run:
    """A run of the store, with batches where MLflow would make a request for each value."""

    def __init__(self, client: MlflowClient, run_id: str, experiment: str) -> None:
        self.client, self.id, self.experiment = client, run_id, experiment

    def metrics(
        self, values: Mapping[str, float], step: int = 0, model: str | None = None, data: Dataset | None = None
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


def tagged(values: dict[str, str]) -> dict[str, str]:
    """Tags as every store takes them."""
    return {
        key if key.startswith("mlflow.") else stores.key(key): stores.text(value, LIMITS["tag"])
        for key, value in values.items()
    }
