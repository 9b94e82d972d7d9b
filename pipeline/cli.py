"""What the commands `python -m pipeline.NAME` share: how they refuse what they were given, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import UserError, place, raised


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without the usage that argparse would print before its sentence."""
        from pipeline.stores import masked

        raise UserError(f"{masked(message)}; --help tells what is allowed")


def command(run: Callable[[], str]) -> int:
    """Do a command's work and print what it says. Returns the exit status.

    0, or 2 after one sentence on stderr about what the user gave. A reader that has seen enough and closed the pipe
    (`| head -1`) is no fault.
    """
    try:
        try:
            print(run())
        finally:  # --help ends argparse by SystemExit, with its text still in the buffer
            print(end="", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # what is left in the buffer would fail once more when Python ends: it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # a user's network may fail anywhere that it runs
        if not place(error):
            raise
        print(raised(error), file=sys.stderr)
        return 2
    return 0
