"""Pruning in five lines, for a network that a program has at hand: the chain without params.yaml, DVC and MLflow.

    from pipeline import Pruner
    pruner = Pruner(network, images="photos/", task="super_resolution", scale=2)
    result = pruner.run(method="D", minutes=20)
    result.save("small.pt"); result.export("small.onnx"); print(result)

Each step calls what the stage of the same name calls, and leaves the same files. Settings are those of
presets/small.yaml; `minutes` says how many steps.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline import checks, config, export, records
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.files import LOCK, destination, digest, hold, read_json, room, write_bytes, write_json, write_text
from pipeline.networks import checkpoint, duplicate, given, outputs
from pipeline.networks.pretrained import measured_range
from pipeline.prepare import layouts, pairs
from pipeline.progress import Progress
from pipeline.pruner import steps
from pipeline.pruner.arguments import built, check_kind, check_path, file_of, fit_sides, task_of, values_of
from pipeline.pruner.length import Length, check_minutes, fitting, seconds
from pipeline.report import page
from pipeline.training import cache
from pipeline.training.setup import Setup, example, load_setup


@dataclass(frozen=True)
class Result:
    """A pruned network, and what was measured of it."""

    network: nn.Module  # in evaluation mode, on the CPU
    mac_percent: float  # of the baseline's multiply-adds
    psnr_change_baseline: float  # dB on the test images; plus is better
    psnr_change_control: float  # dB, against the baseline with the same extra training and nothing removed
    attempts: tuple[str, ...]  # what the gate said of each fine-tuned network
    verdict: str
    table: str  # of all figures, in Markdown
    report: Path
    section: config.Network
    kept: dict[str, dict[int, list[int]]]
    example: Tensor
    held: nn.Module  # the whole network: files of one that no name builds are checked by it

    def save(self, path: Path | str) -> None:
        """Write the network as a file of plain tensors, which checkpoint.load reads."""
        checkpoint.save(
            file_of(path), self.network, self.section.factory, self.section.args, self.kept, example=self.example
        )

    def export(self, path: Path | str) -> export.Exported:
        """Write the network as one ONNX file, once onnxruntime has computed from it what torch computes."""
        return export.export(self.network, file_of(path), (self.example.shape[1],))

    def __str__(self) -> str:
        own = next((sentence for sentence in self.attempts if sentence.endswith(records.DELIVERED)), self.attempts[-1])
        return f"{self.verdict}\n{own}\n{self.table.partition(chr(10) * 2)[0]}\nreport: {self.report}"


class Pruner:
    """A network, its images and its task; `run` prunes it.

    network: a torch module that is trained, or a file of weights (then `factory`, or spandrel, says of which network).
    images: a folder of photographs, or one with inputs/ and targets/. A splits.json in it may divide them.
    task: super_resolution, restoration or low_light; what the network makes of an image tells, where it isn't given.
    scale: output pixels for an input pixel, along a side. channels: 3 (RGB) or 1 (luma, see data/luma.py); what the
    network takes tells, where it isn't given. output: of a forward that returns several tensors, the one that is
    trained and judged: its place from 0, or its key. noise: of `restoration` of noise made here: its standard deviation
    in 8-bit levels. factory, args: the function that builds the network, package.module:function, and its arguments;
    files name it. norms: whether channels may go that a normalisation takes its statistics over. work: the folder of
    what is unfinished and of the report. It is kept: the same call goes on where it was stopped.

    Raises UserError for whatever can be told before training.
    """

    def __init__(
        self,
        network: nn.Module | Path | str,
        images: Path | str,
        task: str | None = None,
        scale: int | None = None,
        *,
        channels: int | None = None,
        output: int | str | None = None,
        noise: float | None = None,
        factory: str | None = None,
        args: dict[str, Any] | None = None,
        norms: bool = False,
        work: Path | str = "pruned",
    ) -> None:
        check_path("images", images)
        check_path("work", work)
        check_kind("factory", factory, "a text", str | None)
        check_kind("args", args, "a dictionary", dict | None)
        check_kind("norms", norms, "True or False", bool)
        self.work = destination(Path(work), folder=True)
        if self.work == Path(os.path.realpath(images)):  # resolve() raises at a link to itself
            raise UserError(f"{work} is the folder of the images; what is made needs another one, work or --work")
        net, factory, args = built(network, factory, args)
        self.network = outputs.choose(net, output)  # copies of it are made as long as it lives here
        name = type(net).__name__
        self.name = name if config.NAME.fullmatch(name) and name.lower() not in config.RESERVED else "network"
        found_task, found_scale, found_channels = task_of(net)
        task = found_task if task is None else task
        if scale is None and task != "low_light":
            scale = found_scale if task == "super_resolution" else 1
        if task == "low_light" and scale not in (None, 2):
            raise UserError(f"scale is {scale!r}, but low_light always makes 2 pixels of one, along a side")
        section: dict[str, Any] = {"factory": factory, "args": args, "task": task, "output": output}
        if task != "low_light":
            section |= {"scale": scale, "channels": found_channels if channels is None else channels}
        elif channels is not None:
            raise UserError("channels is for the other tasks: low_light always makes RGB of packed Bayer")
        self._values = values_of(self.name, section, images, noise)
        self._values["prune"]["norms"] = norms
        with self._plainly():
            made = self._params("D", Length(1, 1, 1)).networks[self.name]
            made = made.model_copy(update={"scale": found_scale, "channels": found_channels})
            fit_sides(self._values, self.name, checks.multiple(made, net) or 1)
            params = self._params("D", Length(1, 1, 1))
            image = example(self._section, params.train[self.name], net)
            checks.check_output(self.name, self._section, image, net)  # before images, whose sides follow the scale
            self.listing = layouts.find(params, self.name)
            if self.listing.errors:
                more = len(self.listing.errors) - 1
                raise UserError(self.listing.errors[0] + (f" ({more} more images or names are wrong)" if more else ""))
            checks.tried(params, self.name, self.listing.parts)
        room(self.work, sum(part.bytes for part in self.listing.parts.values()))
        write_bytes(self.work / ".probe", b"")  # before any training
        (self.work / ".probe").unlink(missing_ok=True)

    @property
    def _section(self) -> config.Network:
        return config.Network(**self._values["networks"][self.name])

    def _params(self, method: str, length: Length) -> config.Params:
        """All that params.yaml would say."""
        values, name = self._values, self.name
        if method not in values["methods"]:
            raise UserError(f"method is {method!r}; allowed are {', '.join(values['methods'])}")
        retrain = values["retrain"][name] | {"max_iterations": length.iterations, "steps": length.each}
        last = values["finetune"][name] | {"steps": length.last}
        changed = {"run": {"networks": [name], "methods": [method]}, "retrain": {name: retrain}}
        changed |= {"finetune": {name: last}, "report": values["report"] | {"method": method}}
        changed["search"] = values["search"] | {"network": name, "method": method}
        return config.checked_params(values | changed, "Pruner")

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Sentences about params.yaml without its keys."""
        try:
            yield
        except UserError as error:
            sentence = str(error)
            sentence = sentence.removeprefix("Pruner: ").replace(f"the network of {given.NAME!r}", "the network")
            sentence = sentence.replace(f"network '{given.NAME}' that is built twice", "a copy of the network")
            for section in ("networks", "prepare"):
                sentence = sentence.removeprefix(f"{section}.{self.name}: ").removeprefix(f"{section}.{self.name}.")
            raise UserError(sentence) from error.__cause__  # a user's own error, not the same sentence again

    def run(self, method: str = "D", minutes: float = 20) -> Result:
        """Prune by a method of presets/small.yaml in about so many minutes, on one progress line.

        The control is trained first: the network with nothing removed and the same training. Every pruned network must
        hold the quality of the better of the two on validation images; where the fine-tuned one doesn't, channels are
        given back; where it does, some more may go. Test images measure the result once, at the end.
        """
        check_minutes(minutes)
        check_kind("method", method, "a text", str)
        first = self._params(method, Length(1, 1, 1))
        files = [
            (name, source.name, *map(_stamp, _paths(source)))
            for name, part in self.listing.parts.items() for source in part.sources
        ]  # fmt: skip
        image = example(self._section, first.train[self.name], self.network)
        network = cache.weights_digest(self.network), cache.layers_digest(self.network, image)
        folder = self.work / digest(first.model_dump(mode="json"), *network, files, float(minutes))
        try:
            held = hold(folder)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use: the same run goes on in another process; wait for it, or give another work folder"
            ) from None
        with held:
            new = [path.name for path in folder.iterdir()] == [LOCK]
            try:
                steps.prepare(first, self.name, folder, self.listing)
                setup = load_setup(first, self.name, folder)
                self._baseline(setup, folder)
                length = self._length(setup, folder, minutes)
            except UserError:
                if new:  # nothing is trained yet: a refused call leaves no images behind
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            with self._plainly():
                return self._pruned(self._params(method, length), method, folder)

    def _pruned(self, params: config.Params, method: str, folder: Path) -> Result:
        name, section, last = self.name, params.networks[self.name], params.finetune[self.name]
        retrain = params.retrain[name]
        whole = retrain.max_iterations * retrain.steps
        progress = Progress(f"{name} {method}", 2 * (whole + last.steps))
        steps.analyze(params, name, folder)
        steps.control(params, name, folder, progress)
        progress.base = whole + last.steps
        steps.prune(params, name, method, folder, progress)
        progress.base = 2 * whole + last.steps
        steps.finetune(params, name, method, folder, progress)
        progress.close()
        steps.evaluate(params, name, method, folder)
        steps.latency(params, name, method, folder)
        verdict = page.write(folder, folder / "report", params)[0].replace("**", "").replace("\\", "")
        report = self.work / "report.html"
        write_bytes(report, (folder / "report" / "index.html").read_bytes())
        tuned = folder / "finetune" / name / method
        net, meta = checkpoint.load(tuned / "network.pt", section.factory)
        row = records.solutions(folder, name, [method])[method]
        return Result(
            network=net,
            mac_percent=row["mac_percent"],
            psnr_change_baseline=row["against_baseline"]["mean"],
            psnr_change_control=row["against_control"]["mean"],
            attempts=tuple(records.attempts(tuned / "attempts.json")),
            verdict=verdict,
            table=(folder / "report" / "table.md").read_text(encoding="utf-8"),
            report=report,
            section=section,
            kept=meta["kept"],
            example=load_setup(params, name, folder).example(),
            held=self.network,
        )

    def _baseline(self, setup: Setup, folder: Path) -> None:
        """What `train` leaves of weights from a file. UserError for a network that works with other pixel values."""
        place = folder / "train" / self.name
        if (place / "metrics.json").exists():
            return
        net = duplicate(self.network).to(setup.machine.device)
        measured, start = setup.quality(net), metrics.measure(None, setup.validation, setup.crop_border)
        with self._plainly():
            checks.check_baseline(self.name, measured)
        if measured.mean_psnr <= start.mean_psnr:
            sentence = f"the network reaches {measured.mean_psnr:.3f} dB on the validation images"
            if hint := measured_range(net, setup.validate, measured.mean_psnr, start.mean_psnr):
                raise UserError(f"{sentence}; {hint}")
            warnings.warn(
                f"{sentence}, no more than its input's {start.mean_psnr:.3f} dB: it isn't trained, or for other images",
                stacklevel=3,
            )
        section = setup.network
        checkpoint.save(place / "network.pt", net, section.factory, section.args, {}, example=setup.example())
        write_text(place / "curve.csv", f"step,psnr,loss\n0,{measured.mean_psnr:.5f},\n")
        figures = {"psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "input_psnr": start.mean_psnr}
        write_json(place / "metrics.json", figures)

    def _length(self, setup: Setup, folder: Path, minutes: float) -> Length:
        """How many steps fit; measured once, so that a stopped run goes on with the same."""
        path = folder / "length.json"
        if not path.exists():
            write_json(path, asdict(fitting(minutes, *seconds(self.network, setup))))
        return Length(**read_json(path, "iterations", "each", "last"))


def _paths(source: pairs.Source) -> list[Path]:
    return [path for path in (source.target, source.input) if path is not None]


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror}; it was there when this Pruner was made, a new one looks again"
        ) from None
    return status.st_size, status.st_mtime_ns
