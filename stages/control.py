"""The control `original`: the training that a pruned network gets, with nothing removed."""

from __future__ import annotations

from pipeline import config, records, tracking
from pipeline.errors import UserError
from pipeline.files import write_json
from stages.command import main
from stages.common import RESULTS, finished, flat, images_of, scratch


def control(params: config.Params, network: str) -> None:
    """Train one baseline on by as many iterations as pruning may take, and by the fine-tune."""
    retrain, last, iterations = params.prune.networks[network], params.finetune[network], params.prune.max_iterations
    with tracking.stage("control", network, params=flat(retrain) | flat(last, "finetune")) as run:
        from pipeline import checkpoint, pruning
        from pipeline.job import load_job
        from pipeline.progress import Progress
        from pipeline.training import NonFiniteLossError

        wanted = params.networks[network]
        job, baseline = load_job(params, network, RESULTS), RESULTS / "train" / network / "network.pt"
        training = {key: value for key, value in flat(retrain).items() if not key.endswith("_loan")}
        work = scratch(
            "control", params, network, training, flat(last), iterations, flat(job.recipe), baseline,
            *images_of(network),
        )  # fmt: skip
        progress = Progress(f"control {network}", job.iteration_steps * iterations + last.steps)
        net, _ = checkpoint.load(baseline, wanted.factory)
        curve = []
        if (work / "curve.json").exists():
            try:
                curve = records.curve(work / "curve.json", job.iteration_steps)
                net, _ = checkpoint.load(work / f"{len(curve) - 1:03d}.pt", wanted.factory)
            except UserError as error:
                curve = []
                progress.say(f"{error}: the control starts anew")
        progress.phase_over(max(0, len(curve) - 1) * job.iteration_steps)
        try:
            for number in range(len(curve), iterations + 1):
                if number:
                    net = pruning.train_iteration(net, job, number, work, progress)
                measured = job.quality(net.to(job.machine.device))
                steps = number * job.iteration_steps
                curve.append({"steps": steps, "psnr": measured.mean_psnr, "ssim": measured.mean_ssim})
                checkpoint.save(work / f"{number:03d}.pt", net, wanted.factory, wanted.args, {})
                write_json(work / "curve.json", curve)
            net = pruning.train_final(net, job, last, work / "finetune.pt", progress)
        except NonFiniteLossError as error:
            keys = f"prune.networks.{network} and finetune.{network}"
            raise UserError(f"control {network}: {error}; lower rates in {keys}, or a clip > 0, are needed") from None
        measured = job.quality(net)
        total = iterations * job.iteration_steps + last.steps
        final = {"steps": total, "psnr": measured.mean_psnr, "ssim": measured.mean_ssim}
        gain = measured.mean_psnr - curve[0]["psnr"]
        progress.say(f"PSNR {measured.mean_psnr:.3f} dB, {gain:+.4f} dB against the baseline (validation)")
        progress.close()

        folder = RESULTS / "control" / network
        checkpoint.save(folder / "network.pt", net, wanted.factory, wanted.args, {})
        write_json(folder / "curve.json", curve)
        write_json(folder / "metrics.json", final | {"psnr_gain": gain})
        run.curve("psnr", [(point["steps"], point["psnr"]) for point in [*curve, final]])
        run.curve("ssim", [(point["steps"], point["ssim"]) for point in [*curve, final]])
        finished(work)


if __name__ == "__main__":
    main(control, "network")
