"""What the stages of the chain do, for one network in one folder: each leaves the files of the stage of its name.

A step is skipped when its last file is there: a stopped run goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import config, cost, records
from pipeline.data import storage
from pipeline.data.dataset import load_images
from pipeline.errors import UserError
from pipeline.evaluation import crops, metrics
from pipeline.files import write_csv, write_json
from pipeline.latency import layer_times, network_times
from pipeline.networks import checkpoint
from pipeline.prepare import layouts, pairs
from pipeline.progress import Progress
from pipeline.pruning import coupling, gate, importance, iterations
from pipeline.pruning import finetune as finetuning
from pipeline.pruning import prune as pruning
from pipeline.training.control import bearable, train_control
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
    setup, net = load_setup(params, name, folder), _network(folder, "train", params, name)
    spent, coupled = setup.cost(net), coupling.find_groups(net, setup.example(net))
    reference = importance.reference_magnitudes(net, coupled)
    channels = {group.name: group.channels for group in coupled.groups}
    states = importance.group_states(net, spent, coupled, reference, channels)
    groups = []
    for group, state in zip(coupled.groups, states, strict=True):
        ranked = sorted(state.importances)
        groups.append({
            "name": group.name, "channels": group.channels, "producers": list(group.producers),
            "readers": list(group.readers), "mac_per_channel": state.mac, "weights_per_channel": state.weights,
            "importance": {"least": ranked[0], "median": ranked[len(ranked) // 2], "largest": ranked[-1]},
        })  # fmt: skip
    write_json(place / "groups.json", {"groups": groups, "frozen": list(coupled.frozen)})
    header = ("layer", "channels", "mac", "weights", "activations", "bw", "mac_per_weight")
    rows = [
        (layer.name, layer.out_channels, layer.mac, layer.weights, layer.activations, layer.bw,
         f"{layer.mac_per_weight:.1f}")
        for layer in spent.layers
    ]  # fmt: skip
    write_csv(place / "layers.csv", [header, *rows])
    totals = {"mac": spent.mac, "weights": spent.weights, "activations": spent.activations, "bw": spent.bw}
    write_json(place / "metrics.json", totals)


def control(params: config.Params, name: str, folder: Path, progress: Progress) -> None:
    place, work, section = folder / "control" / name, folder / "unfinished" / "control", params.networks[name]
    if (place / "rate.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    setup = load_setup(params, name, folder, folder / "unfinished" / "trainings")
    baseline = _network(folder, "train", params, name).to(setup.machine.device)
    try:
        factor = bearable(baseline, setup, work, progress)
        rated = replace(setup, rate=factor)
        trained = train_control(baseline, rated, params.finetune[name], work / f"{factor:g}", progress)
    except NonFiniteLossError as error:
        raise UserError(f"the network can't be trained on, even at a hundredth of the usual rate: {error}") from None
    psnr, change = trained.end["psnr"], trained.change
    progress.say(f"control: PSNR {psnr:.3f} dB, {change:+.4f} dB against the network as given (validation)")
    checkpoint.save(place / "network.pt", trained.network, section.factory, section.args, {}, example=setup.example())
    write_json(place / "curve.json", trained.curve)
    write_json(place / "end.json", trained.end)
    write_json(place / "rate.json", {"factor": factor})


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
    shutil.rmtree(place / "networks", ignore_errors=True)
    (place / "networks").mkdir(parents=True)
    for path in sorted(work.glob("accepted-*.pt")):
        shutil.copyfile(path, place / "networks" / path.name)
    write_json(place / "log.json", [asdict(iteration) for iteration in log])
    columns = ("number", "verdict", "alpha", "mac", "weights", "activations", "bw", "psnr", "ssim", "psnr_change")
    write_csv(place / "path.csv", [columns, *([getattr(iteration, key) for key in columns] for iteration in log)])


def finetune(params: config.Params, name: str, method: str, folder: Path, progress: Progress) -> None:
    place, work, section = (
        folder / "finetune" / name / method,
        folder / "unfinished" / "finetune",
        params.networks[name],
    )
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
    measured, spent = setup.quality(done.network), setup.cost(done.network)
    whole = setup.cost(_network(folder, "train", params, name))
    checkpoint.save(
        place / "network.pt", done.network, section.factory, section.args, done.kept, example=setup.example()
    )
    write_json(place / "attempts.json", done.attempts)
    write_json(place / "metrics.json", {
        "mac_percent": 100 * spent.mac / whole.mac, "bw_percent": 100 * spent.bw / whole.bw,
        "psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "psnr_change": measured.mean_psnr - target.mean_psnr,
        "ssim_change": measured.mean_ssim - target.mean_ssim, "steps": done.steps,
    })  # fmt: skip


def evaluate(params: config.Params, name: str, method: str, folder: Path) -> None:
    place, section = folder / "evaluate" / name, params.networks[name]
    if (place / "sets.json").exists():
        return
    setup = load_setup(params, name, folder)
    images = load_images(folder / "prepare" / name / "test", setup.machine.device)
    nets = {"baseline": _network(folder, "train", params, name), "control": _network(folder, "control", params, name)}
    nets[method] = checkpoint.load(folder / "finetune" / name / method / "network.pt", section.factory)[0]
    nets = {key: net.to(setup.machine.device) for key, net in nets.items()}
    scores = {key: metrics.measure(net, images, setup.crop_border) for key, net in {"input": None, **nets}.items()}
    costs = {key: setup.cost(net) for key, net in nets.items()}
    summary: dict[str, dict[str, Any]] = {}
    for key, score in scores.items():
        row: dict[str, Any] = {"psnr": score.mean_psnr, "ssim": score.mean_ssim}
        for one in records.COSTS if key in costs else ():
            row[one] = getattr(costs[key], one)
            row[f"{one}_percent"] = 100 * row[one] / getattr(costs["baseline"], one)
        for other in ("baseline", "control"):
            row[f"against_{other}"] = asdict(
                metrics.paired(score.psnr, scores[other].psnr, score.names, params.seed, params.evaluate.bootstrap)
            )
        summary[key] = row
    write_csv(place / "images.csv", metrics.image_rows(scores))
    each = zip(images.names, scores[method].psnr, scores["baseline"].psnr, strict=True)
    changes = {image: psnr - base for image, psnr, base in each}
    samples = crops.samples(changes)
    for reason, image in samples.items():
        crops.save_frames(place / "frames" / reason.replace(" ", "-"), images, images.names.index(image), nets)
    write_json(place / "samples.json", {reason: [image, changes[image]] for reason, image in samples.items()})
    widths = {key: {layer.name: layer.out_channels for layer in costs[key].layers} for key in nets}
    write_json(place / "widths.json", widths)
    write_json(place / "metrics.json", summary)
    write_json(place / "sets.json", {})


def latency(params: config.Params, name: str, method: str, folder: Path) -> None:
    path, section, settings = folder / "latency" / name / "latency.json", params.networks[name], params.latency
    if path.exists():
        return
    setup, side, width = load_setup(params, name, folder), max(settings.sides), network_times.simd_width()
    baseline = _network(folder, "train", params, name)
    pruned, meta = checkpoint.load(folder / "finetune" / name / method / "network.pt", section.factory)
    rounded = f"{method}, to {width}"
    nets = {"baseline": baseline, method: pruned}
    nets[rounded] = network_times.aligned(baseline, meta["kept"], setup.example(baseline), width)
    macs = {key: cost.measure(net, (side, side), setup.channels).mac for key, net in nets.items()}
    if macs[rounded] in (macs[method], macs["baseline"]):  # one of them again: nothing to measure
        del nets[rounded]
    rows, left_out = network_times.measure(nets, settings.sides, setup.channels, settings.repeats, params.threads)
    write_json(path, {
        "processor": network_times.processor(),
        "simd_width": width,
        "threads": params.threads,
        "mac_percent": {key: 100 * mac / macs["baseline"] for key, mac in macs.items()},
        "networks": rows,
        "left_out": left_out,
        "side": side,
        "layers": layer_times.measure(
            {"baseline": baseline, method: pruned}, side, setup.channels, settings.repeats
        ),
    })  # fmt: skip
