"""The log of a pruning run: one entry for each iteration, and the networks that it accepted."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline import records
from pipeline.errors import UserError
from pipeline.files import again, write_csv, write_json
from pipeline.networks import checkpoint
from pipeline.records import Figure, Finite, Text, Whole
from pipeline.training.setup import Setup


@dataclass(frozen=True)
class Iteration:
    """The log of one iteration; iteration 0 is the baseline."""

    number: Whole
    verdict: Text  # accepted, rejected
    reason: Text
    lineage: Whole  # iterations of training that the network has behind it, this one included
    alpha: Finite = 0.0
    thresholds: dict[Text, Finite] = field(default_factory=dict)
    removed: dict[Text, Whole] = field(default_factory=dict)  # number of channels of each group that was pruned
    channels: dict[Text, Whole] = field(default_factory=dict)  # of each group afterwards
    widths: dict[Text, Whole] = field(default_factory=dict)  # output channels of each layer afterwards
    mac: Whole = 0
    weights: Whole = 0
    activations: Whole = 0
    bw: Whole = 0
    psnr: Figure = 0.0  # dB, validation
    ssim: Figure = 0.0
    psnr_change: Figure = 0.0  # dB against the gate's reference; plus is better
    ssim_change: Figure = 0.0


PATH = ("number", "verdict", "alpha", "mac", "weights", "activations", "bw", "psnr", "ssim", "psnr_change")


def write(log: list[Iteration], accepted: Path, folder: Path) -> list[Path]:
    """The files of `prune` in `folder`: log.json, path.csv, and networks/ with the accepted ones, which are returned.

    accepted: the folder in which the run left its accepted-NNN.pt.
    """
    networks = folder / "networks"
    shutil.rmtree(networks, ignore_errors=True)
    networks.mkdir(parents=True)
    files = [Path(shutil.copyfile(path, networks / path.name)) for path in sorted(accepted.glob("accepted-*.pt"))]
    write_json(folder / "log.json", [asdict(iteration) for iteration in log])
    write_csv(folder / "path.csv", [PATH, *([getattr(iteration, key) for key in PATH] for iteration in log)])
    return files


def read_log(path: Path) -> list[Iteration]:
    """A log.json of `prune`; UserError when it isn't whole, or its iterations don't follow one another."""
    log: list[Iteration] = records.read(path, list[Iteration])
    if not log:
        records.wrong(path, "has no iterations")
    accepted = 0
    for place, one in enumerate(log):
        if one.number != place:
            records.wrong(path, f"is {one.number} but should be {place}", place, "number")
        if one.verdict not in (("accepted", "rejected") if place else ("accepted",)):
            allowed = "'accepted' or 'rejected'" if place else "'accepted': the baseline"
            records.wrong(path, f"is {one.verdict[:60]!r} but should be {allowed}", place, "verdict")
        if one.verdict == "rejected":
            continue
        if one.lineage != accepted:
            records.wrong(path, f"is {one.lineage}, but {accepted} accepted iterations lie before", place, "lineage")
        if not all(math.isfinite(figure) for figure in (one.psnr, one.ssim, one.psnr_change, one.ssim_change)):
            records.wrong(path, "has quality that is no number though it was accepted", place)
        if not 1 <= one.mac <= log[0].mac or one.widths.keys() != log[0].widths.keys():
            records.wrong(path, "isn't a part of the baseline by its mac or widths", place)
        accepted += 1
    return log


def accepted_networks(folder: Path) -> list[Path]:
    """The networks/accepted-NNN.pt in a method's results, oldest first: those, and only those, that its log.json names.

    UserError when one is missing, or there is another.
    """
    networks, path = folder / "networks", folder / "log.json"
    present = {file.name for file in networks.glob("accepted-*.pt") if file.is_file()}
    if not present:
        raise UserError(f"{networks} holds no accepted-*.pt: prune makes them; {again(networks / 'accepted-000.pt')}")
    logged = [f"accepted-{one.number:03d}.pt" for one in read_log(path) if one.verdict == "accepted"]
    for words, names in (("lacks", set(logged) - present), ("holds", present - set(logged))):
        if names:
            records.wrong(networks, f"{words} {', '.join(sorted(names))}, unlike what {path} says")
    return [networks / name for name in logged]


def check_widths(networks: list[Path], log: list[Iteration], setup: Setup) -> None:
    """UserError when a network isn't as wide as the log of its iteration says."""
    accepted = [one for one in log if one.verdict == "accepted"]
    for path, one in zip(networks, accepted, strict=True):
        network, _ = checkpoint.load(path, setup.network.factory)
        for layer in setup.cost(network).layers:
            if one.widths.get(layer.name) != layer.out_channels:
                records.wrong(
                    path, f"has {layer.out_channels} channels in {layer.name}, unlike iteration {one.number} of the log"
                )
