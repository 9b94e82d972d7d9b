"""What `make repro` runs: check, the networks' chains side by side, the rest, the table.

`python -m stages.repro [PROCESS]` ends with the process of this id, where one is given.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from pipeline import config
from pipeline.cli import Parser, guarded
from stages.command import GRACE, end_with_parent
from stages.mend import mend

SESSION = time.strftime("make repro %F %T")  # one run in MLflow for all of it


def main() -> None:
    """Run everything that has changed; whatever ends this process ends the chains that it began."""
    parser = Parser(prog="python -m stages.repro", description=main.__doc__)
    parser.add_argument("process", type=int, nargs="?", help="a process id; the chains end when that process does")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks
            signal.signal(number, signal.default_int_handler)
    with guarded("repro"):
        process = parser.parse_args().process
        if process is not None:
            if process != os.getppid():  # it has ended already
                raise KeyboardInterrupt
            end_with_parent(process)
        python("stages.check")
        # The networks' chains are independent: DVC runs them side by side, then once more over everything.
        # A chain that fails leaves its reason on the screen; the last one runs it again and ends as it ends.
        run(*(["-q", f"evaluate@{network}"] for network in config.read().run.networks))
        mend()
        (status,) = run([])
        if status:
            sys.exit(status)
        python("stages.check", "--results")


def python(*words: str) -> None:
    """Run a module; what it said is enough when it fails."""
    done = subprocess.run([sys.executable, "-m", *words], env=os.environ | {"REPRO_SESSION": SESSION}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def run(*chains: list[str]) -> list[int]:
    """`dvc repro` for each list of arguments, side by side; their statuses, when nothing of them lives any more."""
    words = [sys.executable, "-m", "stages.dvc", str(os.getpid()), "--wait-for-lock", "repro"]
    environment = os.environ | {"REPRO_SESSION": SESSION, "PROGRESS": "lines"}
    begun: list[subprocess.Popen] = []
    try:
        for chain in chains:  # each in a process group of its own: a stop reaches DVC and its stage, and once
            begun.append(subprocess.Popen([*words, *chain], stdin=subprocess.DEVNULL, env=environment, process_group=0))
        return [chain.wait() for chain in begun]
    finally:
        end(begun)


def end(chains: list[subprocess.Popen]) -> None:
    """Stop what still lives of these process groups, and kill what doesn't stop."""
    until, living = time.monotonic() + GRACE, [chain for chain in chains if signalled(chain, signal.SIGINT)]
    while time.monotonic() < until and (living := [chain for chain in living if signalled(chain, 0)]):
        time.sleep(0.05)
    for chain in living:
        signalled(chain, signal.SIGKILL)
        chain.wait()


def signalled(chain: subprocess.Popen, number: int) -> bool:
    """Send a chain's process group a signal, 0 for none; whether anything of it lives."""
    chain.poll()  # what has ended stays in its group until somebody asks
    try:
        os.killpg(chain.pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
