"""The models of the store: which run logged a network, and the registry of those to be used."""

from __future__ import annotations

from pathlib import Path

from pipeline import stores
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.tracking.run import Run
from pipeline.tracking.runs import GOAL
from pipeline.tracking.store import address, answers, client_and_experiment, one_at_a_time

ALIAS = "pruned"  # of the registered model's newest version


def model_of(run: Run, name: str, file: Path) -> str | None:
    """The id of the logged model of this name and this network's file; None where it isn't logged."""
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    with answers():
        found = run.client.search_logged_models([run.experiment], f"name = '{name}'", order_by=newest)
    return next((model.model_id for model in found if model.tags.get("network") == digest(file)), None)


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
