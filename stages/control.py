"""The control: the baseline trained on for as long as a pruned network is, with nothing removed."""

from __future__ import annotations

from dataclasses import replace

from pipeline import config
from pipeline.errors import UserError
from pipeline.schema import flat
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, TRAININGS, finished, images_of, network_of, scratch


def control(params: config.Params, network: str) -> None:
    """Train one baseline on for as many iterations as pruning may take, and for the fine-tune's steps.

    Of given weights, and where the control would end below its baseline, the rates are tried first.
    """
    retrain, last = params.retrain[network], params.finetune[network]
    with runs.stage("control", network, params=flat(retrain) | flat(last, "finetune")) as run:
        from pipeline.progress import Progress
        from pipeline.training.control import BEARABLE, bearable, train_control, write
        from pipeline.training.loop import NonFiniteLossError
        from pipeline.training.setup import load_setup

        section = params.networks[network]
        setup, path = load_setup(params, network, RESULTS, TRAININGS), RESULTS / "train" / network / "network.pt"
        work = scratch("control", params, network, flat(retrain), flat(last), flat(setup.recipe), path,
                       *images_of(network))  # fmt: skip
        progress = Progress(f"control {network}", setup.iteration_steps * retrain.max_iterations + last.steps)
        baseline = network_of(path, section, pruned=False)
        baseline.to(setup.machine.device)
        try:
            factor = bearable(baseline, setup, work, progress) if setup.recipe.checkpoint else 1.0
            trained = train_control(baseline, replace(setup, rate=factor), last, work / f"{factor:g}", progress)
            if trained.change < -BEARABLE and not setup.recipe.checkpoint:
                progress.say(f"PSNR {trained.change:+.4f} dB with nothing removed: are lower rates better?")
                factor = bearable(baseline, setup, work, progress)
                progress.extend(trained.end["steps"])
                trained = train_control(baseline, replace(setup, rate=factor), last, work / f"{factor:g}", progress)
        except NonFiniteLossError as error:
            keys = f"retrain.{network} and finetune.{network}"
            raise UserError(f"control {network}: {error}; lower rates in {keys}, or a clip > 0, are needed") from None
        psnr, change = trained.end["psnr"], trained.change
        progress.say(f"PSNR {psnr:.3f} dB, {change:+.4f} dB against the baseline (validation)")
        progress.close()

        write(trained, factor, setup, RESULTS / "control" / network)
        points = [*trained.curve, trained.end]
        run.curve("psnr", [(point["steps"], point["psnr"]) for point in points])
        run.curve("ssim", [(point["steps"], point["ssim"]) for point in points])
        finished(work)


if __name__ == "__main__":
    main(control, "network", trains=True)
