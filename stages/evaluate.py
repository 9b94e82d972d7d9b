"""Measure every solution on the test images: the only stage that reads them, once, at the end."""

from __future__ import annotations

from dataclasses import asdict

from pipeline import config, records
from pipeline.files import write_csv, write_json
from pipeline.schema import flat
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS, network_of


def evaluate(params: config.Params, network: str) -> None:
    """Compare one network's solutions with its baseline and its control on the test images."""
    settings, methods, reported = params.networks[network], params.run.methods, params.report.method
    with runs.stage("evaluate", network, params={"bootstrap": params.evaluate.bootstrap}) as run:
        from pipeline import cost
        from pipeline.data.dataset import load_images
        from pipeline.evaluation import crops, metrics
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
        crop_border = metrics.border(settings.task, settings.scale)
        scores = {name: metrics.measure(net, images, crop_border) for name, net in {"input": None, **nets}.items()}

        size, channels = params.analyze[network].size, images.pair(0)[0].shape[1]
        costs = {name: cost.measure(net, size, channels) for name, net in nets.items()}
        summary = {}
        for name, score in scores.items():
            row = {"psnr": score.mean_psnr, "ssim": score.mean_ssim}
            for key in ("mac", "weights", "activations", "bw") if name in costs else ():
                row[key] = getattr(costs[name], key)
                row[f"{key}_percent"] = 100 * row[key] / getattr(costs["baseline"], key)
            for other in ("baseline", "control"):
                difference = metrics.paired(
                    score.psnr, scores[other].psnr, score.names, params.seed, params.evaluate.bootstrap
                )
                row[f"against_{other}"] = asdict(difference)
            if settings.task == "low_light":
                row["psnr_after_colour_fit"] = metrics.psnr_after_colour_fit(nets.get(name), images, crop_border)
            summary[name] = row
        folder = RESULTS / "evaluate" / network
        write_csv(folder / "images.csv", metrics.image_rows(scores))
        pairs = zip(images.names, scores[reported].psnr, scores["baseline"].psnr, strict=True)
        changes = {name: psnr - base for name, psnr, base in pairs}
        samples = crops.samples(changes)
        for reason, name in samples.items():
            frames = folder / "frames" / reason.replace(" ", "-")
            crops.save_frames(frames, images, images.names.index(name), nets)
        write_json(folder / "samples.json", {reason: [name, changes[name]] for reason, name in samples.items()})
        widths = {name: {layer.name: layer.out_channels for layer in costs[name].layers} for name in nets}
        write_json(folder / "widths.json", widths)
        write_json(folder / "metrics.json", summary)
        sets = {}
        for name in test_sets:
            images = load_images(data / "sets" / name, machine.device)
            sets[name] = {"images": len(images)}
            for solution, net in {"input": None, **nets}.items():
                sets[name][solution] = metrics.measure_set(net, images, settings.task)
        write_json(folder / "sets.json", sets)
        for name, row in summary.items():
            note = runs.note(name if name in ("input", "baseline", "control") else "solution", network, name)
            child = run.child(f"{network} {name}", {"level": "solution", "network": network, "method": name, **note})
            figures = {key: value for key, value in row.items() if not isinstance(value, dict)}
            figures |= {f"psnr_change_{other}": row[f"against_{other}"]["mean"] for other in ("baseline", "control")}
            pruned = name in methods
            file = paths[name] / "network.pt" if pruned else None
            child.metrics(figures, 0, runs.model_of(run, f"{network}-{name}", file) if file else None, dataset)
            if pruned:
                child.params(flat(params.settings(name, network)) | {"rules": " + ".join(params.methods[name].rules)})
            child.end()
        for frame in sorted((folder / "frames").rglob("*.png")):
            run.artifact(frame, f"frames/{frame.parent.name}")


if __name__ == "__main__":
    main(evaluate, "network")
