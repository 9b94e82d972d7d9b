"""What every solution is worth on the test images, against the baseline and the control: the files of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import config
from pipeline.evaluation import crops, metrics
from pipeline.files import write_csv, write_json
from pipeline.records import COSTS

REFERENCES = ("baseline", "control")


def evaluate(
    networks: dict[str, nn.Module],
    costs: Mapping[str, Any],
    images: Any,
    params: config.Params,
    name: str,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """One row for each solution and for the input: quality, costs in absolute figures and in percent of the baseline's,
    and the paired difference to each reference. Written to `folder`, with each image's figures and the frames shown.

    networks: by solution, `baseline` and `control` among them. costs: of each (cost.Cost). images: the test split
    (data.dataset.Images).
    """
    section, reported = params.networks[name], params.report.method
    border = metrics.border(section.task, section.scale, section.channels)
    scores = {key: metrics.measure(net, images, border) for key, net in {"input": None, **networks}.items()}
    summary: dict[str, dict[str, Any]] = {}
    for key, score in scores.items():
        row: dict[str, Any] = {"psnr": score.mean_psnr, "ssim": score.mean_ssim}
        for one in COSTS if key in costs else ():
            row[one] = getattr(costs[key], one)
            row[f"{one}_percent"] = 100 * row[one] / getattr(costs["baseline"], one)
        for other in REFERENCES:
            difference = metrics.paired(
                score.psnr, scores[other].psnr, score.names, params.seed, params.evaluate.bootstrap
            )
            row[f"against_{other}"] = asdict(difference)
        if section.task == "low_light":
            row["psnr_after_colour_fit"] = metrics.psnr_after_colour_fit(networks.get(key), images, border)
        summary[key] = row
    write_csv(folder / "images.csv", metrics.image_rows(scores))
    each = zip(images.names, scores[reported].psnr, scores["baseline"].psnr, strict=True)
    changes = {image: psnr - base for image, psnr, base in each}
    samples = crops.samples(changes)
    for reason, image in samples.items():
        frames = folder / "frames" / reason.replace(" ", "-")
        crops.save_frames(frames, images, images.names.index(image), networks)
    write_json(folder / "samples.json", {reason: [image, changes[image]] for reason, image in samples.items()})
    widths = {key: {layer.name: layer.out_channels for layer in costs[key].layers} for key in networks}
    write_json(folder / "widths.json", widths)
    write_json(folder / "metrics.json", summary)
    return summary
