"""What the stages of the chain do, for one network in one folder: each leaves the files of the stage of its name.

A step is skipped when its last file is there: a stopped run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from pipeline import config, records
from pipeline.data import storage
from pipeline.data.dataset import load_images
from pipeline.errors import UserError
from pipeline.evaluation import solutions
from pipeline.files import write_json
from pipeline.latency import network_times
from pipeline.networks import checkpoint
from pipeline.prepare import layouts, pairs
from pipeline.progress import Progress
from pipeline.pruning import analysis, gate, iterations
from pipeline.pruning import finetune as finetuning
from pipeline.pruning import prune as pruning
from pipeline.training import control as controls
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.setup import load_setup


def prepare(params: config.Params, name: str, folder: Path, listing: layouts.Listing) -> None:
    place = folder / "prepare" / name
    if (place / "counts.json").exists():
        return
    for split, part in listing.parts.items():
        storage.save_split(place / split, *pairs.make(part.sources, part.making))
    write_json(place / "counts.json", {split: len(part.sources) for split, part in listing.parts.items()})


def _network(folder: Path, stage: str, params: config.Params, name: str) -> nn.Module:
    return checkpoint.load(folder / stage / name / "network.pt", params.networks[name].factory)[0]


def analyze(params: config.Params, name: str, folder: Path) -> None:
    place = folder / "analyze" / name
    if (place / "metrics.json").exists():
        return
    network, setup = _network(folder, "train", params, name), load_setup(params, name, folder)
    analysis.analyze(network, setup, place, params.norms(name))


def control(params: config.Params, name: str, folder: Path, progress: Progress) -> None:
    place, work = folder / "control" / name, folder / "unfinished" / "control"
    if (place / "rate.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    setup = load_setup(params, name, folder, folder / "unfinished" / "trainings")
    baseline = _network(folder, "train", params, name).to(setup.machine.device)
    try:
        factor = controls.bearable(baseline, setup, work, progress)
        rated = replace(setup, rate=factor)
        trained = controls.train_control(baseline, rated, params.finetune[name], work / f"{factor:g}", progress)
    except NonFiniteLossError as error:
        raise UserError(f"the network can't be trained on, even at a hundredth of the usual rate: {error}") from None
    psnr, change = trained.end["psnr"], trained.change
    progress.say(f"control: PSNR {psnr:.3f} dB, {change:+.4f} dB against the network as given (validation)")
    controls.write(trained, factor, setup, place)


def prune(params: config.Params, name: str, method: str, folder: Path, progress: Progress) -> None:
    place, work = folder / "prune" / name / method, folder / "unfinished" / "prune"
    if (place / "path.csv").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    setup = load_setup(params, name, folder, folder / "unfinished" / "trainings")
    retrain = params.retrain[name]
    points = records.control(folder, name, retrain.steps, retrain.max_iterations)
    target, _ = gate.targets(params.gate.reference, points)
    net = _network(folder, "train", params, name)
    log = pruning.prune(net, setup, params.settings(method, name), params.methods[method].rules, target, work, progress)
    iterations.write(log, work, place)


def finetune(params: config.Params, name: str, method: str, folder: Path, progress: Progress) -> None:
    place, work = folder / "finetune" / name / method, folder / "unfinished" / "finetune"
    if (place / "metrics.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    setup = load_setup(params, name, folder, folder / "unfinished" / "trainings")
    retrain, pruned = params.retrain[name], folder / "prune" / name / method
    points = records.control(folder, name, retrain.steps, retrain.max_iterations)
    _, target = gate.targets(params.gate.reference, points)
    done = finetuning.finetune(
        iterations.accepted_networks(pruned), iterations.read_log(pruned / "log.json"), setup,
        params.settings(method, name), params.finetune[name], target, work, progress,
    )  # fmt: skip
    finetuning.write(done, _network(folder, "train", params, name), setup, target, place)


def evaluate(params: config.Params, name: str, method: str, folder: Path) -> None:
    place, section = folder / "evaluate" / name, params.networks[name]
    if (place / "sets.json").exists():
        return
    setup = load_setup(params, name, folder)
    images = load_images(folder / "prepare" / name / "test", setup.machine.device)
    nets = {"baseline": _network(folder, "train", params, name), "control": _network(folder, "control", params, name)}
    nets[method] = checkpoint.load(folder / "finetune" / name / method / "network.pt", section.factory)[0]
    nets = {key: net.to(setup.machine.device) for key, net in nets.items()}
    costs = {key: setup.cost(net) for key, net in nets.items()}
    solutions.evaluate(nets, costs, images, params, name, place)
    write_json(place / "sets.json", {})


def latency(params: config.Params, name: str, method: str, folder: Path) -> None:
    path = folder / "latency" / name / "latency.json"
    if path.exists():
        return
    baseline, image = _network(folder, "train", params, name), load_setup(params, name, folder).example()
    pruned, meta = checkpoint.load(folder / "finetune" / name / method / "network.pt", params.networks[name].factory)
    timings = network_times.timings(baseline, pruned, meta["kept"], method, image, params.latency, params.threads)
    write_json(path, timings)
