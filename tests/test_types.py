"""Type hints are consistent. `make lint` says so too; here it takes its time beside other tests."""

from __future__ import annotations

import subprocess
import sys

from chains import ROOT


def test_mypy_finds_nothing_wrong() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
