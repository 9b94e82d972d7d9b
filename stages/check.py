"""Check params.yaml, or say where the results lie: what `make repro` begins and ends with; no stage of the chain."""

from __future__ import annotations

import argparse
import sys

from pipeline import config
from pipeline.data.photographs import list_images
from pipeline.errors import UserError
from stages.common import RESULTS, writable


def main() -> None:
    """Check the parameters and the photographs' folder."""
    parser = argparse.ArgumentParser(prog="python -m stages.check", description=main.__doc__)
    parser.add_argument("--networks", action="store_true", help="print the networks that the chain runs over")
    parser.add_argument("--results", action="store_true", help="print the table and where to look next")
    given = parser.parse_args()
    try:
        params = config.read()
        list_images(params.photos)
        writable(RESULTS)
    except UserError as error:
        print(f"check: error: {error}", file=sys.stderr)
        sys.exit(2)
    if given.networks:
        print(*params.run.networks)
    if given.results:
        print((RESULTS / "report" / "table.md").read_text(encoding="utf-8"))
        print(f"The table: {RESULTS}/report/table.md and .csv; pictures: {RESULTS}/report/pictures/")
        print(f"The pruned networks: {RESULTS}/finetune/NETWORK/METHOD/network.pt; every iteration: make ui")


if __name__ == "__main__":
    main()
