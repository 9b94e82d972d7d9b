"""Training on several devices: PyTorch's distributed data parallel, with a process ("rank") for each device.

Rank 0 runs a command as it would alone: it reads, measures, decides, prints and writes. The others wait for its
trainings (`serve` in loop.py) and take their shares of each batch. On one device nothing here changes a bit.
Source: Li et al., PyTorch Distributed, 2020.
"""

from __future__ import annotations

import io
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UserError, first_line
from pipeline.training.device import Machine

JOIN_SECONDS = 120.0  # in which all ranks must have come
# What rank 0 may do while the others wait: validate, measure channels. A process that ends is noticed at once; this is
# for a machine that falls silent.
SILENT_SECONDS = 7200.0
GO_ON = "the same command goes on from the last saved point"


class LostRankError(UserError):
    """Another rank has ended, or can't be reached."""


def count() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


# --- the beginning and the end --------------------------------------------------------------------------------------


@contextmanager
def joined(devices: int, words: Sequence[str], machine: Machine, same: Mapping[str, str]) -> Iterator[int]:
    """All ranks of a command, together: those that torchrun began, or `devices` on this machine. Gives this one's.

    words: the command after `python`, for the ranks that this one begins. same: digests in which all ranks must agree,
    under the names of what they are of. UserError when they don't, or when one can't be reached.
    """
    ours = "RANK" not in os.environ
    here, size = (0, devices) if ours else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    _own_device(machine, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size:  # the machine's own name may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, children = _begun(size, words) if ours else (_found(here, size), [])
    try:
        _meet(store, here, size, same, children)
        backend = "cpu:gloo,cuda:nccl" if machine.device.type == "cuda" else "gloo"
        with connected():
            dist.init_process_group(
                backend, store=dist.PrefixStore("training", store), rank=here, world_size=size,
                timeout=timedelta(seconds=SILENT_SECONDS),
            )  # fmt: skip
        yield here
        if here == 0:
            with suppress(LostRankError), connected():  # one that is gone has nothing left to do
                _broadcast(None)
                dist.barrier()
    finally:
        for child in children:  # they hold nothing that would be lost
            child.kill()
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_device(machine: Machine, local: int, ranks: int) -> None:
    if machine.device.type != "cuda":
        return
    there = torch.cuda.device_count()
    if ranks > there:
        raise UserError(f"devices: {ranks} processes on this machine need as many CUDA devices, but it has {there}")
    torch.cuda.set_device(local)


def _begun(size: int, words: Sequence[str]) -> tuple[dist.Store, list[subprocess.Popen]]:
    """Begin the other ranks on this machine, and the store at which they meet."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_join_time())
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    children = []
    for other in range(1, size):
        environment = os.environ | {key: str(value) for key, value in (common | {"RANK": other}).items()}
        environment["LOCAL_RANK"] = str(other)
        children.append(subprocess.Popen([sys.executable, *words], env=environment, stdin=subprocess.DEVNULL))
    return store, children


def _found(here: int, size: int) -> dist.Store:
    """The store that torchrun names."""
    from torch.distributed.rendezvous import rendezvous

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        if here:  # PyTorch would try for several times as long, and print pages
            _knock(host, int(port))
        store, _, _ = next(rendezvous("env://", here, size, timeout=_join_time()))
        return store
    except (RuntimeError, ValueError, OSError) as error:
        raise LostRankError(
            f"rank {here} of {size} can't reach the others at {host}:{port} within {JOIN_SECONDS:g} s "
            f"({first_line(error)}); all ranks must run, and that address must be one that they can reach"
        ) from None


def _knock(host: str, port: int) -> None:
    """Wait until someone listens there; OSError when nobody does in time."""
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _meet(
    store: dist.Store, here: int, size: int, same: Mapping[str, str], children: Sequence[subprocess.Popen]
) -> None:
    """Wait for all ranks, and compare what must be the same; UserError, on each of them, when it isn't."""
    store.set(f"rank {here}", json.dumps({"host": platform.node(), **same}))
    _wait(store, "rank", here, size, children)
    told = [json.loads(store.get(f"rank {other}")) for other in range(size)]
    store.set(f"met {here}", "")
    if here == 0:  # the store may end with this process: not before everyone has read
        _wait(store, "met", here, size, children)
    for other, its in enumerate(told):
        different = [name for name in same if its.get(name) != told[0].get(name)]
        if different:
            hosts = f"rank {other} ({its['host']}) and rank 0 ({told[0]['host']})"
            raise UserError(f"{hosts} have different {' and '.join(different)}; all ranks must have the same")


def _wait(store: dist.Store, word: str, here: int, size: int, children: Sequence[subprocess.Popen]) -> None:
    """Until every rank has left its word in the store."""
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            missing = [other for other in range(size) if not store.check([f"{word} {other}"])]
        except RuntimeError:
            raise LostRankError(f"rank {here} of {size}: rank 0 has ended") from None
        if not missing:
            return
        names = ", ".join(map(str, missing))
        if any(child.poll() is not None for child in children):
            raise LostRankError(f"rank {here} of {size}: rank {names} has ended before the training began")
        if time.monotonic() > until:
            raise LostRankError(f"rank {here} of {size}: rank {names} hasn't come within {JOIN_SECONDS:g} s")
        time.sleep(0.02)


def _join_time() -> timedelta:
    return timedelta(seconds=JOIN_SECONDS)


# --- trainings ------------------------------------------------------------------------------------------------------


def send(training: Any) -> None:
    """Rank 0: have the others take part in a training. Nothing on one device."""
    if count() == 1:
        return
    packed = io.BytesIO()
    try:
        torch.save(training, packed)
    except Exception as error:  # pickling runs the modules' own code
        raise UserError(
            f"devices is {count()}, but this network can't be sent to another process: {first_line(error)}; "
            "devices: 1 trains it"
        ) from None
    _broadcast(packed.getvalue())


def receive(machine: Machine) -> Any:
    """The other ranks: the next training; None when rank 0 needs no more."""
    packed = _broadcast(None)
    if packed is None:
        with suppress(LostRankError), connected():  # rank 0 waits, so that its end isn't taken for a loss
            dist.barrier()
        return None
    place = torch.device("cuda", torch.cuda.current_device()) if machine.device.type == "cuda" else machine.device
    return torch.load(io.BytesIO(packed), map_location=place, weights_only=False)  # from our own rank 0


def _broadcast(value: Any) -> Any:
    box = [value]
    with connected():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


# --- a step ---------------------------------------------------------------------------------------------------------


def parallel(network: nn.Module) -> nn.Module:
    """The network, or on several devices one that averages the ranks' gradients while it goes back."""
    if count() == 1:
        return network
    with connected():  # all ranks have the same weights from `receive` on; rank 0's buffers are those that are kept
        return DistributedDataParallel(
            network, find_unused_parameters=True, forward_sync_buffers=False, init_sync=False,
            gradient_as_bucket_view=True,
        )  # fmt: skip


def own(network: nn.Module) -> nn.Module:
    """The network that `parallel` was given."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def share(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """This rank's part of a step's inputs and targets, [B, …] each; B is divisible by the number of ranks."""
    if count() == 1:
        return batch
    each = len(batch[0]) // count()
    part = slice(rank() * each, (rank() + 1) * each)
    return batch[0][part], batch[1][part]


def means(*values: Tensor) -> Callable[[], tuple[float, ...]]:
    """Begin to average numbers over the ranks, whose shares of a batch are equally large; what is returned waits.

    So the exchange runs beside the way back through the network.
    """
    total = torch.stack([value.detach().double() for value in values])
    if count() == 1:
        return lambda: tuple(total.tolist())
    with connected():
        exchange = dist.all_reduce(total, async_op=True)

    def waited() -> tuple[float, ...]:
        with connected():
            exchange.wait()
        return tuple((total / count()).tolist())

    return waited


def check_share(batch: int, key: str) -> None:
    """UserError when the batch of that key in params.yaml can't be divided equally."""
    if batch % count():
        fits = ", ".join(str(number) for number in range(1, batch + 1) if batch % number == 0)
        raise UserError(f"{count()} processes can't share {key}, {batch}, equally; {fits} can")


@contextmanager
def connected() -> Iterator[None]:
    """LostRankError for what PyTorch raises when another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRankError(f"rank {rank()} of {count()}: another rank of this training has ended; {GO_ON}") from None
