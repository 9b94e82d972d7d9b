"""Several devices: two processes train as one does, go on as one, and end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from chains import ENVIRONMENT, ROOT
from torch import nn

from pipeline.errors import UserError
from pipeline.training import cache, devices, loop
from pipeline.training.device import Machine

QUIET = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}  # as stages/__init__.py has it
COMMAND = [sys.executable, str(Path(ranks.__file__))]


@pytest.fixture
def folder(tmp_path: Path, pictures: dict[str, list[Path]]) -> Path:
    (tmp_path / "train.json").write_text(json.dumps([str(path) for path in pictures["train"]]))
    return tmp_path


def alone(folder: Path, machine: Machine, resume: Path | None = None) -> tuple[list[float], nn.Module]:
    """What one device makes of the same training: its losses and the network."""
    network = ranks.small()
    curve = loop.fit(network, ranks.pictures(folder), ranks.RECIPE, machine, seed=1, validate=lambda _: 0.0,
                     resume=resume, **ranks.taught())  # fmt: skip
    return [point.loss for point in curve], network


def nodes(folder: Path, *codes: str, name: str = "CODE") -> list[subprocess.CompletedProcess[str]]:
    """Two ranks that meet at 127.0.0.1, begun one by one as on two machines, with these words for their code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    begun = [
        subprocess.Popen([*COMMAND, str(folder), "trains", "1"], stderr=subprocess.PIPE, text=True,
                         env=QUIET | common | {"RANK": str(rank), name: code})
        for rank, code in reversed([*enumerate(codes)])  # rank 1 first: it waits
    ]  # fmt: skip
    ended = []
    for process in reversed(begun):
        _, said = process.communicate(timeout=600)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, "", said))
    return ended


def as_one(folder: Path, machine: Machine) -> None:
    """What rank 0 has left is what one device makes, within what adding in another order changes."""
    told = json.loads((folder / "told.json").read_text())
    losses, network = alone(folder, machine)
    assert told["losses"] == pytest.approx(losses, rel=1e-4)
    assert told["again"] == told["losses"]
    assert told["broken"] == 2  # the third step; after it both ranks train again
    trained = torch.load(folder / "network.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.allclose(trained[name], value, atol=1e-5), name


def test_two_processes_train_as_one_does(folder: Path, machine: Machine) -> None:
    done = subprocess.run([*COMMAND, str(folder), "trains", "2"], capture_output=True, text=True, env=QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    as_one(folder, machine)


def test_two_nodes_train_as_one_device_does(folder: Path, machine: Machine) -> None:
    assert [(done.returncode, done.stderr) for done in nodes(folder, "same", "same")] == [(0, ""), (0, "")]
    as_one(folder, machine)


@pytest.mark.parametrize(("name", "told"), [("CODE", "code"), ("PARAMS", "params.yaml")])
def test_nodes_with_different_code_or_params_are_refused_before_anything_trains(
    folder: Path, name: str, told: str
) -> None:
    for done in nodes(folder, "one", "other", name=name):
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        assert said.startswith("ranks: error: rank 1 (")
        assert f"have different {told}; all ranks must have the same" in said
    assert [path.name for path in folder.iterdir()] == ["train.json"]


def test_a_killed_rank_ends_the_others_in_one_sentence_and_one_device_goes_on(folder: Path, machine: Machine) -> None:
    done = subprocess.run([*COMMAND, str(folder), "dies", "2"], capture_output=True, text=True, env=QUIET)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("ranks: error: rank 0 of 2: another rank of this training has ended; the same command goes")
    state = torch.load(folder / "state.pt", weights_only=True)
    assert 1 <= state["step"] <= 3
    losses, _ = alone(folder, machine, folder / "state.pt")
    assert losses == pytest.approx(alone(folder, machine)[0], rel=1e-4)


def test_a_rank_that_reaches_nobody_says_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "JOIN_SECONDS", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(closed.getsockname()[1]))
        with pytest.raises(UserError, match=r"rank 1 of 2 can't reach the others at 127\.0\.0\.1:\d+ within 0\.3 s"):
            devices._found(1, 2)


def test_a_rank_that_doesnt_come_or_ends_at_once_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "JOIN_SECONDS", 0.3)
    store = dist.HashStore()
    with pytest.raises(UserError, match=r"rank 0 of 3: rank 1, 2 hasn't come within 0\.3 s"):
        devices._meet(store, 0, 3, {}, [])
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(devices, "JOIN_SECONDS", 60.0)
    with pytest.raises(UserError, match="rank 1, 2 has ended before the training began"):
        devices._meet(store, 0, 3, {}, [ended])


def test_a_batch_is_divided_without_a_rest_or_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, parts = (torch.arange(6), 10 * torch.arange(6)), []
    monkeypatch.setattr(devices, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
        parts.append([part.tolist() for part in devices.share(batch)])
    assert parts == [[[0, 1], [0, 10]], [[2, 3], [20, 30]], [[4, 5], [40, 50]]]
    devices.check_share(6, "train.edsr.batch")
    with pytest.raises(UserError, match=r"3 processes can't share train\.edsr\.batch, 16, equally; 1, 2, 4, 8, 16 can"):
        devices.check_share(16, "train.edsr.batch")


def test_a_kept_training_of_two_devices_isnt_that_of_one(
    network: nn.Module, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cache.key(network, torch.zeros(1, 3, 24, 24), machine, "recipe")
    monkeypatch.setattr(devices, "count", lambda: 2)
    assert cache.key(network, torch.zeros(1, 3, 24, 24), machine, "recipe") != one


def test_a_network_that_cant_be_sent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count", lambda: 2)
    with pytest.raises(UserError, match=r"devices is 2, but this network can't be sent .* devices: 1 trains it"):
        devices.send(lambda: 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is for machines without CUDA")
def test_more_processes_than_cuda_devices_are_refused() -> None:
    with pytest.raises(UserError, match="2 processes on this machine need as many CUDA devices, but it has 0"):
        devices._own_device(Machine(torch.device("cuda"), False), 0, 2)
    assert "RANK" not in os.environ
