"""Fine-tune a pruned network; an iteration whose loan isn't paid back is undone."""

from __future__ import annotations

from pipeline import config, tracking
from pipeline.files import write_json
from stages.command import main
from stages.common import RESULTS, control_of, finished, flat, images_of, scratch


def finetune(params: config.Params, network: str, method: str) -> None:
    """Fine-tune one method's last accepted network until the gate lets it pass."""
    recipe = params.finetune[network]
    from pipeline import pruning

    pruned = RESULTS / "prune" / network / method
    candidates = pruning.accepted_networks(pruned)
    curve = control_of(params, network)
    with tracking.stage("finetune", network, method, flat(recipe) | flat(params.gate, "gate")) as run:
        from pipeline import checkpoint
        from pipeline.job import channels, load_job
        from pipeline.progress import Progress

        job = load_job(params, network, RESULTS)
        pruning.check_widths(candidates, pruning.read_log(pruned / "log.json"), job)
        reference = curve[-1] if params.gate.reference == "control" else curve[0]
        work = scratch(
            "finetune", params, network, method, flat(recipe), flat(params.gate), reference, flat(job.recipe),
            *candidates, *images_of(network),
        )  # fmt: skip
        progress = Progress(f"finetune {network} {method}", recipe.steps)
        target = (reference["psnr"], reference["ssim"])
        done = pruning.finetune(candidates, job, recipe, target, work, progress)
        net = done.network
        measured, spent = job.quality(net), job.cost(net)
        whole = job.cost(checkpoint.load(candidates[0], params.networks[network].factory)[0])
        progress.close()

        figures = {
            "mac_kept": spent.mac / whole.mac, "bw_kept": spent.bw / whole.bw, "psnr": measured.mean_psnr,
            "ssim": measured.mean_ssim, "psnr_drop": target[0] - measured.mean_psnr,
            "ssim_drop": target[1] - measured.mean_ssim, "steps": done.steps,
        }  # fmt: skip
        folder = RESULTS / "finetune" / network / method
        wanted = params.networks[network]
        checkpoint.save(folder / "network.pt", net, wanted.factory, wanted.args, done.kept)
        write_json(folder / "attempts.json", done.attempts)
        write_json(folder / "metrics.json", figures)
        run.metrics(figures, recipe.steps)
        run.tell(f"**Result: {100 * figures['mac_kept']:.1f}% of the MACs.** {'; '.join(done.attempts)}")
        run.artifact(folder / "network.pt")
        run.artifact(folder / "attempts.json")
        run.model(net, channels(job.network), f"{network}-{method}")
        finished(work)


if __name__ == "__main__":
    main(finetune, "network", "method")
