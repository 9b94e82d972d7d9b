"""Fine-tune a pruned network; an iteration that stays below the gate is undone."""

from __future__ import annotations

from pipeline import config
from pipeline.files import write_json
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, control_of, finished, flat, images_of, scratch


def finetune(params: config.Params, network: str, method: str) -> None:
    """Fine-tune one method's last accepted network until the gate lets it pass."""
    recipe = params.finetune[network]
    from pipeline.pruning import finetune, iterations

    pruned = RESULTS / "prune" / network / method
    candidates = iterations.accepted_networks(pruned)
    curve = control_of(params, network)
    with runs.stage("finetune", network, method, flat(recipe) | flat(params.gate, "gate")) as run:
        from pipeline.networks import checkpoint
        from pipeline.progress import Progress
        from pipeline.training.setup import channels, load_setup

        setup = load_setup(params, network, RESULTS)
        iterations.check_widths(candidates, iterations.read_log(pruned / "log.json"), setup)
        reference = curve[-1] if params.gate.reference == "control" else curve[0]
        work = scratch(
            "finetune", params, network, method, flat(recipe), flat(params.gate), reference, flat(setup.recipe),
            *candidates, *images_of(network),
        )  # fmt: skip
        progress = Progress(f"finetune {network} {method}", recipe.steps)
        target = (reference["psnr"], reference["ssim"])
        done = finetune.finetune(candidates, setup, recipe, target, work, progress)
        net = done.network
        measured, spent = setup.quality(net), setup.cost(net)
        whole = setup.cost(checkpoint.load(candidates[0], params.networks[network].factory)[0])
        progress.close()

        figures = {
            "mac_percent": 100 * spent.mac / whole.mac, "bw_percent": 100 * spent.bw / whole.bw,
            "psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "psnr_change": measured.mean_psnr - target[0],
            "ssim_change": measured.mean_ssim - target[1], "steps": done.steps,
        }  # fmt: skip
        folder = RESULTS / "finetune" / network / method
        wanted = params.networks[network]
        checkpoint.save(folder / "network.pt", net, wanted.factory, wanted.args, done.kept, example=setup.example())
        write_json(folder / "attempts.json", done.attempts)
        write_json(folder / "metrics.json", figures)
        run.metrics(figures, recipe.steps)
        run.tell(f"**Result: {figures['mac_percent']:.1f}% of the MACs.** {'; '.join(done.attempts)}")
        run.artifact(folder / "network.pt")
        run.artifact(folder / "attempts.json")
        run.model(net, channels(setup.network), f"{network}-{method}")
        finished(work)


if __name__ == "__main__":
    main(finetune, "network", "method")
