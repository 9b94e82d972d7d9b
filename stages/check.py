"""Check params.yaml, or say where the results lie: what `make repro` begins and ends with; no stage of the chain."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import config
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError, under
from pipeline.files import check_folders, read_bytes
from stages.command import end_with_parent, writable
from stages.common import RESULTS, SCRATCH, TRAININGS, given_weights
from stages.mend import mend

ARTIFACTS = Path("mlartifacts")  # MLflow's, beside mlflow.db


def main() -> None:
    """Check the parameters, that the images are there, and the given weights."""
    parser = Parser(prog="python -m stages.check", description=main.__doc__)
    parser.add_argument("--results", action="store_true", help="print the table and where to look next")
    parser.add_argument(
        "--register", action="store_true", help="put each pruned network of report.method into MLflow's registry"
    )
    with guarded("check"):
        options = parser.parse_args()
        if "REPRO_SESSION" in os.environ:  # of make repro, whose end is this one's
            end_with_parent()
        print(register() if options.register else results() if options.results else check())


def check() -> str:
    """Try everything that can be tried before anything trains; what is in order, in one line."""
    mend()
    params = config.read()
    check_folders(RESULTS, params.run.networks, params.run.methods, (TRAININGS, ARTIFACTS))
    print(f"check: reading the images, building and tracing {', '.join(params.run.networks)}", flush=True)
    from pipeline import checks
    from pipeline.prepare import layouts
    from pipeline.training.setup import example

    listings = {network: layouts.checked(params, network, decode=True) for network in params.run.networks}
    for network in params.run.networks:
        net = checks.tried(params, network, listings[network].parts)
        section, recipe, baseline = params.networks[network], params.train[network], RESULTS / "train" / network
        checks.check_code(network, section, baseline / "network.pt")
        if recipe.checkpoint:
            given_weights(params, network, net)
            with under(f"train.{network}.checkpoint {recipe.checkpoint}"):
                checks.check_output(network, section, example(section, recipe, net), net)
            checks.check_unchanged(network, section, recipe.checkpoint, baseline / "network.pt")
    for folder in (RESULTS, SCRATCH):
        writable(folder)
    sources = [source for listing in listings.values() for part in listing.parts.values() for source in part.sources]
    files = {path for source in sources for path in (source.target, source.input) if path}
    return (
        f"check: params.yaml is in order; {', '.join(listings)} can be built, trained and traced; "
        f"all images were read whole, {len(files)} files"
        + ("" if "REPRO_SESSION" in os.environ else "; next: make repro, or dvc repro")
    )


def results() -> str:
    """The report's table, and where to look next."""
    config.read()
    path = RESULTS / "report" / "table.md"
    if not path.exists():
        raise UserError(f"{path} isn't there; dvc repro makes it")
    return (
        f"{read_bytes(path).decode('utf-8', 'replace')}\n"
        f"The report: {RESULTS}/report/index.html, its table: {RESULTS}/report/table.md and .csv\n"
        f"The pruned networks: {RESULTS}/finetune/NETWORK/METHOD/network.pt; every iteration: make ui"
    )


def register() -> str:
    """Put each network's pruned one into MLflow's registry, the one of report.method; their names there, by line."""
    from pipeline.tracking import registry

    params = config.read()
    method = params.report.method
    folder = RESULTS / "finetune"
    return "\n".join(
        f"registered: {registry.register(network, method, folder / network / method / 'network.pt')}"
        for network in params.run.networks
    )


if __name__ == "__main__":
    main()
