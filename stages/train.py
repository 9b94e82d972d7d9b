"""Train the baseline: the network that would be shipped without pruning, or take its weights from a file."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline import config, quality, tracking
from pipeline.errors import UserError
from pipeline.files import digest, write_json, write_text
from stages.command import main
from stages.common import RESULTS, finished, flat, given_weights, images_of, scratch


def train(params: config.Params, network: str) -> None:
    """Train one network's baseline, or read train.NETWORK.checkpoint, and measure it on the validation images."""
    recipe, wanted = params.train[network], params.networks[network]
    with tracking.stage("train", network, params=flat(recipe) | flat(wanted)) as run:
        import torch

        from pipeline import checkpoint, networks
        from pipeline.job import load_job
        from pipeline.progress import Progress
        from pipeline.training import NonFiniteLossError, fit

        job = load_job(params, network, RESULTS)
        torch.manual_seed(params.seed)
        net = networks.build(wanted.factory, wanted.args)
        how = given_weights(params, network, net) if recipe.checkpoint else ""
        job.check(net)
        work = scratch("train", params, network, flat(recipe), flat(wanted), *images_of(network))
        progress = Progress(f"train {network}", 0 if how else recipe.steps)
        curve, source = [], {}
        if how:
            progress.say(f"{recipe.checkpoint} instead of training: {how}")
            source = {"checkpoint": recipe.checkpoint, "digest": digest(Path(recipe.checkpoint))}
            run.tags(source | {"weights": how})
            net.to(job.machine.device)
        else:
            try:
                curve = fit(
                    net, job.train, recipe, job.machine, seed=job.seed, validate=job.validate,
                    tick=progress.tick, resume=work / "state.pt",
                )  # fmt: skip
            except NonFiniteLossError as error:
                needed = f"a lower train.{network}.lr or a clip > 0 is needed"
                raise UserError(f"train.{network}: {error}; {needed}") from None
        measured, start = job.quality(net), quality.measure(None, job.validation, job.shave)
        if not math.isfinite(measured.mean_psnr):
            raise UserError(
                f"train.{network}: the baseline gives infinite values or NaN for a validation image, "
                f"{measured.names[[math.isfinite(psnr) for psnr in measured.psnr].index(False)]}"
            )
        progress.say(f"PSNR {measured.mean_psnr:.3f} dB, input {start.mean_psnr:.3f} dB (validation)")
        progress.close()

        folder = RESULTS / "train" / network
        checkpoint.save(folder / "network.pt", net, wanted.factory, wanted.args, {}, source)
        rows = [f"{p.step},{p.psnr:.5f},{p.loss:.6f}\n" for p in curve] or [f"0,{measured.mean_psnr:.5f},\n"]
        write_text(folder / "curve.csv", "step,psnr,loss\n" + "".join(rows))
        figures = {"psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "input_psnr": start.mean_psnr}
        write_json(folder / "metrics.json", figures)
        run.curve("psnr", [(point.step, point.psnr) for point in curve] or [(0, measured.mean_psnr)])
        run.curve("loss", [(point.step, point.loss) for point in curve])
        run.metrics(figures, 0 if how else recipe.steps)
        finished(work)


if __name__ == "__main__":
    main(train, "network")
