"""DVC that ends with the process that began it: `python -m stages.dvc PROCESS ARGUMENTS`, in a group of its own."""

from __future__ import annotations

import sys

from pipeline.cli import guarded
from stages.command import end_with_parent


def main() -> None:
    """Run DVC with the arguments behind the first one, the process id of who began it."""
    end_with_parent(int(sys.argv[1]), group=True)
    with guarded("dvc"):
        from dvc.cli import main as dvc

        sys.argv = ["dvc", *sys.argv[2:]]  # what DVC calls itself where it says who is busy
        sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()
