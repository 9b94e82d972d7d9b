"""Say where MLflow's pages begin: what `make ui` prints before it serves them; no stage of the chain."""

from __future__ import annotations

import re

from pipeline.cli import Parser, guarded
from pipeline.errors import UserError
from pipeline.tracking import store


def main() -> None:
    """Print the address of the list of networks by MACs kept, on the port where the pages are served."""
    parser = Parser(prog="python -m stages.ui", description=main.__doc__)
    parser.add_argument("port", help="1 to 65535")
    with guarded("ui"):
        port = parser.parse_args().port
        if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            raise UserError(f"PORT is {port!r}; a whole number from 1 to 65535 is allowed")
        print(f"Once the server is up: {store.page(f'http://127.0.0.1:{port}')}", flush=True)


if __name__ == "__main__":
    main()
