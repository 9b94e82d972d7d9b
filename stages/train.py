"""Train the baseline: the network that would be shipped without pruning, or take its weights from a file."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import config
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.files import digest, write_json, write_text
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, finished, flat, given_weights, images_of, scratch

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.setup import Setup


def train(params: config.Params, network: str) -> None:
    """Train one network's baseline, or read train.NETWORK.checkpoint, and measure it on the validation images."""
    recipe, section = params.train[network], params.networks[network]
    with runs.stage("train", network, params=flat(recipe) | flat(section)) as run:
        import torch

        from pipeline import checks, networks
        from pipeline.networks import checkpoint, rebuilt
        from pipeline.progress import Progress
        from pipeline.training.loop import NonFiniteLossError, fit
        from pipeline.training.setup import load_setup

        setup = load_setup(params, network, RESULTS)
        torch.manual_seed(params.seed)
        net = networks.build(section.factory, section.args)
        how = given_weights(params, network, net) if recipe.checkpoint else ""
        checks.check_trainable(setup, net)
        rebuilt.check(section.factory, section.args, net, setup.example())
        work = scratch("train", params, network, flat(recipe), flat(section), *images_of(network))
        progress = Progress(f"train {network}", 0 if how else recipe.steps)
        curve, source = [], {}
        if how:
            progress.say(f"{recipe.checkpoint} instead of training: {how}")
            source = {"checkpoint": recipe.checkpoint, "digest": digest(Path(recipe.checkpoint))}
            run.tags(source | {"weights": how})
            net.to(setup.machine.device)
        else:
            try:
                curve = fit(
                    net, setup.train, recipe, setup.machine, seed=setup.seed, validate=setup.validate,
                    tick=progress.tick, resume=work / "state.pt",
                )  # fmt: skip
            except NonFiniteLossError as error:
                needed = f"a lower train.{network}.lr or a clip > 0 is needed"
                raise UserError(f"train.{network}: {error}; {needed}") from None
        measured, start = setup.quality(net), metrics.measure(None, setup.validation, setup.crop_border)
        if not math.isfinite(measured.mean_psnr):
            raise UserError(
                f"train.{network}: the baseline gives infinite values or NaN for a validation image, "
                f"{measured.names[[math.isfinite(psnr) for psnr in measured.psnr].index(False)]}"
            )
        progress.say(f"PSNR {measured.mean_psnr:.3f} dB, input {start.mean_psnr:.3f} dB (validation)")
        progress.close()
        warn(setup, net, measured.mean_psnr, start.mean_psnr, recipe.checkpoint)

        folder = RESULTS / "train" / network
        checkpoint.save(folder / "network.pt", net, section.factory, section.args, {}, source, setup.example())
        rows = [f"{p.step},{p.psnr:.5f},{p.loss:.6f}\n" for p in curve] or [f"0,{measured.mean_psnr:.5f},\n"]
        write_text(folder / "curve.csv", "step,psnr,loss\n" + "".join(rows))
        figures = {"psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "input_psnr": start.mean_psnr}
        write_json(folder / "metrics.json", figures)
        run.curve("psnr", [(point.step, point.psnr) for point in curve] or [(0, measured.mean_psnr)])
        run.curve("loss", [(point.step, point.loss) for point in curve])
        run.metrics(figures, 0 if how else recipe.steps)
        finished(work)


def warn(setup: Setup, net: nn.Module, psnr: float, start: float, weights: str | None) -> None:
    """Warn of a baseline that is no better than its input, and say what may be wrong with weights from a file."""
    if not math.isfinite(psnr):
        raise UserError(f"train.{setup.name}: the baseline's output isn't finite; a lower lr or a clip > 0 is needed")
    if psnr > start:
        return
    from pipeline.networks.pretrained import measured_range

    sentence = f"the baseline's PSNR of {psnr:.3f} dB is no better than its input's {start:.3f} dB"
    hint = measured_range(net, setup.validate, start) if weights else "it needs more steps, or another lr"
    warnings.warn(
        f"train.{setup.name}: {sentence}; {hint or f'{weights} was trained for something else'}", stacklevel=2
    )


if __name__ == "__main__":
    main(train, "network")
