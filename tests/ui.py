"""Pages in a real browser, Debian's Chromium without a screen: the report, and MLflow's that `make ui` serves."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 120  # for the server to answer, and for a page


@contextmanager
def served(folder: Path, root: Path) -> Iterator[str]:
    """`make ui` in `folder`, a checkout with a store, by the environment of `root`; gives the address."""
    stamps = [(root / name).stat().st_mtime for name in ("requirements.txt", ".venv/ready")]
    assert stamps[0] <= stamps[1], "make setup first: through the link below, make ui would empty the environment"
    shutil.copy2(root / "Makefile", folder)  # with its time, as make compares it
    shutil.copy2(root / "requirements.txt", folder)
    (folder / ".venv").symlink_to(root / ".venv")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "ui.log").open("w")
    server = subprocess.Popen(
        ["make", "ui"], cwd=folder, env=os.environ | {"PORT": str(port)}, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((folder / "ui.log").read_text()) from None
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        log.close()
        for name in (".venv", "Makefile", "requirements.txt", "ui.log"):
            (folder / name).unlink()


def page(address: str, profile: Path) -> str:
    """The page as the browser shows it, after its scripts have run."""
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    words += ["--window-size=1920,1080"]  # lists leave out the columns that a narrower window doesn't show
    words += ["--hide-scrollbars", "--virtual-time-budget=30000", "--dump-dom", address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout


def framed(path: Path, size: tuple[int, int], script: str, profile: Path) -> dict[str, Any]:
    """What `script`, an expression, is in a page on a screen of `size`, width and height; the page is changed.

    The screen is a frame, as a window can't be as narrow as a phone.
    """
    said = f"<script>addEventListener('load', () => parent.postMessage(JSON.stringify({script}), '*'))</script>"
    path.write_text(path.read_text().replace("</body>", f"{said}</body>"))
    frame = path.with_name("frame.html")
    frame.write_text(
        "<script>addEventListener('message', (event) => { document.title = event.data })</script>"
        f'<iframe src="{path.name}" style="border: 0" width="{size[0]}" height="{size[1]}"></iframe>'
    )
    title = re.search(r"<title>(.*?)</title>", page(frame.as_uri(), profile), re.DOTALL)
    assert title
    return json.loads(html.unescape(title[1]))
