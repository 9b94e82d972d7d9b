"""Measure every solution on the test images: the only stage that reads them, once, at the end."""

from __future__ import annotations

from pipeline import config, records
from pipeline.files import write_json
from pipeline.schema import flat
from pipeline.tracking import registry, runs
from pipeline.tracking.run import note
from stages.command import main
from stages.common import RESULTS, network_of


def evaluate(params: config.Params, network: str) -> None:
    """Compare one network's solutions with its baseline and its control on the test images."""
    settings, methods = params.networks[network], params.run.methods
    with runs.stage("evaluate", network, params={"bootstrap": params.evaluate.bootstrap}) as run:
        from pipeline import cost
        from pipeline.data.dataset import load_images
        from pipeline.evaluation import metrics, solutions
        from pipeline.training.device import choose

        machine = choose(params.device, params.threads, params.precision)
        data = RESULTS / "prepare" / network
        test_sets = records.test_sets(data / "sets")
        images = load_images(data / "test", machine.device)
        dataset = run.data(data / "test", "test")
        paths = {"baseline": RESULTS / "train" / network, "control": RESULTS / "control" / network}
        paths |= {method: RESULTS / "finetune" / network / method for method in methods}
        nets = {name: network_of(path / "network.pt", settings, name in methods) for name, path in paths.items()}
        nets = {name: net.to(machine.device) for name, net in nets.items()}
        size, channels = params.analyze[network].size, images.pair(0)[0].shape[1]
        costs = {name: cost.measure(net, size, channels) for name, net in nets.items()}
        folder = RESULTS / "evaluate" / network
        summary = solutions.evaluate(nets, costs, images, params, network, folder)
        sets: dict[str, dict[str, int | dict[str, float]]] = {}
        for name in test_sets:
            images = load_images(data / "sets" / name, machine.device)
            sets[name] = {"images": len(images)}
            for solution, net in {"input": None, **nets}.items():
                sets[name][solution] = metrics.measure_set(net, images, settings.task)
        write_json(folder / "sets.json", sets)
        for name, row in summary.items():
            about = note(name if name in ("input", "baseline", "control") else "solution", network, name)
            child = run.child(f"{network} {name}", {"level": "solution", "network": network, "method": name, **about})
            figures = {key: value for key, value in row.items() if not isinstance(value, dict)}
            figures |= {f"psnr_change_{other}": row[f"against_{other}"]["mean"] for other in ("baseline", "control")}
            pruned = name in methods
            file = paths[name] / "network.pt" if pruned else None
            child.metrics(figures, 0, registry.model_of(run, f"{network}-{name}", file) if file else None, dataset)
            if pruned:
                child.params(flat(params.settings(name, network)) | {"rules": " + ".join(params.methods[name].rules)})
            child.end()
        for frame in sorted((folder / "frames").rglob("*.png")):
            run.artifact(frame, f"frames/{frame.parent.name}")


if __name__ == "__main__":
    main(evaluate, "network")
