"""Prune the baseline iteratively by one method's rules."""

from __future__ import annotations

from pipeline import config
from pipeline.files import write_json
from pipeline.schema import flat
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, TRAININGS, control_of, finished, images_of, network_of, scratch

CROP = 96  # pixels; side of the image that the UI shows by iteration


def prune(params: config.Params, network: str, method: str) -> None:
    """Prune one network by one method until a stopping rule holds."""
    settings, active = params.settings(method, network), params.methods[method].rules
    parameters = flat(settings) | flat(params.retrain[network]) | flat(params.gate, "gate")
    parameters |= flat(params.tolerance[network], "tolerance")
    points = control_of(params, network)
    with runs.stage("prune", network, method, parameters | {"rules": " + ".join(active)}) as run:
        from pipeline.evaluation import crops
        from pipeline.networks import checkpoint
        from pipeline.progress import Progress
        from pipeline.pruning import gate, iterations, prune
        from pipeline.training.setup import load_setup

        setup, baseline = load_setup(params, network, RESULTS, TRAININGS), RESULTS / "train" / network / "network.pt"
        target, _ = gate.targets(params.gate.reference, points)
        work = scratch(
            "prune", params, network, method, parameters, active, flat(setup.recipe), setup.size, points[:-1],
            baseline, setup.rate, *images_of(network),
        )  # fmt: skip
        progress = Progress(f"prune {network} {method}", params.retrain[network].max_iterations * setup.iteration_steps)
        net = network_of(baseline, params.networks[network], pruned=False)
        total = setup.cost(net)
        log = prune.prune(
            net, setup, settings, active, target, work, progress,
            on_iteration=lambda iteration: runs.iteration(run, iteration, total.mac, network, method),
        )  # fmt: skip
        progress.close()

        folder = RESULTS / "prune" / network / method
        for path in iterations.write(log, work, folder):
            accepted, _ = checkpoint.load(path, params.networks[network].factory)
            crop = crops.restored(setup.validation, 0, accepted.to(setup.machine.device), CROP)
            run.image(crop, f"validation {setup.validation.names[0]}", int(path.stem.removeprefix("accepted-")))
        last = [iteration for iteration in log if iteration.verdict == "accepted"][-1]
        totals = {
            "iterations": len(log) - 1, "accepted": sum(i.verdict == "accepted" for i in log) - 1,
            "mac_percent": 100 * last.mac / total.mac, "psnr_change": last.psnr_change,
        }  # fmt: skip
        write_json(folder / "metrics.json", totals)
        run.metrics(runs.iteration_figures(last, total.mac), len(log))  # the last step's is what lists show
        run.tell(
            f"**Result: iteration {last.number}, {totals['mac_percent']:.1f}% of the MACs**, before the fine-tune."
        )
        run.artifact(folder / "log.json")
        finished(work)


if __name__ == "__main__":
    main(prune, "network", "method", trains=True)
