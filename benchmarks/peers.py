"""Other projects' pruning, for benchmarks/race.py: each makes the baseline smaller as its own documentation does it.

None of them is a requirement of the project. They go into an environment of their own, in which the race then runs:

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install -r requirements.txt -r benchmarks/requirements-peers.txt
    .venv-peers/bin/python benchmarks/race.py edsr

A peer gives the smaller network alone; training is the race's. A peer that trains while it prunes has those steps
taken off. Channels in front of a pixel shuffle stay under Torch-Pruning and OTO: both would cut them into a network
that doesn't run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from contestants import Entry, Task, after, nearest
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.networks import duplicate
from pipeline.training.loop import batches

SCORED = 4  # batches of `sample_pairs` that ModelOpt scores a network on: it does so some hundred times


def package(name: str) -> Any:
    """A peer's package. By name, so that neither the tests nor the type checker look for it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"not installed: {error.name}; benchmarks/requirements-peers.txt has it") from error


def taylor(task: Task) -> Entry:
    """Torch-Pruning 1.6 (Fang et al., DepGraph, CVPR 2023): its Taylor importance, all layers in one order, once."""
    tp = package("torch_pruning")
    network = duplicate(task.baseline)
    for inputs, targets in task.setup.sample_pairs():
        (network(inputs) - targets).abs().mean().backward()
    return Entry(_cut_by(tp, task, network, tp.importance.GroupTaylorImportance()), task.recipe)


def group_norm(task: Task) -> Entry:
    """Torch-Pruning's GroupNormPruner: half of the steps with its regulariser, then its group norms, in one order.

    With transposed convolutions its regulariser fails: it takes the wrong dimension for their input channels.
    """
    tp = package("torch_pruning")
    network, first = duplicate(task.baseline), task.recipe.steps // 2
    norm = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.GroupNormPruner(network, task.setup.example(network), norm, ignored_layers=_kept(network))
    pruner.update_regularizer()
    optimiser = torch.optim.Adam(network.parameters(), lr=task.setup.rate * task.recipe.lr)
    _train(network, task, first, optimiser, lambda: pruner.regularize(network))
    return Entry(_cut_by(tp, task, network, norm), after(task.recipe, first))


def group_norm_at_once(task: Task) -> Entry:
    """Torch-Pruning's group norms without its regulariser: all steps come after the cut."""
    tp = package("torch_pruning")
    norm = tp.importance.GroupMagnitudeImportance(p=2)
    return Entry(_cut_by(tp, task, duplicate(task.baseline), norm), task.recipe)


def _cut_by(tp: Any, task: Task, network: nn.Module, importance: Any) -> nn.Module:
    """At the ratio over all layers that leaves the allowed MACs; a layer keeps a quarter, as under the rule `depth`."""

    def cut(ratio: float) -> nn.Module:
        smaller = duplicate(network)
        for parameter, own in zip(smaller.parameters(), network.parameters(), strict=True):
            parameter.grad = None if own.grad is None else own.grad.clone()  # a copy has none; Taylor reads them
        tp.pruner.BasePruner(
            smaller, task.setup.example(smaller), importance, global_pruning=True, pruning_ratio=ratio,
            max_pruning_ratio=0.75, ignored_layers=_kept(smaller),
        ).step()  # fmt: skip
        smaller.zero_grad()
        return smaller.eval()

    return nearest(cut, task.left, task.left(network), task.most, 0.95, 12)


def hesso(task: Task) -> Entry:
    """OTO 3 (Chen et al.): its optimiser HESSO trains and prunes, at the times that its tutorial recommends.

    It prunes in 10 periods from a tenth to a quarter of all steps. How many groups go is found by trying; these
    trainings aren't counted.
    """
    _old_places_in_torch()
    oto = package("only_train_once").OTO
    steps, first = task.recipe.steps, task.recipe.steps // 4
    start = steps // 10

    def trained(sparsity: float) -> nn.Module:
        network = duplicate(task.baseline)
        own = oto(model=network, dummy_input=torch.rand_like(task.setup.example(network)))
        stay = [name for name, _ in network.named_parameters() if name.rpartition(".")[0] in _kept_names(network)]
        own.mark_unprunable_by_param_names(stay)
        optimiser = own.hesso(
            variant="adam", lr=task.setup.rate * task.recipe.lr, first_momentum=0.9, second_momentum=0.999,
            target_group_sparsity=sparsity, start_pruning_step=start, pruning_steps=first - start,
            pruning_periods=min(10, first - start),
        )  # fmt: skip
        with _cuda_means_here():
            _train(network, task, first, optimiser, lambda: None)
        with tempfile.TemporaryDirectory() as folder:
            own.construct_subnet(out_dir=folder)
            return torch.load(own.compressed_model_path, weights_only=False).eval()  # written a line above

    with _silent():
        network = nearest(trained, task.left, task.left(task.baseline), task.most, 0.9, 6)
    return Entry(network, after(task.recipe, first))


