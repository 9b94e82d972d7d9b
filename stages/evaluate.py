"""Measure every solution on the test images: the only stage that reads them, once, at the end."""

from __future__ import annotations

from dataclasses import asdict

from pipeline import config, records
from pipeline.files import write_json, write_text
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS


def evaluate(params: config.Params, network: str) -> None:
    """Compare one network's solutions with its baseline and its control on the test images."""
    wanted, methods = params.networks[network], params.run.methods
    with runs.stage("evaluate", network, params={"bootstrap": params.evaluate.bootstrap}) as run:
        from pipeline import cost
        from pipeline.data.dataset import load_images
        from pipeline.evaluation import crops, metrics
        from pipeline.networks import checkpoint
        from pipeline.report import tables
        from pipeline.training.device import choose

        machine = choose(params.device, params.threads, params.precision)
        data = RESULTS / "prepare" / network
        test_sets = records.test_sets(data / "sets")
        images = load_images(data / "test", machine.device)
        paths = {"baseline": RESULTS / "train" / network, "original": RESULTS / "control" / network}
        paths |= {method: RESULTS / "finetune" / network / method for method in methods}
        nets = {name: checkpoint.load(path / "network.pt", wanted.factory)[0] for name, path in paths.items()}
        nets = {name: net.to(machine.device) for name, net in nets.items()}
        crop_border = metrics.border(wanted.task, wanted.scale)
        scores = {name: metrics.measure(net, images, crop_border) for name, net in {"input": None, **nets}.items()}

        size, channels = params.analyze[network].size, images.pair(0)[0].shape[1]
        costs = {name: cost.measure(net, size, channels) for name, net in nets.items()}
        summary = {}
        for name, score in scores.items():
            row = {"psnr": score.mean_psnr, "ssim": score.mean_ssim}
            for key in ("mac", "weights", "activations", "bw") if name in costs else ():
                row[key] = getattr(costs[name], key)
                row[f"{key}_percent"] = 100 * row[key] / getattr(costs["baseline"], key)
            for other in ("baseline", "original"):
                difference = metrics.paired(
                    score.psnr, scores[other].psnr, score.names, params.seed, params.evaluate.bootstrap
                )
                row[f"against_{other}"] = asdict(difference)
            summary[name] = row
        folder = RESULTS / "evaluate" / network
        write_text(folder / "images.csv", tables.images(scores))
        shown = params.report.method
        drops = [base - own for base, own in zip(scores["baseline"].psnr, scores[shown].psnr, strict=True)]
        looks = crops.chosen(dict(zip(images.names, drops, strict=True)))
        for rule, name in looks.items():
            crops.save_frames(folder / "pictures" / rule.replace(" ", "-"), images, images.names.index(name), nets)
        write_json(
            folder / "looks.json", {rule: [name, drops[images.names.index(name)]] for rule, name in looks.items()}
        )
        widths = {name: {layer.name: layer.out_channels for layer in costs[name].layers} for name in nets}
        write_json(folder / "widths.json", widths)
        write_json(folder / "metrics.json", summary)
        sets = {}
        for name in test_sets:
            images = load_images(data / "sets" / name, machine.device)
            sets[name] = {"images": len(images)}
            for solution, net in {"input": None, **nets}.items():
                sets[name][solution] = metrics.measure_set(net, images, wanted.task)
        write_json(folder / "sets.json", sets)
        for name, row in summary.items():
            said = runs.note(name if name in ("input", "baseline", "control") else "solution", network, name)
            child = run.child(f"{network} {name}", {"level": "solution", "network": network, "method": name, **said})
            told = {key: value for key, value in row.items() if not isinstance(value, dict)}
            told["psnr_change_baseline"] = row["against_baseline"]["mean"]
            told["psnr_change_control"] = row["against_original"]["mean"]
            child.metrics({key: round(value, 4) for key, value in told.items()})  # lists cut longer ones off
            child.end()
        for picture in sorted((folder / "pictures").rglob("*.png")):
            run.artifact(picture, f"pictures/{picture.parent.name}")


if __name__ == "__main__":
    main(evaluate, "network")
