"""A Python that has the large libraries loaded, and forks itself for each stage that a test runs.

A stage's start costs 4 to 6 s of imports, a chain's 21 stages two minutes. `python forks.py FOLDER` serves the socket
FOLDER/socket until its standard input closes. The project's own modules are never loaded in it: each fork imports
those of the folder that it runs in, as `python -m stages.NAME` does. Linux and macOS; the standard library alone,
until `serve` loads the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

# Without onnxruntime: at its end it waits for a thread that a fork doesn't have.
LOADED = [
    "torch", "torch.export", "torch.fx.experimental.symbolic_shapes", "torch._functorch.aot_autograd",
    "torch.onnx._internal.exporter", "onnx", "onnxscript.function_libs.torch_lib",
    "mlflow", "mlflow.pyfunc", "alembic.command", "sqlalchemy.dialects.sqlite", "git", "optuna", "pydantic",
    "ruamel.yaml", "psutil", "PIL.Image", "rawpy", "skimage.metrics", "skimage.data", "tifffile",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "markdown_it",
]  # fmt: skip
SHIM = """#!{python} -IS
import os, sys
if "DVC_STAGE" in os.environ and sys.argv[1:2] == ["-m"]:
    sys.path.insert(0, {tests!r})
    import forks
    sys.exit(forks.ask({folder!r}, sys.argv[2:], os.getcwd(), dict(os.environ), (0, 1, 2), None))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


def ask(
    folder: str, words: list[str], cwd: str, environment: dict[str, str], files: tuple[int, ...], limit: float | None
) -> int:
    """Run `python -m WORDS` in a fork, on the three open files, and wait: its exit status, -N for signal N.

    TimeoutError after `limit` seconds. The fork ends with the process that asks.
    """
    request = json.dumps({"words": words, "cwd": cwd, "environment": environment}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(f"{folder}/socket")
        socket.send_fds(server, [struct.pack("!I", len(request))], list(files))
        server.sendall(request)
        server.settimeout(limit)
        answer = server.recv(4)
    if len(answer) < 4:
        raise ConnectionError("the process that forks has ended")
    return struct.unpack("!i", answer)[0]


def serve(folder: str) -> None:
    """Fork for each request; returns in the fork alone, which is then ready to run sys.argv."""
    for name in LOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, f"a fork would lack {threading.enumerate()[1:]}"
    shim = Path(folder, "python")
    text = SHIM.format(python=sys.executable, tests=str(Path(__file__).parent), folder=folder)
    shim.write_text(text)
    shim.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no fork is waited for here
    gc.freeze()  # no fork looks for rubbish among what it shares: that would copy all of it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{folder}/socket.new")
        listener.listen(64)
        os.rename(f"{folder}/socket.new", f"{folder}/socket")  # there is a socket only when it listens
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                if answer(client):
                    return
            client.close()


def answer(client: socket.socket) -> bool:
    """Fork once more and tell the client how that ended; True in the innermost process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, 4, 3)
    (length,) = struct.unpack("!I", head)
    text = b""
    while len(text) < length and (part := client.recv(length - len(text))):
        text += part
    child = os.fork()
    if child == 0:
        client.close()
        become(json.loads(text), files)
        return True
    status = None
    while status is None:
        ended, state = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(state)
        elif select.select([client], [], [], 0.02)[0]:  # nobody waits any more
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        client.sendall(struct.pack("!i", status))
    os._exit(0)


def become(request: dict, files: list[int]) -> None:
    """What a fresh process is before it runs `python -m`: its files, folder, environment, paths and random numbers."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    sys.path.insert(0, request["cwd"])
    sys.argv = request["words"]
    random.seed()


def main() -> None:
    """Serve, and in each fork run what was asked for, and end as a process does.

    Except that the libraries aren't taken down piece by piece: that takes three seconds, more than most runs.
    """
    serve(sys.argv[1])
    status = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    threading._shutdown()  # waits for the threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
