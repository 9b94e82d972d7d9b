"""Kill chains at random moments, let them go on, and hold what they end with against an undisturbed one.

`python tests/attack.py --minutes 10 --seed 1`. Status 1 when anything but measured times differs, or a process stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from chains import ENVIRONMENT, ROOT, checkout, living, results, tiny

TIMED = ("latency@", "report")  # the stages whose results hold measured times
LIVES = 10.0  # s that anything of a stopped chain may live, on a busy machine; 4 on an idle one
LIMIT = 3600  # s for one command; against a hang, not against a busy machine
COMMANDS = (("make", "repro"), ("dvc", "repro"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
VICTIMS = ("command", "group", "dvc", "stage")


def start(folder: Path) -> Path:
    """A small chain that nothing has run in, for `make repro` with this environment in place of its own."""
    checkout(folder, tiny(ROOT / "params.yaml", run__methods=["D"]))
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "ready").touch()
    return folder


def begin(folder: Path, command: tuple[str, ...]) -> subprocess.Popen:
    log = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)


def kill(folder: Path, process: subprocess.Popen, victim: str, number: signal.Signals, dice: random.Random) -> bool:
    """Send the victim the signal; whether there was one."""
    if victim in ("command", "group"):
        # as a terminal does: make alone, asked by INT or HUP, waits for what it began to end
        whole = victim == "group" or number in (signal.SIGINT, signal.SIGHUP)
        os.killpg(process.pid, number) if whole else process.send_signal(number)
        return True
    found = []
    for one in living(folder):
        words = [Path(word).name for word in one.cmdline()]
        is_dvc = "dvc" in words[:2] or "stages.dvc" in words
        is_stage = any(word.startswith("stages.") for word in words) and not {"stages.dvc", "stages.repro"} & {*words}
        if is_dvc if victim == "dvc" else is_stage:
            found.append(one)
    if found:
        dice.choice(found).send_signal(number)
    return bool(found)


def compared(folder: Path) -> dict[str, object]:
    """What a chain ends with, but for what measured times went into."""
    found: dict[str, object] = {
        name: content
        for name, content in results(folder).items()
        if not name.startswith(("results/latency/", "results/report/"))
    }
    lock = folder / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}  # a chain that failed at once
    for stage, entry in stages.items():
        for out in [*entry["outs"], *entry.get("deps", [])]:
            if stage.startswith(TIMED) and (out in entry["outs"] or "results/latency" in out["path"]):
                out.pop("md5"), out.pop("size")
            found[f"dvc.lock: {stage}: {out['path']}"] = out
        found[f"dvc.lock: {stage}"] = entry["cmd"], entry.get("params")
    return found


def whole(folder: Path, command: tuple[str, ...]) -> list[str]:
    """Run a chain to its end; what went wrong."""
    status = begin(folder, command).wait(LIMIT)
    return [f"{' '.join(command)} ended with status {status}"] if status else []


def disturbed(folder: Path, dice: random.Random, until: float, calm: float, told: str) -> tuple[list[str], int]:
    """Kill one chain now and then, let it go on each time and at last end; what went wrong, and the kills."""
    faults, kills, command, process = [], 0, dice.choice(COMMANDS), None
    for _ in range(dice.randint(3, 12)):
        moment, victim, number = dice.uniform(0, calm / 4), dice.choice(VICTIMS), dice.choice(SIGNALS)
        if time.monotonic() + moment > until:
            break
        process = process or begin(folder, command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            if process.returncode == 0:
                break
        if process.poll() is None and kill(folder, process, victim, number, dice):
            kills += 1
            what = f"{number.name} to {victim} of {' '.join(command)} after {moment:.2f} s"
            print(f"{told}, kill {kills}: {what}", file=sys.stderr, flush=True)
        if victim in ("command", "group"):
            process.wait(LIMIT)
        if process.poll() is not None:  # else it was a stage of two, or its chain's DVC: the others go on
            faults += [f"{what}: {left}" for left in remains(folder)]
            process = None
    if process:
        process.wait(LIMIT)
    if command == ("dvc", "repro"):  # which doesn't mend DVC's own files
        subprocess.run([sys.executable, "-m", "stages.check"], cwd=folder, env=ENVIRONMENT, check=False)
    return faults + whole(folder, command), kills


def remains(folder: Path) -> list[str]:
    """What an ended command leaves that it shouldn't."""
    until = time.monotonic() + LIVES
    while (left := living(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    found = [f"{' '.join(one.cmdline())} lives" for one in left]
    for one in left:
        one.kill()
    return found + ([".git/index.lock is left"] if (folder / ".git/index.lock").exists() else [])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/attack.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    print(f"attack: seed {given.seed}; first a chain that is left alone", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    above = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        sys.exit(attack(above, given.seed, time.monotonic() + 60 * given.minutes))
    finally:
        for one in [one for folder in above.glob("*") for one in living(folder)]:
            one.kill()


def attack(above: Path, seed: int, until: float) -> bool:
    """Chains in folders of their own until the time is over; whether there were faults, whose folders stay."""
    dice, runs, kills, faults, began = random.Random(seed), 0, 0, 0, time.monotonic()
    if failed := whole(start(above / "calm"), ("make", "repro")):
        sys.exit(f"attack: undisturbed, {failed[0]}; see {above}/calm.log")
    calm, wanted = time.monotonic() - began, compared(above / "calm")
    while not runs or time.monotonic() + calm < until:
        runs += 1
        folder = start(above / f"run-{runs}")
        told = f"attack: seed {seed}, run {runs}, {(until - time.monotonic()) / 60:.1f} min left"
        found, killed = disturbed(folder, dice, until - calm, calm, told)
        got = compared(folder)
        found += [f"{name} differs" for name in sorted({*wanted, *got}) if wanted.get(name) != got.get(name)]
        for fault in found:
            print(f"{told}: {fault}; see {folder}.log", file=sys.stderr)
        kills, faults = kills + killed, faults + len(found)
        if not found:
            shutil.rmtree(folder)
    print(f"attack: {runs} runs, {kills} kills, {faults} faults, seed {seed}", file=sys.stderr)
    if not faults:
        shutil.rmtree(above)
    return bool(faults)


if __name__ == "__main__":
    main()
