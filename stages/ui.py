"""Say where MLflow's pages begin: what `make ui` prints before it serves them; no stage of the chain."""

from __future__ import annotations

import argparse

from pipeline import tracking
from stages.command import guarded


def main() -> None:
    """Print the address of the list of networks by MACs kept."""
    parser = argparse.ArgumentParser(prog="python -m stages.ui", description=main.__doc__)
    parser.add_argument("port", type=int, help="where the pages are served")
    port = parser.parse_args().port
    with guarded("ui"):
        print(f"Networks by MACs kept: {tracking.address(f'http://127.0.0.1:{port}')}", flush=True)


if __name__ == "__main__":
    main()
