"""DVC that ends with the process that began it: `python -m stages.dvc PROCESS ARGUMENTS`, in a group of its own."""

from __future__ import annotations

import re
import sys

from pipeline.cli import guarded
from pipeline.errors import UserError
from stages.command import end_with_parent


def main() -> None:
    """Run DVC with the arguments behind the first one, the process id of who began it."""
    with guarded("dvc"):
        process = "".join(sys.argv[1:2])
        if not re.fullmatch("[0-9]{1,10}", process):
            raise UserError(f"PROCESS is {process!r}; the process id of who began this is needed, then DVC's arguments")
        end_with_parent(int(process), group=True)
        from dvc.cli import main as dvc

        sys.argv = ["dvc", *sys.argv[2:]]  # what DVC calls itself where it says who is busy
        sys.exit(dvc(sys.argv[1:]))


if __name__ == "__main__":
    main()
