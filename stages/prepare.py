"""Split the images and make each network's inputs and targets."""

from __future__ import annotations

import shutil
import sys

from pipeline import config
from pipeline.cli import guarded
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.files import room, write_json
from pipeline.prepare import layouts, pairs
from stages.command import main
from stages.common import RESULTS

SHOWN = 50  # errors of one network that --check prints; SID has thousands of files


def prepare(params: config.Params, network: str) -> None:
    """Make train, validation and test images of one network's task; --check alone says what was found of them."""
    from pipeline.tracking import runs

    folder, entry, section = RESULTS / "prepare" / network, params.networks[network], params.prepare[network]
    listing = layouts.checked(params, network)
    room(RESULTS, sum(part.bytes for part in listing.parts.values()))
    with runs.stage("prepare", network, params={"task": entry.task, "scale": entry.scale}) as run:
        shutil.rmtree(folder / "sets", ignore_errors=True)  # those that params.yaml no longer names
        for name, part in listing.parts.items():
            storage.save_split(folder / name, *pairs.make(part.sources, part.making))
        sets = [name for name in listing.parts if name.startswith("sets/")]
        write_json(folder / "sets" / "names.json", [name.removeprefix("sets/") for name in sets])
        counts = {name: len(part.sources) for name, part in listing.parts.items() if name not in sets}
        write_json(folder / "counts.json", counts)
        run.metrics(counts)
        runs.parent_of(run).tags({"data": f"{section.folder}: {counts}"})


def check() -> None:
    """Say what each network's folders hold, and what of it is missing or broken; status 2 when something is."""
    params, total, broken = config.read(), 0, False
    for network in params.run.networks:
        section, entry = params.prepare[network], params.networks[network]
        listing = layouts.find(params, network, pixels=True)
        print(f"{network}: {entry.task} ×{entry.scale}, layout {section.layout}, {section.folder}")
        for name, part in listing.parts.items():
            print(f"  {name}: {layouts.summary(part)}")
            total += part.bytes
        for error in listing.errors[:SHOWN]:
            print(f"  missing or broken: {error}")
        if len(listing.errors) > SHOWN:
            print(f"  missing or broken: {len(listing.errors) - SHOWN} more")
        if section.layout in layouts.ARCHIVES:
            print(f"  official archives: {layouts.ARCHIVES[section.layout]}")
        broken = broken or bool(listing.errors)
    print(f"prepare will write {total / 1e6:,.1f} MB, and DVC's cache may keep as much again")
    if broken:
        raise UserError("something is missing or broken, as listed above")
    room(RESULTS, total)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        with guarded("prepare --check"):
            check()
    else:
        main(prepare, "network")
