"""Split the photographs and make each network's inputs and targets."""

from __future__ import annotations

from pipeline import config, quality
from pipeline.data import degradations, photographs
from pipeline.data.raw import Exposures
from pipeline.files import write_json
from stages.common import RESULTS, main


def prepare(params: config.Params, network: str) -> None:
    """Make train, validation and test images of one network's task."""
    from pipeline import tracking

    folder, wanted = RESULTS / "prepare" / network, params.networks[network]
    paths = {path.name: path for path in photographs.list_images(params.photos)}
    listed = params.photos / "splits.json"
    if listed.exists():
        splits = photographs.read_splits(listed, sorted(paths))
    else:
        splits = photographs.make_splits(sorted(paths), params.seed)
    shave = quality.border(wanted.task, wanted.scale)
    minimum = max(params.train[network].patch * wanted.scale, 2 * shave + 8)  # SSIM's window is 7 pixels wide
    made = {}
    with tracking.stage("prepare", network, params={"task": wanted.task, "scale": wanted.scale}) as run:
        for number, (split, names) in enumerate(splits.items()):
            chosen = [paths[name] for name in names]
            if wanted.task == "super_resolution":
                made[split] = degradations.prepare_super_resolution(chosen, wanted.scale, minimum)
            else:
                seed, exposures = params.seed * 10 + number, Exposures(**dict(params.prepare.low_light))
                made[split] = degradations.prepare_low_light(chosen, seed, minimum, split != "train", exposures)
        for split, images in made.items():
            degradations.save_split(folder / f"{split}.npz", images)
        counts = {split: len(names) for split, names in splits.items()}
        write_json(folder / "counts.json", counts)
        run.metrics(counts)
        tracking.parent_of(run).tags({"data": f"{params.prepare.photos}: {counts}"})


if __name__ == "__main__":
    main(prepare, "network")
