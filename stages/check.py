"""Check params.yaml, or say where the results lie: what `make repro` begins and ends with; no stage of the chain."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import config
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError, under
from pipeline.files import digest, read_bytes
from stages.command import writable
from stages.common import RESULTS, SCRATCH, given_weights
from stages.mend import mend

if TYPE_CHECKING:
    from torch import nn


def main() -> None:
    """Check the parameters, that the images are there, and the given weights."""
    parser = Parser(prog="python -m stages.check", description=main.__doc__)
    parser.add_argument("--results", action="store_true", help="print the table and where to look next")
    parser.add_argument(
        "--register", action="store_true", help="put each pruned network of report.method into MLflow's registry"
    )
    with guarded("check"):
        given = parser.parse_args()
        if given.register:
            register(config.read())
            return
        if not given.results:  # it comes after a call without it
            mend()
        params = config.read()
        if not given.results:
            from pipeline.checks import tried
            from pipeline.prepare import layouts

            found = {network: layouts.checked(params, network, decode=True) for network in params.run.networks}
            for network in params.run.networks:
                net = tried(params, network, found[network].parts)
                check_code(params, network)
                if params.train[network].checkpoint:
                    check_weights(params, network, net)
        for folder in (RESULTS, SCRATCH):
            writable(folder)
        path = RESULTS / "report" / "table.md"
        if given.results and not path.exists():
            raise UserError(f"{path} isn't there; dvc repro makes it")
        table = read_bytes(path).decode("utf-8", "replace") if given.results else ""
    if not given.results:
        parts = [part for listing in found.values() for part in listing.parts.values()]
        files = {path for part in parts for source in part.sources for path in (source.target, source.input) if path}
        print(
            f"check: params.yaml is in order; {', '.join(found)} can be built, trained and traced; "
            f"all images were read whole, {len(files)} files"
            + ("" if "REPRO_SESSION" in os.environ else "; next: make repro, or dvc repro")
        )
    if given.results:
        print(table)
        print(f"The report: {RESULTS}/report/index.html, its table: {RESULTS}/report/table.md and .csv")
        print(f"The pruned networks: {RESULTS}/finetune/NETWORK/METHOD/network.pt; every iteration: make ui")


def register(params: config.Params) -> None:
    """Put each network's pruned one into MLflow's registry, the one of report.method."""
    from pipeline.tracking import runs

    method = params.report.method
    for network in params.run.networks:
        file = RESULTS / "finetune" / network / method / "network.pt"
        print(f"registered: {runs.register(network, method, file)}")


def check_code(params: config.Params, network: str) -> None:
    """UserError when a user's network computes something else than when the baseline in results/ was made.

    DVC doesn't watch the file of a factory's function; it does watch this project's own networks.
    """
    from pipeline.networks import checkpoint

    wanted, path = params.networks[network], RESULTS / "train" / network / "network.pt"
    try:
        made = checkpoint.metadata(path)
    except UserError:  # no baseline yet, or a damaged one: DVC makes it
        return
    if ":" in wanted.factory and (made["name"], made["args"]) == (wanted.factory, wanted.args):
        with under(f"networks.{network}"):
            checkpoint.load(path, wanted.factory)


def check_weights(params: config.Params, network: str, net: nn.Module) -> None:
    """UserError when given weights don't fit, or aren't those that the baseline in results/ was made from.

    DVC compares the path in params.yaml and not the file behind it, which it can't watch only where one is named.
    """
    from pipeline import checks
    from pipeline.networks import checkpoint
    from pipeline.training.setup import example

    wanted, path = params.networks[network], params.train[network].checkpoint
    given_weights(params, network, net)
    with under(f"train.{network}.checkpoint {path}"):
        checks.check_output(network, wanted, example(wanted, params.train[network], net), net)
    made: dict[str, str] = {}
    with contextlib.suppress(UserError):  # no baseline yet, or one of another network: DVC makes it
        made = checkpoint.load(RESULTS / "train" / network / "network.pt", wanted.factory)[1]["extra"]
    if made.get("checkpoint") == path and made["digest"] != digest(Path(path)):
        raise UserError(
            f"train.{network}.checkpoint: {path} has changed since {RESULTS}/train/{network} was made of it; "
            f"dvc repro -s -f train@{network} reads it anew"
        )


if __name__ == "__main__":
    with guarded("check"):
        main()
