"""The control: the baseline trained on for as long as a pruned network is, with nothing removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import read_sealed, write_json, write_sealed
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, TRAININGS, finished, flat, images_of, scratch

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Quality


def control(params: config.Params, network: str) -> None:
    """Train one baseline on for as many iterations as pruning may take, and for the fine-tune's steps."""
    retrain, last = params.retrain[network], params.finetune[network]
    iterations = retrain.max_iterations
    with runs.stage("control", network, params=flat(retrain) | flat(last, "finetune")) as run:
        from pipeline.networks import checkpoint, duplicate
        from pipeline.progress import Progress
        from pipeline.training import recipes
        from pipeline.training.loop import NonFiniteLossError
        from pipeline.training.setup import load_setup

        section = params.networks[network]
        setup, baseline = load_setup(params, network, RESULTS, TRAININGS), RESULTS / "train" / network / "network.pt"
        work = scratch(
            "control", params, network, flat(retrain), flat(last), flat(setup.recipe), baseline, *images_of(network)
        )  # fmt: skip
        progress = Progress(f"control {network}", setup.iteration_steps * iterations + last.steps)
        net, _ = checkpoint.load(baseline, section.factory)
        teacher, curve = duplicate(net).eval(), []
        if (work / "curve.json").exists():
            try:
                curve = read_sealed(work / "curve.json")["curve"]
                net, _ = checkpoint.load(work / f"{len(curve) - 1:03d}.pt", section.factory)
            except UserError as error:
                curve = []
                progress.say(f"{error}: the control starts anew")
        progress.phase_over(max(0, len(curve) - 1) * setup.iteration_steps)
        try:
            for number in range(len(curve), iterations + 1):
                if number:
                    net = recipes.train_iteration(net, setup, number, work, progress, teacher)
                measured = setup.quality(net.to(setup.machine.device))
                curve.append(point(number * setup.iteration_steps, measured))
                checkpoint.save(
                    work / f"{number:03d}.pt", net, section.factory, section.args, {}, example=setup.example()
                )
                write_sealed(work / "curve.json", {"curve": curve})
            net = recipes.train_final(net, setup, last, work / "finetune.pt", progress, teacher)
        except NonFiniteLossError as error:
            keys = f"retrain.{network} and finetune.{network}"
            raise UserError(f"control {network}: {error}; lower rates in {keys}, or a clip > 0, are needed") from None
        measured = setup.quality(net)
        final = point(iterations * setup.iteration_steps + last.steps, measured)
        change = measured.mean_psnr - curve[0]["psnr"]
        progress.say(f"PSNR {measured.mean_psnr:.3f} dB, {change:+.4f} dB against the baseline (validation)")
        progress.close()

        folder = RESULTS / "control" / network
        checkpoint.save(folder / "network.pt", net, section.factory, section.args, {}, example=setup.example())
        write_json(folder / "curve.json", curve)
        write_json(folder / "end.json", final)
        few = {key: final[key] for key in ("steps", "psnr", "ssim")}  # what `dvc metrics` shows
        write_json(folder / "metrics.json", few | {"psnr_change_baseline": change})
        run.curve("psnr", [(point["steps"], point["psnr"]) for point in [*curve, final]])
        run.curve("ssim", [(point["steps"], point["ssim"]) for point in [*curve, final]])
        finished(work)


def point(steps: int, measured: Quality) -> dict[str, Any]:
    """An entry of the curve: validation quality after so many steps, and that of each image."""
    return {
        "steps": steps, "psnr": measured.mean_psnr, "ssim": measured.mean_ssim,
        "image_psnr": list(measured.psnr), "image_ssim": list(measured.ssim),
    }  # fmt: skip


if __name__ == "__main__":
    main(control, "network")
