"""The MLflow store: whole or absent, whatever is killed while it is made."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from spoiled import WAYS, spoil

from pipeline import stores
from pipeline.errors import UserError
from pipeline.pruning import iterations
from pipeline.tracking import processes, registry, runs, store
from pipeline.tracking.run import readable


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_store_that_was_left_half_made_under_its_temporary_name_is_made_anew(uri: str, tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / ".mlflow.db.new")
    half.execute("CREATE TABLE metrics (step INTEGER)")  # MLflow can't go on from here
    half.commit()
    half.close()
    with runs.stage("prepare", "edsr"):
        assert not (tmp_path / ".mlflow.db.new").exists()
    experiment = MlflowClient(uri).search_experiments(filter_string=f"name = '{store.EXPERIMENT}'")[0]
    assert {run.info.status for run in MlflowClient(uri).search_runs([experiment.experiment_id])} == {"FINISHED"}


def test_a_store_that_isnt_whole_is_named(uri: str, tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / "mlflow.db")
    half.execute("CREATE TABLE datasets (name TEXT)")
    half.commit()
    half.close()
    with pytest.raises(UserError, match=r"mlflow\.db can't be reached.*whole or absent"), runs.stage("prepare"):
        pass


# --- a store that was made before ---------------------------------------------------------------------------------


@pytest.fixture
def ready(uri: str, new_store: Path, tmp_path: Path) -> MlflowClient:
    shutil.copyfile(new_store, tmp_path / "mlflow.db")
    return MlflowClient(uri)


def test_a_deleted_experiment_is_said_with_what_brings_it_back(ready: MlflowClient) -> None:
    number = ready.search_experiments(filter_string=f"name = '{store.EXPERIMENT}'")[0].experiment_id
    remedy = rf"mlflow experiments restore --experiment-id {number}"

    def deleted_meanwhile() -> None:
        with runs.stage("prepare", "edsr") as run:
            ready.delete_experiment(number)
            run.child("an iteration")

    with pytest.raises(UserError, match="experiments restore --experiment-id"):
        deleted_meanwhile()
    with pytest.raises(UserError, match=rf"was deleted: restore it \({remedy}"), runs.stage("prepare", "edsr"):
        pass
    ready.restore_experiment(number)
    with runs.stage("prepare", "edsr"):
        pass


@pytest.mark.parametrize("address", ["databricks", "https://[::1", "sqlite+pysqlcipher:///x", "sqlite:////proc/x.db"])
def test_an_address_that_is_no_store_is_one_sentence_at_once(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    began = time.monotonic()
    with pytest.raises(UserError, match="can't be reached"), runs.stage("prepare", "edsr"):
        pass
    assert time.monotonic() - began < 20
    assert not caplog.records


def runs_of(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name(store.EXPERIMENT).experiment_id
    return {run.info.run_name: run for run in client.search_runs([experiment])}


def test_names_that_are_no_keys_are_stored_and_stay_readable(ready: MlflowClient) -> None:
    groups = {"g" * 245: 3, "g" * 244 + "h": 4, "Höhe": 5, "a,b": 6, "a;b": 7}
    widths = {f"layer {number} (x)": number for number in range(110)}
    done = iterations.Iteration(1, "accepted", "because 😀\n\udc80", 1, channels=groups, widths=widths,
                             thresholds=dict.fromkeys(groups, 0.5))  # fmt: skip
    with runs.stage("prune", "edsr", "D", {"long": "x" * 20_000, "odd (key)": "\udc80\0", "pictures": "😀"}) as run:
        run.image(np.zeros((8, 8, 3), np.uint8), "validation IMG (3).jpg", 0)
        run.image(np.zeros((8, 8, 3), np.uint8), "validation " + 230 * "Höhe\udc80", 0)
        run.tags({"note": "a\n😀" * 5000, "best.(x)": "y"})
        run.table({"name": "\udc80"}, "table.json")
        runs.iteration(run, done, 100, "edsr", "D")
    by_name = runs_of(ready)
    stage, child = by_name["prune edsr D"], by_name["edsr D iteration 1"]
    assert {stage.info.status, child.info.status} == {"FINISHED"}
    assert stage.data.tags[f"image.{stores.key('validation IMG (3).jpg')}"] == "validation IMG (3).jpg"
    channels = {stores.key(f"channels/{name}"): count for name, count in groups.items()}
    assert channels.items() <= stage.data.metrics.items()
    assert len([key for key in child.data.params if key.startswith("width.")]) == 110
    architecture = Path(child.info.artifact_uri.removeprefix("file://")) / "architecture.json"
    assert "layer 109 (x)" in architecture.read_text()


@pytest.mark.parametrize("name", ["anna's", 'anna"s', "a'b\"c", "x" * 300, "\udc80", "50%", "a\\"])
def test_any_session_name_has_one_parent(name: str, ready: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "session", lambda: name)
    parents = set()
    for _ in range(2):
        with runs.stage("prepare", "edsr") as run:
            parents.add(runs.parent_of(run).id)
    assert len(parents) == 1


def process(**changes: str) -> dict[str, str]:
    return processes.process_tags() | {key.replace("_", "."): value for key, value in changes.items()}


def test_a_run_is_dead_when_its_process_is() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = f"{socket.gethostname()}:{os.getpid()}"
    boot, _, space = processes.machine().partition(" ")
    assert not processes.gone(process())
    assert not processes.gone(process(process=f"renamed:{os.getpid()}"))
    assert processes.gone(process(process=f"renamed:{gone.pid}"))
    assert processes.gone(process(process_began="1000000000.00"))  # the id is used again
    assert processes.gone(process(process_machine=f"another-boot {space}"))
    assert not processes.gone(process(process_machine=f"another-boot {space}", process="other:1"))
    assert not processes.gone(process(process_machine=f"{boot} pid:[1]"))  # a container beside this one
    assert not processes.gone({"process": here})  # as runs were marked before
    assert processes.gone({"process": f"{socket.gethostname()}:{gone.pid}"})
    assert not processes.gone({"process": f"other:{gone.pid}"})
    assert not processes.gone({})


@pytest.mark.parametrize("by", ["a stage", "make ui", "a study"])
def test_runs_of_dead_processes_are_closed(by: str, ready: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = ready.get_experiment_by_name(store.EXPERIMENT).experiment_id
    chain = ready.create_run(experiment, run_name="chain", tags={"level": "chain", "session": "s"})
    dead = process(process_began="1000000000.00") | {"mlflow.parentRunId": chain.info.run_id}
    stage = ready.create_run(experiment, run_name="killed", tags=dead)
    ready.create_run(experiment, run_name="below", tags=dead | {"mlflow.parentRunId": stage.info.run_id})
    ready.create_run(experiment, run_name="alive", tags=process())
    if by == "a stage":
        with runs.stage("prepare", "edsr"):
            pass
    elif by == "make ui":
        store.page("http://127.0.0.1:1")
    else:
        runs.study("a-study", {"reproduce": "x"})
    statuses = {name: run.info.status for name, run in runs_of(ready).items()}
    expected = {"chain": "KILLED", "killed": "KILLED", "below": "KILLED", "alive": "RUNNING"}
    assert expected.items() <= statuses.items()


def test_a_study_belongs_to_the_command_that_continues_it(ready: MlflowClient) -> None:
    runs.study("a-study", {"reproduce": "x"})
    assert int(runs_of(ready)["a-study"].data.tags["process"].rpartition(":")[2]) == psutil.Process().pid


@pytest.mark.parametrize("how", [*WAYS, "another database"])
def test_a_store_that_is_lost_on_the_way_is_one_sentence(
    how: str, ready: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.3)
    began, held = time.monotonic(), []

    def work() -> None:
        with runs.stage("prepare", "edsr") as run:
            run.metrics({"psnr": 1.0})
            held.append(spoil(tmp_path / "mlflow.db", how))
            run.metrics({"psnr": 2.0})

    with pytest.raises(UserError) as caught:
        work()
    assert f"the MLflow store sqlite:///{tmp_path}/mlflow.db was lost: {WAYS.get(how, '')}" in str(caught.value)
    assert "SELECT" not in str(caught.value)
    assert str(caught.value).endswith("the same command goes on")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    assert capfd.readouterr() == ("", "")
    if held[0]:
        held[0].close()


def test_a_store_that_is_lost_when_all_is_done_costs_no_result(ready: MlflowClient, tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"was lost: the file is gone; the results are written"),
        runs.stage("prepare", "edsr"),
    ):
        (tmp_path / "mlflow.db").unlink()


def test_what_failed_is_said_though_the_store_is_lost_too(ready: MlflowClient, tmp_path: Path) -> None:
    def work() -> None:
        with runs.stage("prepare", "edsr"):
            (tmp_path / "mlflow.db").unlink()
            raise UserError("bad images")

    with pytest.raises(UserError, match="bad images"):
        work()


@pytest.mark.parametrize("how", ["locked", "a folder", "garbage", "another database"])
def test_a_store_that_cant_be_used_at_the_start_is_said_soon_and_once(
    how: str, ready: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.3)
    held, began = spoil(tmp_path / "mlflow.db", how), time.monotonic()
    with pytest.raises(UserError, match=r"can't be reached: .*whole or absent"), runs.stage("prepare"):
        pass
    assert time.monotonic() - began < 20
    assert capfd.readouterr() == ("", "")
    if held:
        held.close()


def test_a_new_store_lies_where_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, uri: str) -> None:
            self.path = Path(uri.removeprefix("sqlite:///"))

        def search_experiments(self) -> None:
            self.path.write_text("a new store")

    monkeypatch.setattr(store, "MlflowClient", Client)
    (tmp_path / "large disk").mkdir()
    (tmp_path / "mlflow.db").symlink_to("large disk/mlflow.db")
    store._create(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").is_symlink()
    assert (tmp_path / "large disk" / "mlflow.db").read_text() == "a new store"


def test_a_servers_password_is_in_no_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("http://u:secret@127.0.0.1:1", "postgresql+psycopg://127.0.0.1:1/x?user=u&password=secret"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match="can't be reached") as caught, runs.stage("prepare"):
            pass
        assert "secret" not in str(caught.value)


def test_no_password_is_stored(ready: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hush-hush")
    with runs.stage("train", "edsr", params={"where": "http://u:secret@host/x"}) as run:
        run.tags({"reproduce": "search --storage 'postgresql://h/d?password=secret' hush-hush"})
    stored = str(runs_of(ready)["train edsr"].data)
    assert "secret" not in stored
    assert "hush-hush" not in stored


def test_the_stages_of_one_dvc_process_share_a_session_and_those_of_another_dont(tmp_path: Path) -> None:
    dvc = tmp_path / "dvc"
    asks = "from pipeline.tracking.processes import session; print(session())"
    dvc.write_text(f"import subprocess, sys\nfor _ in range(2): subprocess.run([sys.executable, '-c', {asks!r}])\n")
    plain = {key: value for key, value in os.environ.items() if key not in ("DVC_EXP_NAME", "REPRO_SESSION")}
    words = [sys.executable, str(dvc)]
    one, other = (
        subprocess.run(words, env=plain, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)
    )
    assert one[0] == one[1] != other[0] == other[1]
    assert one[0].startswith("dvc-")


# --- a chain that is stopped, and goes on -------------------------------------------------------------------------


def chains(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name(store.EXPERIMENT).experiment_id
    return client.search_runs([experiment], "tags.level = 'chain'")


def stopped(monkeypatch: pytest.MonkeyPatch, client: MlflowClient, session: str) -> None:
    """A chain whose stage is stopped by Ctrl-C, and whose process is gone."""
    monkeypatch.setattr(runs, "session", lambda: session)
    with pytest.raises(KeyboardInterrupt), runs.stage("train", "edsr"):
        raise KeyboardInterrupt
    client.set_tag(chains(client)[0].info.run_id, "process.began", "1000000000.00")


def test_a_stop_by_a_person_is_no_failure_of_the_chain(ready: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, ready, "one")
    assert {run.info.status for run in runs_of(ready).values()} == {"KILLED"}


def test_what_goes_on_after_a_stop_joins_its_chain(
    ready: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    stopped(monkeypatch, ready, "one")
    monkeypatch.setattr(runs, "session", lambda: "two")
    with runs.stage("train", "edsr"):
        assert chains(ready)[0].info.status == "RUNNING"
    with runs.stage("report"):
        pass
    (chain,) = chains(ready)
    assert chain.info.status == "FINISHED"
    for session, text in (("three", "seed: 1\n"), ("four", "seed: 2\n")):  # the report is made; another parameter
        monkeypatch.setattr(runs, "session", lambda session=session: session)
        (tmp_path / "params.yaml").write_text(text)
        with runs.stage("train", "edsr"):
            pass
        ready.set_tag(chains(ready)[0].info.run_id, "process.began", "1000000000.00")
    assert len(chains(ready)) == 3


def test_a_chain_beside_a_living_one_is_its_own(ready: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for session in ("one", "two"):  # both of this process, which lives
        monkeypatch.setattr(runs, "session", lambda session=session: session)
        with runs.stage("train", "edsr"):
            pass
    assert len(chains(ready)) == 2


def test_the_chain_of_a_command_that_is_gone_is_closed(ready: MlflowClient) -> None:
    experiment = ready.get_experiment_by_name(store.EXPERIMENT).experiment_id
    ready.create_run(experiment, run_name="old", tags=process(process_began="1000000000.00") | {"level": "chain"})
    store.page("http://127.0.0.1:1")
    assert runs_of(ready)["old"].info.status == "KILLED"


def test_a_chain_says_what_differs_from_the_committed_parameters(
    ready: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text("seed: 1\nprune: {align: 8, patience: 3}\n")
    monkeypatch.setattr(runs, "_git", lambda *words: "seed: 1\nprune: {align: 1, patience: 3}" * (words[0] == "show"))
    with runs.stage("train", "edsr"):
        pass
    (chain,) = chains(ready)
    assert chain.data.params == {"seed": "1", "prune.align": "8", "prune.patience": "3"}
    assert chain.data.tags["changed"] == "prune.align 8 (committed: 1)"
    assert chain.data.tags["mlflow.note.content"].startswith("**Changed: prune.align 8 (committed: 1).**")


# --- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"), [(53.509280742, 53.5093), (-0.0069565168, -0.006957), (1.5e12, 1.5e12), (0, 0), (1e-6, 1e-6)]
)
def test_figures_are_rounded_where_people_read_them(value: float, shown: float) -> None:
    assert readable(value) == shown


def iteration(number: int, verdict: str = "accepted") -> iterations.Iteration:
    return iterations.Iteration(number, verdict, "a reason", 1, mac=100 - number, channels={"g": 3})


@pytest.mark.parametrize(
    ("place", "verdicts"),
    [(3, ["accepted", "rejected", "accepted"]), (1, ["accepted", "rejected", "undone"]),
     (2.5, ["accepted", "rejected", "partly undone"]), (1.5, ["accepted", "rejected", "partly undone"])],
)  # fmt: skip
def test_an_iteration_that_the_fine_tune_gave_back_isnt_accepted(
    ready: MlflowClient, place: float, verdicts: list[str]
) -> None:
    with runs.stage("prune", "edsr", "D") as run:
        for one in (iteration(1), iteration(2, "rejected"), iteration(3)):
            runs.iteration(run, one, 100, "edsr", "D")
    with runs.stage("finetune", "edsr", "D") as run:
        runs.undone(run, "edsr", "D", place)
    by_name = runs_of(ready)
    assert [by_name[f"edsr D iteration {number}"].data.tags["verdict"] for number in (1, 2, 3)] == verdicts


def test_the_charts_that_matter_stand_outside_of_sections(ready: MlflowClient) -> None:
    with runs.stage("prune", "edsr", "D") as run:
        runs.iteration(run, iteration(1), 100, "edsr", "D")
    keys = runs_of(ready)["prune edsr D"].data.metrics.keys()
    outside = {key for key in keys if "/" not in key}
    assert outside == {"mac_percent", "psnr", "ssim", "psnr_change", "ssim_change", "alpha"}
    assert {"channels/g", "costs/mac"} <= keys


# --- a folder that is moved or copied -----------------------------------------------------------------------------


def test_a_moved_folder_goes_on_with_its_runs_and_models(
    uri: str, new_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "an old place", tmp_path / "new"
    (old / "pipeline").mkdir(parents=True)  # goes with a model
    shutil.copyfile(new_store, old / "mlflow.db")
    monkeypatch.chdir(old)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    (old / "network.pt").write_bytes(b"weights")
    with runs.stage("finetune", "edsr", "D") as run:
        run.artifact(old / "network.pt")
        assert run.model(torch.nn.Conv2d(3, 3, 1), 3, "edsr-D", old / "network.pt")
    assert registry.register("edsr", "D", old / "network.pt") == "edsr version 1, method D: models:/edsr@pruned"

    old.rename(new)
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")
    store.page("http://127.0.0.1:1")
    with sqlite3.connect(new / "mlflow.db") as database:
        assert "an old place" not in str(database.execute("SELECT * FROM experiments").fetchall())
        assert "an%20old" not in str(database.execute("SELECT artifact_location FROM experiments").fetchall())
    database.close()
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    assert [file.path for file in client.list_artifacts(runs_of(client)["finetune edsr D"].info.run_id)]
    assert registry.register("edsr", "D", new / "network.pt") == "edsr version 1, method D: models:/edsr@pruned"
    with runs.stage("prune", "edsr", "D") as run:
        run.artifact(new / "network.pt")
    assert not old.exists()
    mlflow.set_tracking_uri(f"sqlite:///{new}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{new}/mlflow.db")
    assert mlflow.pytorch.load_model("models:/edsr@pruned")


def test_a_store_that_isnt_the_folders_own_stays_where_its_files_are(
    new_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(new_store, tmp_path / "shared.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    client, experiment = store.client_and_experiment()
    assert client.get_experiment(experiment).artifact_location == (new_store.parent / "mlartifacts").as_uri()


def test_a_models_figures_sort_the_list_of_models(ready: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "network.pt").write_bytes(b"weights")
    (tmp_path / "pipeline").mkdir()  # goes with a model
    with runs.stage("finetune", "edsr", "D") as run:
        model = run.model(torch.nn.Conv2d(3, 3, 1), 3, "edsr-D", tmp_path / "network.pt")
        assert registry.model_of(run, "edsr-D", tmp_path / "network.pt") == model
        run.metrics({"mac_percent": 53.5}, 3, model)
    assert [(one.key, one.value) for one in ready.get_logged_model(model).metrics] == [("mac_percent", 53.5)]


def test_a_run_names_the_images_that_it_used(ready: MlflowClient, tmp_path: Path) -> None:
    split = tmp_path / "edsr" / "train"
    split.mkdir(parents=True)
    (split / "index.json").write_text('{"names": ["a", "b"]}')
    with runs.stage("train", "edsr") as run:
        run.data(split, "train")
    (used,) = runs_of(ready)["train edsr"].inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.profile) == ("edsr train", '{"images": 2}')
