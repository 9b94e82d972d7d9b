"""Chains in miniature for the tests: the files of a clone, a preset cut down to seconds, ten photographs."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import forks
import psutil
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
OURS = ("DVC_", "MLFLOW_", "REPRO_", "MAKE", "MFLAGS")  # of the chain or the make that the tests may run below
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(OURS)},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
}
SPLITS = {
    "train": ["es_badlands0.jpg", "es_canyon1.jpg", "es_snow1.jpg", "es_beach0.jpg"],
    "validation": ["es_mountain1.jpg", "es_mountain2.jpg"],
    "test": ["es_city0.jpg", "es_city1.jpg"],
}


def tiny(path: Path, **changes: Any) -> dict[str, Any]:
    """A preset of the repository cut down to seconds; `changes` are dotted keys with __ for dots."""
    if path.parent.name == "presets":
        from pipeline import presets  # not by attack.py, which is a script and uses params.yaml

        params = presets.values(path)
    else:
        params = yaml.safe_load(path.read_text())
    params["precision"] = "fp32"
    small = {"edsr": {"blocks": 2, "channels": 8}, "sid": {"base": 4}}
    for network in params["networks"]:
        params["networks"][network]["args"] |= small.get(network, {"blocks": 1, "channels": 8})
        params["train"][network] |= {"steps": 2, "batch": 2, "patch": 16, "validate_every": 2}
        params["train"][network].pop("milestones", None)  # they lie beyond two steps
        params["retrain"][network] |= {"max_iterations": 2, "steps": 2}
        params["tolerance"][network] = {"psnr": 50, "ssim": 1}
        params["finetune"][network]["steps"] = 2
        params["analyze"][network]["size"] = [32, 32]
    params["prune"]["patience"] = 1
    params["gate"] |= {"max_psnr_drop": 50.0, "max_ssim_drop": 1.0}
    params["evaluate"]["bootstrap"] = 200
    params["latency"] = {"sides": [32], "repeats": 1}
    for key, value in changes.items():
        section = params
        *above, last = key.split("__")
        for name in above:
            section = section[name]
        section[last] = value
    return params


def checkout(folder: Path, params: dict[str, Any]) -> Path:
    """A clone's files with a tiny preset and ten photographs, as a git and DVC repository of its own."""
    for name in ("pipeline", "stages", "examples", "presets", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    photos = folder / "data" / "photos"
    photos.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "table1.json", folder / "data")
    for names in SPLITS.values():
        for name in names:
            shutil.copy(ROOT / "data" / "photos" / name, photos / name)
    (photos / "splits.json").write_text(json.dumps(SPLITS))
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *words], cwd=folder, env=ENVIRONMENT, check=True)
    return folder


LIMIT = 3600  # s; against a hang, not against a busy machine


@cache
def forking() -> str:
    """The folder of this process's forks.py, which has torch and MLflow loaded; it ends with this process."""
    folder = tempfile.mkdtemp(prefix="forks-")
    server = subprocess.Popen(
        [sys.executable, "-I", str(ROOT / "tests/forks.py"), folder],
        stdin=subprocess.PIPE,
        env=ENVIRONMENT
        | {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"},
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    until = time.monotonic() + LIMIT
    while not Path(folder, "socket").exists():
        assert server.poll() is None, "forks.py has ended"
        assert time.monotonic() < until, "forks.py hangs"
        time.sleep(0.02)
    return folder


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; what DVC runs as `python -m` is forked from a Python that has the large libraries loaded."""
    shim = {}
    if words[0] == "dvc":  # a fork has no dvc among its parents, so the chain's run gets its name here
        shim = {"PATH": f"{forking()}:{ENVIRONMENT['PATH']}", "REPRO_SESSION": f"dvc-{time.time_ns()}"}
    return subprocess.run(
        words,
        cwd=folder,
        env={**ENVIRONMENT, **shim, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def module(folder: Path, *words: str, limit: float = LIMIT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m WORDS`, in a process that is forked from one with the large libraries loaded; stdin is empty."""
    with (
        open(os.devnull) as empty,
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        files = (empty.fileno(), out.fileno(), err.fileno())
        status = forks.ask(forking(), [*words], str(folder), {**ENVIRONMENT, **environment}, files, limit)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), err.read())


def stage(folder: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return module(folder, f"stages.{name}", *arguments, **environment)


def living(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "results").rglob("*.*"))}
