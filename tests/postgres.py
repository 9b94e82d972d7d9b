"""A PostgreSQL server of one's own, of Debian's package, on a free port of the loopback: for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def installed() -> list[Path]:
    """The servers' programs that make a data folder, oldest version first."""
    return sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@contextmanager
def served(place: Path) -> Iterator[str]:
    """Run a server with its data in `place`/data; yields what --storage takes."""
    folder, data = installed()[-1].parent, place / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        place.chmod(0o755)
        for above in place.parents[:3]:
            if os.access(above, os.W_OK) and above.name.startswith(("pytest-", "popen-")):
                above.chmod(0o755)
        data.mkdir()
        shutil.chown(data, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/", **user}
    subprocess.run([folder / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], **quiet)
    control = [folder / "pg_ctl", "-D", data, "-w"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    subprocess.run([*control, "-l", data / "log", "-o", options, "start"], **quiet)
    try:
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
