"""Check params.yaml, or say where the results lie: what `make repro` begins and ends with; no stage of the chain."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import digest
from stages.command import writable
from stages.common import RESULTS, given_weights
from stages.mend import mend


def main() -> None:
    """Check the parameters, that the images are there, and the given weights."""
    parser = argparse.ArgumentParser(prog="python -m stages.check", description=main.__doc__)
    parser.add_argument("--results", action="store_true", help="print the table and where to look next")
    given = parser.parse_args()
    try:
        if not given.results:  # it comes after a call without it
            mend()
        params = config.read()
        if not given.results:
            from pipeline.data import layouts

            for network in params.run.networks:
                layouts.faultless(params, network)
            for network in params.run.networks:
                check_network(params, network)
                if params.train[network].checkpoint:
                    check_weights(params, network)
        writable(RESULTS)
        table = (RESULTS / "report" / "table.md").read_text(encoding="utf-8") if given.results else ""
    except FileNotFoundError as error:
        print(f"check: error: {error.filename} isn't there; dvc repro makes it", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"check: error: {error}", file=sys.stderr)
        sys.exit(2)
    if given.results:
        print(table)
        print(f"The report: {RESULTS}/report/index.html, its table: {RESULTS}/report/table.md and .csv")
        print(f"The pruned networks: {RESULTS}/finetune/NETWORK/METHOD/network.pt; every iteration: make ui")


def check_network(params: config.Params, network: str) -> None:
    """UserError when a network can't be built, or doesn't do what its task asks for."""
    from pipeline import job, networks

    section = params.networks[network]
    net = networks.build(section.factory, section.args)
    job.check(network, section, job.example(section, params.train[network]), net)
    job.check_sides(section, params.latency.sides, net)


def check_weights(params: config.Params, network: str) -> None:
    """UserError when given weights don't fit, or aren't those that the baseline in results/ was made from.

    DVC compares the path in params.yaml and not the file behind it, which it can't watch only where one is named.
    """
    from pipeline import checkpoint, networks

    wanted, path = params.networks[network], params.train[network].checkpoint
    given_weights(params, network, networks.build(wanted.factory, wanted.args))
    made: dict[str, str] = {}
    with contextlib.suppress(UserError):  # no baseline yet, or one of another network: DVC makes it
        made = checkpoint.load(RESULTS / "train" / network / "network.pt", wanted.factory)[1]["extra"]
    if made.get("checkpoint") == path and made["digest"] != digest(Path(path)):
        raise UserError(
            f"train.{network}.checkpoint: {path} has changed since {RESULTS}/train/{network} was made of it; "
            f"dvc repro -s -f train@{network} reads it anew"
        )


if __name__ == "__main__":
    main()
