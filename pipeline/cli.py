"""How commands (`python -m pipeline.NAME`, `python -m stages.NAME`) read arguments and end on an error."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pipeline.errors import UserError, first_line, one_line, place, raised

# what the machine refuses any program, sooner or later; another error of a file is a bug of whoever opened it
MACHINES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENODEV,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EBUSY, errno.ETXTBSY,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without the usage that argparse would print before its sentence."""
        from pipeline.stores import masked

        raise UserError(f"{masked(message)}; --help tells what is allowed")


def json_arguments(text: str) -> dict[str, Any]:
    """What `--args` holds: a network's arguments, by name."""
    from pipeline.schema import shown

    try:
        args = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--args {shown(text)} isn't JSON: {first_line(error)}") from None
    if not isinstance(args, dict):
        raise UserError(f'--args {shown(text)} must be names and values, as {{"channels": 32}}')
    return args


@contextmanager
def guarded(name: str = "") -> Iterator[None]:
    """The one way in which a command ends on an error: SystemExit after one sentence on stderr.

    Status 2 for bad input, for what a user's network raises, and for files that can't be written; 130 for Ctrl-C.
    With `name` the sentences begin "NAME: error: " and "NAME: warning: ". Other exceptions pass: they are bugs.
    """
    located, printed = warnings.formatwarning, set()

    def plain(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> str:
        ours = category is UserWarning
        text = f"{name}: warning: {one_line(str(message))}\n" if ours else located(message, category, *rest, **named)
        if text in printed:  # two networks may have one folder
            return ""
        printed.add(text)
        return text

    if name:
        warnings.formatwarning = plain
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"{name}: stopped; the same command goes on from the last saved point" if name else "stopped",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(one_line(f"{name}: error: {sentence}" if name else sentence), file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What is printed of an exception; None for a bug of this project, which needs its traceback."""
    if isinstance(error, UserError):
        from pipeline.stores import masked

        return masked(str(error))
    if place(error, packages=False):  # a user's network may fail anywhere that it runs
        return raised(error)
    if isinstance(error, OSError) and error.errno in MACHINES:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror or error}; free space and writable folders are needed"
    return None


def command(run: Callable[[], str]) -> int:
    """Do a command's work and print the text that it returns. Returns the exit status: 0, or `guarded`'s.

    A reader that has seen enough and closed the pipe (`| head -1`) is no error.
    """
    try:
        with guarded():
            try:
                try:
                    print(run())
                finally:  # --help ends argparse by SystemExit, with its text still in the buffer
                    print(end="", flush=True)
            except BrokenPipeError:  # the rest of the buffer would fail once more when Python ends: it goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as end:
        if not end.code:  # --help
            raise
        return int(end.code)
    return 0
