"""Train the baseline: the network that would be shipped without pruning, or take its weights from a file."""

from __future__ import annotations

from pathlib import Path

from pipeline import config
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.files import digest, write_json, write_text
from pipeline.schema import flat
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, finished, given_weights, images_of, scratch


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
        for split in ("train", "validation"):
            run.data(RESULTS / "prepare" / network / split, split)
        torch.manual_seed(params.seed)
        net = networks.build(section.factory, section.args, section.output)
        how = given_weights(params, network, net)
        checks.check_trainable(setup, net)
        rebuilt.check(section.factory, section.args, net, setup.example())
        work = scratch("train", params, network, flat(recipe), flat(section), *images_of(network))
        progress = Progress(f"train {network}", 0 if how else recipe.steps)
        curve, source = [], {}
        if recipe.checkpoint:
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
        checks.check_baseline(network, measured)
        progress.say(f"PSNR {measured.mean_psnr:.3f} dB, input {start.mean_psnr:.3f} dB (validation)")
        progress.close()
        checks.warn_of_baseline(setup, net, measured.mean_psnr, start.mean_psnr, recipe.checkpoint)

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


if __name__ == "__main__":
    main(train, "network", trains=True)