def fastnas(task: Task) -> Entry:
    """NVIDIA ModelOpt 0.47: FastNAS, which its guide recommends for vision. PSNR on training crops is its score.

    Widths in steps of one channel, where its default is 32: the guide lowers this for small networks. Its sensitivities
    are kept in the task's folder.
    """
    mtp = package("modelopt.torch.prune")
    package("torchprofile")  # its FLOP counter
    settings = mtp.fastnas.FastNASConfig().model_dump()
    for kind in ("nn.Conv2d", "nn.ConvTranspose2d"):
        settings[kind]["*"]["channel_divisor"] = 1
    pairs = [pair for pair, _ in zip(task.setup.sample_pairs(), range(SCORED), strict=False)]

    @torch.no_grad()
    def psnr(network: nn.Module) -> float:
        errors = [(network(inputs) - targets).square().mean().item() for inputs, targets in pairs]
        return -10 * math.log10(sum(errors) / len(errors))

    whole = task.left(task.baseline)

    def search(gone: float) -> nn.Module:
        network = duplicate(task.baseline)
        smaller, _ = mtp.prune(
            network, mode=[("fastnas", settings)], constraints={"flops": f"{100 * (1 - gone):.3f}%"},
            dummy_input=task.setup.example(network),
            config={"data_loader": pairs, "score_func": psnr, "checkpoint": str(task.scratch / "fastnas.pth")},
        )  # fmt: skip
        return smaller.eval()

    with _silent():
        return Entry(nearest(search, task.left, whole, task.most, 0.99, 6), task.recipe)


PEERS: dict[str, Callable[[Task], Entry]] = {
    "Torch-Pruning, Taylor": taylor,
    "Torch-Pruning, group norm": group_norm,
    "Torch-Pruning, group norm at once": group_norm_at_once,
    "OTO, HESSO": hesso,
    "ModelOpt, FastNAS": fastnas,
}


def _train(
    network: nn.Module, task: Task, steps: int, optimiser: torch.optim.Optimizer, before: Callable[[], Any]
) -> None:
    """The race's images, loss and clipping, at the optimiser's rate; `before`: what a peer does before each step."""
    setup, weight = task.setup, task.recipe.teacher
    recipe = setup.recipe.model_copy(update={"steps": steps})
    network.train()
    for inputs, targets in batches(setup.train, recipe, setup.seed + 1, 0):
        outputs = network(inputs)
        loss = (outputs - targets).abs().mean()
        if weight:
            with torch.no_grad():
                taught = task.baseline(inputs)
            loss = (1 - weight) * loss + weight * (outputs - taught).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        before()
        optimiser.step()
    network.eval()


def _kept_names(network: nn.Module) -> list[str]:
    """Layers whose output channels stay: the one that makes the image, and those in front of a pixel shuffle."""
    layers = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    shuffled = [name for (name, _), (_, then) in itertools.pairwise(layers) if type(then) is nn.PixelShuffle]
    return [*shuffled, [name for name, module in layers if isinstance(module, nn.Conv2d)][-1]]


def _kept(network: nn.Module) -> list[nn.Module]:
    return [network.get_submodule(name) for name in _kept_names(network)]


def _old_places_in_torch() -> None:
    """OTO 3.0.1 looks for private parts of torch.onnx where they were up to torch 2.8."""
    if importlib.util.find_spec("torch.onnx._globals") is None:
        new = "torch.onnx._internal.torchscript_exporter"
        onnx: Any = importlib.import_module("torch.onnx")
        sys.modules["torch.onnx._globals"] = importlib.import_module(f"{new}._globals")
        onnx.symbolic_helper = importlib.import_module(f"{new}.symbolic_helper")
        onnx._optimize_graph = importlib.import_module(f"{new}.utils")._optimize_graph


def _cuda_means_here() -> contextlib.AbstractContextManager[Any]:
    """HESSO puts its masks on a GPU. Without one they stay where they are."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    return mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Peers print as they go, and would break the progress line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
