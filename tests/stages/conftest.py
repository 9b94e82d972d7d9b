"""One chain for all files here and all of pytest's workers: making it takes longest."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from chains import ROOT, checkout, run, tiny


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One `dvc repro` of both networks with methods A and D; the first worker that needs it runs it, others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, whole = root / "made-chain", root / "made-chain.whole"
    with (root / "made-chain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():  # the store names this folder: it can't be made elsewhere and renamed
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            checkout(folder, tiny(ROOT / "params.yaml", run__methods=["A", "D"]))
            done = run(folder, "dvc", "repro")
            assert done.returncode == 0, done.stdout + done.stderr
            whole.touch()
    return folder


@pytest.fixture(scope="module")
def repro(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of a file's own, which its tests may change."""
    return shutil.copytree(made, tmp_path_factory.mktemp("chain") / "chain", symlinks=True)
