"""Studies: what they propose, what they count, and that killing a worker loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import postgres
import pytest
import yaml
from chains import ROOT
from optuna.distributions import FloatDistribution
from optuna.storages._heartbeat import HeartbeatThread
from optuna.trial import TrialState
from search_worker import outcome
from spoiled import lock

from pipeline import config
from pipeline.errors import UserError
from pipeline.networks import checkpoint
from pipeline.progress import Silent
from pipeline.pruning import gate, iterations, prune, rules
from pipeline.study import figures, results, slots, storage, worker
from pipeline.study.sampler import Proposals
from pipeline.study.trial import CannotWinError, Outcome, Problem, Report, Values, least_share, measure
from pipeline.study.winner import write_settings
from pipeline.training import recipes
from pipeline.training.setup import Setup

SPACE = {"x": FloatDistribution(0, 1)}
DROP = ("psnr_beyond_limit",)


def new(tmp_path: Path, name: str = "study", seed: int = 1) -> tuple[optuna.Study, Proposals]:
    study = storage.open_study(f"sqlite:///{tmp_path / 'search.db'}", name, {"baseline": "one"})
    return study, Proposals(SPACE, seed, {"x": 0.9})


def plain(number: int, values: Values, report: Report) -> Outcome:
    return outcome(values)


def points(study: optuna.Study) -> list[float]:
    return [trial.params["x"] for trial in study.get_trials()]


def test_the_default_parameters_come_first_and_the_winner_is_feasible(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    worker.work(study, plain, proposals, 12, DROP)
    assert points(study)[0] == 0.9
    best = slots.winner(study)
    assert best.params["x"] >= 0.5
    assert best.value == min(t.value for t in study.get_trials() if t.params["x"] >= 0.5)
    assert best.value < 30  # the sampler has found the edge at 0.5, where the value is 20, better than chance would


def test_a_study_that_was_stopped_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    whole, proposals = new(tmp_path, "whole")
    worker.work(whole, plain, proposals, 9, DROP)
    for total in (4, 7, 9, 9):
        parts, proposals = new(tmp_path, "parts")
        worker.work(parts, plain, proposals, total, DROP)
        assert len(parts.get_trials()) == total
    assert points(parts) == points(whole)
    assert len(set(points(whole))) == 9


def test_a_trial_that_cant_win_is_pruned_and_the_sampler_still_learns_from_it(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)

    def run(number: int, values: Values, report: Report) -> Outcome:
        report(1, outcome(values).mac_percent + 10, outcome(values).mac_percent)
        return outcome(values)

    worker.work(study, run, proposals, 14, DROP)
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert pruned
    for trial in pruned:
        before = [t.value for t in complete if t.number < trial.number and slots.feasible(t)]
        assert outcome(trial.params).mac_percent >= min(before)
        assert trial.user_attrs["mac_percent"] == trial.intermediate_values[1]
    assert len(set(points(study))) == 14  # Optuna's sampler ignores pruned trials and would ask for the same again


def test_a_failing_trial_is_tried_once_more_and_its_reason_kept(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    seen: list[float] = []

    def run(number: int, values: Values, report: Report) -> Outcome:
        seen.append(values["x"])
        if values["x"] == 0.9 or (len(seen) > 2 and seen.count(seen[2]) == 1 and values["x"] == seen[2]):
            raise MemoryError("no room")
        return outcome(values)

    worker.work(study, run, proposals, 5, DROP)
    assert seen[:2] == [0.9, 0.9]  # twice, and no third time
    assert seen[2] == seen[3]
    ends = slots.slots(study, 5)
    assert [trial.state for trial in ends.values()] == [TrialState.FAIL, *4 * [TrialState.COMPLETE]]
    assert next(iter(ends.values())).user_attrs["reason"] == "MemoryError: no room"


def test_a_user_error_ends_the_study_and_counts_no_trial(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)

    def full(number: int, values: Values, report: Report) -> Outcome:
        raise UserError("the disk is full")

    for _ in range(3):
        with pytest.raises(UserError, match="the disk is full"):
            worker.work(study, full, proposals, 2, DROP)
    worker.work(study, plain, proposals, 2, DROP)
    assert [trial.state for trial in slots.slots(study, 2).values()] == [TrialState.COMPLETE] * 2
    assert len(slots.slots(study, 9)) == 2


def test_a_stopped_trial_is_taken_up_first(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)

    def stopped(number: int, values: Values, report: Report) -> Outcome:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            worker.work(study, stopped, proposals, 2, DROP)
    worker.work(study, plain, proposals, 2, DROP)
    ends = list(slots.slots(study, 2).values())
    assert ends[0].params["x"] == 0.9
    assert all(trial.state == TrialState.COMPLETE for trial in ends)


def test_a_stopped_trial_changes_none_of_the_later_ones(tmp_path: Path) -> None:
    whole, proposals = new(tmp_path, "whole")
    worker.work(whole, plain, proposals, 10, DROP)
    parts, proposals = new(tmp_path, "parts")
    left = [3, 5, 8]  # runs that are stopped, counted from 0

    def stops(number: int, values: Values, report: Report) -> Outcome:
        if number in left:
            left.remove(number)
            raise KeyboardInterrupt
        return outcome(values)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            worker.work(parts, stops, proposals, 10, DROP)
    worker.work(parts, stops, proposals, 10, DROP)
    assert [trial.params["x"] for trial in slots.slots(parts, 10).values()] == points(whole)


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_taken_up(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    study.sampler = proposals
    study.ask()  # and nothing more is heard of it
    time.sleep(0.2)
    worker.work(study, plain, proposals, 3, DROP, grace=0.1)
    ends = slots.slots(study, 3)
    assert all(trial.state == TrialState.COMPLETE for trial in ends.values())
    assert ends[0].params["x"] == 0.9


def test_a_trial_of_a_dead_worker_has_its_reason(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    study.sampler = proposals
    study.ask()
    time.sleep(0.2)
    worker.work(study, plain, proposals, 2, DROP, grace=0.1)
    assert slots.failures(study) == {0: "its worker was killed before it began"}


def test_a_percentage_that_is_no_number_fails_the_trial_with_the_reason(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    worker.work(study, lambda *given: Outcome(float("nan"), {"psnr_beyond_limit": 0.0}), proposals, 1, DROP)
    assert set(slots.failures(study).values()) == {"ValueError: the percentage of MACs kept is nan, which is no number"}


def test_a_heartbeat_outlives_a_locked_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.stores, "connect_arguments", lambda storage: {"timeout": 0.1})
    monkeypatch.setattr(storage, "BEAT_PAUSE", 0.2)
    study, proposals = new(tmp_path)
    study.sampler = proposals
    trial = study.ask()
    held = lock(tmp_path / "search.db")
    study._storage.record_heartbeat(trial._trial_id)  # locked for longer than it tries: the next one is due soon
    threading.Timer(0.3, held.close).start()
    study._storage.record_heartbeat(trial._trial_id)  # tried again once the lock is gone
    with sqlite3.connect(tmp_path / "search.db") as database:
        assert database.execute("SELECT count(*) FROM trial_heartbeats").fetchone() == (1,)
    database.close()


def test_a_lost_storage_is_no_fault_of_the_trial(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    left = [1]

    def run(number: int, values: Values, report: Report) -> Outcome:
        if left:
            left.pop()
            raise optuna.exceptions.StorageInternalError("lost")
        return outcome(values)

    with pytest.raises(optuna.exceptions.StorageInternalError):
        worker.work(study, run, proposals, 2, DROP)
    worker.work(study, run, proposals, 2, DROP)
    assert [trial.state for trial in slots.slots(study, 2).values()] == [TrialState.COMPLETE] * 2
    assert not any(trial.system_attrs.get("retry_history") for trial in study.get_trials())


def test_one_trial_too_many_counts_only_when_more_are_asked_for(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    worker.work(study, plain, proposals, 2, DROP)
    worker.run_one(study, plain, 2, DROP)  # what two workers do that began the last trial together
    assert len(results.table(study, 9)) == 2
    worker.work(study, plain, proposals, 4, DROP)
    assert [row["state"] for row in results.table(study, 4)] == ["complete"] * 4


def test_a_worker_that_was_given_up_for_dead_drops_its_result(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)

    def suspended(number: int, values: Values, report: Report) -> Outcome:
        if number == 0:
            study.tell(0, state=TrialState.FAIL)  # another worker's doing
            slots.try_again(study, slots.by_number(study, 0))
            report(1, 1.0, 0.5)
        return outcome(values)

    worker.work(study, suspended, proposals, 2, DROP)
    ends = slots.slots(study, 2)
    assert [trial.state for trial in ends.values()] == [TrialState.COMPLETE] * 2
    assert ends[0].params["x"] == 0.9
    assert len(study.get_trials()) == 3


def test_equal_parameters_are_not_run_twice(tmp_path: Path) -> None:
    study, _ = new(tmp_path)
    ran: list[float] = []

    class Stubborn(Proposals):
        def sample_relative(self, *given):
            return {"x": 0.7}

    def run(number: int, values: Values, report: Report) -> Outcome:
        ran.append(values["x"])
        return outcome(values)

    worker.work(study, run, Stubborn(SPACE, 1, {}), 3, DROP)
    assert ran == [0.7]
    assert [trial.value for trial in study.get_trials()] == [outcome({"x": 0.7}).mac_percent] * 3
    assert study.get_trials()[2].user_attrs["same_as"] in (0, 1)


def test_without_a_feasible_trial_there_is_no_winner_but_a_nearest(tmp_path: Path) -> None:
    study, _ = new(tmp_path)
    worker.work(study, plain, Proposals({"x": FloatDistribution(0, 0.4)}, 1, {"x": 0.1}), 4, DROP)
    assert slots.winner(study) is None
    assert slots.nearest(study).params["x"] == max(points(study))


def test_a_study_of_another_baseline_is_refused(tmp_path: Path) -> None:
    new(tmp_path)
    with pytest.raises(UserError, match="begun with another baseline"):
        storage.open_study(f"sqlite:///{tmp_path / 'search.db'}", "study", {"baseline": "two"})


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "postgresql+psycopg://127.0.0.1:1/none?user=u&password=secret",
        "postgresql+psycopg://u:a@/secret@127.0.0.1:1/none",
        "postgresql+psycopg://u:a%40secret@127.0.0.1:1/none",
        "mysql://u:secret@127.0.0.1:1/none",
        "sqlite:////nowhere/at/all.db",
        "postgresql+psycopg://u:secret@127.0.0.1:1/none",
        "postgresql+psycopg://u:secret@host:port/none",
        "postgresql+psycopg//u:secret@host/none",
    ],
)
def test_a_storage_that_cant_be_reached_is_said_without_its_password(address: str) -> None:
    with pytest.raises(UserError, match=r"the storage .* can't be used") as caught:
        storage.open_study(address, "study", {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_storage_in_memory_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is no file"):
        storage.open_study(address, "study", {})


def test_a_locked_storage_is_said_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new(tmp_path)
    monkeypatch.setattr(storage.stores, "LOCKED_SECONDS", 0.2)
    held = lock(tmp_path / "search.db")
    with pytest.raises(UserError, match=r"search\.db can't be used: database is locked"):
        new(tmp_path)
    held.close()


def of_another_optuna(path: Path) -> None:
    new(path.parent)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        database.execute("UPDATE version_info SET schema_version = 99, library_version = '9.0.0'")
    database.close()


def of_mlflow(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.executescript("CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('b2')")
    database.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), "not a database"),
        (Path.mkdir, "it is a folder"),
        (lambda path: path.symlink_to(path.name), "Too many levels"),
        (of_another_optuna, "optuna"),
        (of_mlflow, "optuna"),
    ],
    ids=["text", "folder", "link to itself", "another Optuna's", "MLflow's"],
)
def test_what_isnt_a_studys_database_is_refused(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "search.db")
    with pytest.raises(UserError, match=f"can't be used: .*{reason}") as caught:
        new(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_file_becomes_a_studys_database(tmp_path: Path) -> None:
    (tmp_path / "search.db").touch()
    assert new(tmp_path)[0].trials == []


def test_what_the_remaining_iterations_can_leave_at_least() -> None:
    settings = config.read(ROOT / "params.yaml").settings("D", "edsr").model_copy(
        update={"max_share": 0.25, "depth_channels": 2, "depth_share": 0.5}
    )  # fmt: skip

    def at(**channels: int) -> iterations.Iteration:
        return iterations.Iteration(0, "accepted", "", 0, channels=channels)

    # 16 -> 12 -> 9: 9/16; 4 -> 3 -> 2 (at least one goes): 1/2; a layer keeps the product of two such shares
    assert least_share(at(a=16), at(a=16), settings, ("adaptive",), 2) == (9 / 16) ** 2
    assert least_share(at(a=16, b=4), at(a=16, b=4), settings, ("adaptive",), 2) == 0.25
    # the floor: half of the 16 stay
    assert least_share(at(a=16), at(a=9), settings, ("adaptive", "depth"), 5) == (8 / 9) ** 2
    assert least_share(at(a=16), at(a=12), settings, ("adaptive",), 0) == 1.0
    # align 8: 16 -> 8, though a quarter is 4; 48 -> 36 -> 27, though 40 and 32 will be left
    eights = settings.model_copy(update={"align": 8})
    assert least_share(at(a=16), at(a=16), eights, ("adaptive",), 1) == 0.25
    assert least_share(at(a=48), at(a=48), eights, ("adaptive",), 2) == (27 / 48) ** 2


@pytest.mark.parametrize("units", [(1,), (4,), (1, 4), (2, 3)])
@pytest.mark.parametrize("active", [("adaptive",), ("adaptive", "depth")])
def test_an_aligned_group_never_gives_more_than_the_bound(
    settings: config.Settings, units: tuple[int, ...], active: tuple[str, ...]
) -> None:
    eights = settings.model_copy(update={"align": 8, "max_share": 0.2})
    for original in range(1, 70):
        left = original
        for left_iterations in range(1, 9):
            state = rules.GroupState("g", (0.1,) * left, original, 3.0, 1.0, units)
            step = rules.plan([state], rules.State(9.0, 0.1), 9.0, active, eights, (3.0, 1.0))
            left -= len(step.removed.get("g", ()))
            first = iterations.Iteration(0, "accepted", "", 0, channels={"g": original})
            assert least_share(first, first, eights, active, left_iterations) <= (left / original) ** 2


@pytest.fixture
def problem(setup: Setup, settings: config.Settings, network, tmp_path: Path) -> Problem:
    checkpoint.save(tmp_path / "network.pt", network, "edsr", setup.network.args, {})
    start = setup.quality(network)
    return Problem(
        setup=setup,
        settings=settings,
        active=("adaptive", "depth", "efficiency", "balance"),
        recipe=config.Finetune(steps=4, lr=1e-3),
        baseline=tmp_path / "network.pt",
        target=gate.Target((start,)),
        final=start,
        rivals={"baseline": start.mean_psnr, "control": start.mean_psnr + 0.1},
        ssim=True,
    )


def test_a_trial_measures_the_network_that_the_chain_would_make(problem: Problem, tmp_path: Path) -> None:
    values, told = {"threshold_scale": 0.9}, []
    trial = measure(problem, values, tmp_path / "trial", lambda *report: told.append(report))
    network, _ = checkpoint.load(problem.baseline)
    (tmp_path / "chain").mkdir()
    log = prune.prune(
        network, problem.setup, config.checked_settings(problem.settings, values), problem.active, problem.target,
        tmp_path / "chain", Silent(),
    )  # fmt: skip
    last = [iteration for iteration in log if iteration.verdict == "accepted"][-1]
    pruned, _ = checkpoint.load(tmp_path / "chain" / f"accepted-{last.number:03d}.pt")
    recipes.train_final(pruned, problem.setup, problem.recipe, tmp_path / "chain" / "final.pt", Silent(), network)
    assert trial.mac_percent == 100 * last.mac / log[0].mac
    measured = problem.setup.quality(pruned)
    assert trial.notes["psnr_change"] == measured.mean_psnr - problem.final.mean_psnr
    assert trial.notes["ssim_change"] == measured.mean_ssim - problem.final.mean_ssim
    assert trial.notes["psnr_change_control"] == pytest.approx(trial.notes["psnr_change"] - 0.1)
    assert trial.constraints["psnr_beyond_limit"] == -trial.notes["psnr_change"] - problem.setup.gate.max_psnr_drop
    assert trial.constraints["ssim_beyond_limit"] == -trial.notes["ssim_change"] - problem.setup.gate.max_ssim_drop
    assert [number for number, _, _ in told] == [*range(len(log)), len(log) - 1]
    assert all(at_least <= kept for _, kept, at_least in told)
    assert told[-1][1] == told[-1][2] == trial.mac_percent
    assert all(at_least <= trial.mac_percent for _, _, at_least in told)  # the bound never rules out what came


def test_a_trial_holds_the_gate_with_its_confidence(problem: Problem, tmp_path: Path) -> None:
    """As the chain: the lower end of the interval over images must hold, and not the mean."""
    own = problem.setup.gate.model_copy(update={"confidence": 0.9})
    strict = replace(problem, setup=replace(problem.setup, gate=own))
    values = {"threshold_scale": 0.9}
    mean = measure(problem, values, tmp_path / "mean", lambda *report: None)
    lower = measure(strict, values, tmp_path / "lower", lambda *report: None)
    assert lower.notes["psnr_change"] == mean.notes["psnr_change"]
    assert lower.constraints["psnr_beyond_limit"] > mean.constraints["psnr_beyond_limit"]
    assert lower.constraints["ssim_beyond_limit"] > mean.constraints["ssim_beyond_limit"]


def test_a_trial_that_is_given_up_says_what_it_saved(problem: Problem, tmp_path: Path) -> None:
    def refuse(iteration: int, kept: float, at_least: float) -> None:
        if iteration == 1:
            raise CannotWinError(kept)

    with pytest.raises(CannotWinError) as caught:
        measure(problem, {}, tmp_path / "trial", refuse)
    whole = problem.setup.retrain.max_iterations * problem.setup.iteration_steps + problem.recipe.steps
    assert caught.value.notes == {
        "steps": problem.setup.iteration_steps,
        "saved_share": 1 - problem.setup.iteration_steps / whole,
    }


def test_a_killed_trial_goes_on_from_its_last_iteration(problem: Problem, tmp_path: Path) -> None:
    def stop(iteration: int, kept: float, at_least: float) -> None:
        if iteration == 1:
            raise KeyboardInterrupt

    whole = measure(problem, {}, tmp_path / "whole", lambda *report: None)
    with pytest.raises(KeyboardInterrupt):
        measure(problem, {}, tmp_path / "part", stop)
    assert (tmp_path / "part" / "log.json").exists()
    assert measure(problem, {}, tmp_path / "part", lambda *report: None) == whole


# --- several workers ----------------------------------------------------------------------------------------------


def start_worker(address: str, trials: int, seconds: float, log: Path, heartbeat: int = 1) -> subprocess.Popen:
    words = [str(Path(__file__).with_name("search_worker.py")), address, "study", str(trials), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words, str(heartbeat), str(log)], env=environment)


def wait_for(log: Path, lines: int) -> None:
    until = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert time.monotonic() < until, "the workers begin no trials"
        time.sleep(0.05)


def kill_one_of_three(address: str, tmp_path: Path) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    workers = [start_worker(address, 9, 1.0, log) for log in logs]
    wait_for(logs[0], 1)
    workers[0].send_signal(signal.SIGKILL)
    assert [each.wait(timeout=3600) for each in workers[1:]] == [0, 0]
    study = storage.open_study(address, "study", {"baseline": "one"}, 1)
    trials = study.get_trials()
    ends = slots.slots(study, 9)
    assert [trial.state for trial in ends.values()] == [TrialState.COMPLETE] * 9
    killed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert killed[0].user_attrs["reason"] == slots.SILENT
    assert len(killed) == 1  # the trial whose worker died, and only it
    retried = [trial for trial in ends.values() if slots.slot(trial) == slots.slot(killed[0])]
    assert retried[0].number != killed[0].number
    assert retried[0].params == killed[0].params
    assert len({slots.slot(t) for t in trials if t.state == TrialState.COMPLETE}) == 9


def test_a_killed_workers_trial_is_taken_up_by_another(tmp_path: Path) -> None:
    kill_one_of_three(f"sqlite:///{tmp_path / 'search.db'}", tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    if not postgres.installed():
        pytest.skip("PostgreSQL's server isn't installed: apt-get install postgresql")
    with postgres.served(tmp_path) as address:
        yield address


def test_three_workers_on_postgresql_lose_nothing_when_one_is_killed(server: str, tmp_path: Path) -> None:
    kill_one_of_three(server, tmp_path)


def test_a_trial_has_a_heartbeat_as_soon_as_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker may be killed before Optuna's thread has come to the first, and it would be waited for for ever."""
    monkeypatch.setattr(HeartbeatThread, "start", lambda thread: None)
    monkeypatch.setattr(HeartbeatThread, "join", lambda thread: None)
    study, proposals = new(tmp_path)
    beats: list[int] = []

    def run(number: int, values: Values, report: Report) -> Outcome:
        with sqlite3.connect(tmp_path / "search.db") as database:
            beats.append(database.execute("SELECT count(*) FROM trial_heartbeats").fetchone()[0])
        return outcome(values)

    worker.work(study, run, proposals, 2, DROP)
    assert beats == [1, 2]


