"""Fine-tune a pruned network, and look for the smallest that passes the gate after it."""

from __future__ import annotations

from pipeline import config, records
from pipeline.schema import flat
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, TRAININGS, control_of, finished, images_of, network_of, scratch


def finetune(params: config.Params, network: str, method: str) -> None:
    """Fine-tune one method's last accepted network, and those around it, until the gate's edge is known."""
    recipe = params.finetune[network]
    from pipeline.pruning import finetune, gate, iterations

    pruned = RESULTS / "prune" / network / method
    candidates = iterations.accepted_networks(pruned)
    points, settings = control_of(params, network), params.settings(method, network)
    with runs.stage("finetune", network, method, flat(recipe) | flat(params.gate, "gate")) as run:
        from pipeline.progress import Progress
        from pipeline.training.setup import load_setup

        setup = load_setup(params, network, RESULTS, TRAININGS)
        _, target = gate.targets(params.gate.reference, points)
        log = iterations.read_log(pruned / "log.json")
        iterations.check_widths(candidates, log, setup)
        work = scratch(
            "finetune", params, network, method, flat(recipe), flat(params.gate), points, flat(settings),
            flat(setup.recipe), setup.rate, *candidates, pruned / "log.json", *images_of(network),
        )  # fmt: skip
        progress = Progress(f"finetune {network} {method}", recipe.steps)
        finetuned = finetune.finetune(candidates, log, setup, settings, recipe, target, work, progress)
        progress.close()

        baseline = network_of(candidates[0], params.networks[network], pruned=False)
        folder = RESULTS / "finetune" / network / method
        figures = finetune.write(finetuned, baseline, setup, target, folder)
        _, place = records.path_of(RESULTS, network, method)
        runs.undone(run, network, method, place)
        run.tell(f"**Result: {figures['mac_percent']:.1f}% of the MACs.** {'; '.join(finetuned.attempts)}")
        run.artifact(folder / "network.pt")
        run.artifact(folder / "attempts.json")
        run.metrics(figures, recipe.steps)
        run.model(finetuned.network, setup.channels, f"{network}-{method}", folder / "network.pt")
        finished(work)


if __name__ == "__main__":
    main(finetune, "network", "method", trains=True)