# --- files --------------------------------------------------------------------------------------------------------


def test_the_winner_is_written_into_params_yaml_with_its_comments_kept(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    write_settings(path, "D", "sid", {"threshold_scale": 0.8123, "sparsity": 3.2e-05})
    before = (ROOT / "params.yaml").read_text().splitlines()
    after = path.read_text().splitlines()
    ((old, new),) = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert old == "  D: {rules: [adaptive, depth, efficiency, balance]}"
    assert new == old[:-1] + ", networks: {sid: {threshold_scale: 0.8123, sparsity: 3.2e-05}}}"
    was, now = config.read(ROOT / "params.yaml"), config.read(path)
    winner = now.settings("D", "sid")
    assert (winner.threshold_scale, winner.sparsity) == (0.8123, 3.2e-05)
    assert now.settings("D", "edsr") == was.settings("D", "edsr")
    assert now.settings("A", "sid") == was.settings("A", "sid")
    write_settings(path, "D", "sid", {"sparsity": 1e-3})
    write_settings(path, "D", "edsr", {"max_share": 0.2})
    winner = config.read(path).settings("D", "sid")
    assert (winner.threshold_scale, winner.sparsity) == (0.8123, 1e-3)
    assert config.read(path).settings("D", "edsr").max_share == 0.2


def test_the_figures_are_drawn_from_the_studys_files(tmp_path: Path) -> None:
    study, _ = new(tmp_path)
    space = {"x": FloatDistribution(0, 1), "y": FloatDistribution(1e-5, 1e-1, log=True)}
    worker.work(study, plain, Proposals(space, 1, {"x": 0.9, "y": 1e-3}), 8, DROP)
    (tmp_path / "trials.json").write_text(json.dumps(results.table(study, 8)))
    (tmp_path / "importances.json").write_text(json.dumps(results.importances(study)))
    paths = figures.draw(tmp_path)
    assert {path.stem for path in paths} == {"history", "contour", "importances", "tradeoff"}
    assert all(2000 < path.stat().st_size < 300_000 for path in paths)
    ranked = results.importances(study)
    assert ranked["x"] > ranked["y"]


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"treshold": {"low": 1, "high": 2}}, "space has 'treshold', which can't be searched; 'threshold_scale'"),
        ({"max_iterations": {"low": 1, "high": 2}}, "max_iterations.*can't be searched"),
        ({"sparsity": {"low": 1.0, "high": 0.1}}, "low is 1, but it must be less than high, 0.1"),
        ({"sparsity": {"low": 0.0, "high": 0.1, "log": True}}, "begins above 0"),
        ({"max_share": {"low": 0.1, "high": 2.0}}, "search.space: max_share is 2.0 but should be less"),
        ({"depth_channels": {"low": 1.5, "high": 3}}, "it is a whole number"),
        ({}, "search.space"),
    ],
)
def test_a_wrong_search_space_is_refused_by_name(tmp_path: Path, space: dict, sentence: str) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["search"]["space"] = space
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=sentence):
        config.read(path)


def test_the_dashboard_knows_the_metrics_name_and_which_trials_hold(tmp_path: Path) -> None:
    study, proposals = new(tmp_path)
    worker.work(study, plain, proposals, 8, DROP)
    assert study.metric_names == ["mac_percent"]
    for trial in study.get_trials():
        (limit,) = trial.system_attrs["constraints"]  # what optuna_dashboard/_serializer.py reads
        assert (limit <= 0) == slots.feasible(trial)
        assert slots.constraints_of(trial) == {"psnr_beyond_limit": limit}
