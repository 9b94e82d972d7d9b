"""The one exception whose text is meant for the person at the keyboard, and other exceptions in one line."""

from __future__ import annotations

import sysconfig
import traceback
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 300  # characters of an exception's text that a sentence takes
SENTENCE = 900  # characters of a sentence: a name in it may have any length
# torch's exceptions of a run with shapes alone: their texts are about symbols that nobody has written
VALUES_NEEDED = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")


class UserError(Exception):
    """Something the user gave is wrong: one sentence naming the file, key or layer, the fault and what is allowed.

    Stages print it without a traceback and exit with status 2.
    """


@contextmanager
def explained(sentence: str) -> Iterator[None]:
    """Whatever a user's code raises within, an exit or no text included, becomes UserError: the sentence and `raised`.

    UserError and a stop by the keyboard pass.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{sentence}: {raised(error)}") from error


@contextmanager
def under(key: str) -> Iterator[None]:
    """UserError raised within begins with the key that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def raised(error: BaseException) -> str:
    """What an exception says in one line, and where a user's code raised it: "KeyError: 'w', at mine/net.py:12"."""
    line, at, name = first_line(error), place(error), type(error).__name__
    if name in VALUES_NEEDED:
        text = "a shape or a branch depends on the values of tensors"
    else:  # torch raises RuntimeError for nearly everything, so that its name tells nothing
        text = line if line == name or type(error) is RuntimeError else f"{name}: {line}"
    return f"{text}, at {at}" if at else text


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that isn't blank, of printable characters; without one its type's name."""
    try:
        lines = str(error).splitlines()
    except Exception:  # a user's exception may fail even there
        lines = []
    text = "".join(c if c.isprintable() else " " for c in next((line for line in lines if line.strip()), "")).strip()
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]} …") or type(error).__name__


def joined(error: BaseException) -> str:
    """All lines of an exception's text in one: for torch's load_state_dict, whose first line names no key."""
    return " ".join(str(error).split()) or type(error).__name__


def one_line(sentence: str) -> str:
    """A sentence as a terminal may have it: names in it that were given or read from a file may hold anything.

    Line ends, control characters and what turns the direction of writing are written as escapes; of what is too long
    the middle is left out.
    """
    if len(sentence) > SENTENCE:
        half = SENTENCE // 2 - 2
        sentence = f"{sentence[:half]} … {sentence[-half:]}"
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in _TURNING
        else letter
        for letter in sentence
    )


_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # what follows is shown in another order


def place(error: BaseException, packages: bool = True) -> str:
    """FILE:LINE of the innermost frame in a user's own file, else in an installed package; empty without either.

    packages: whether installed ones count, as they do for a call of a user's code; elsewhere a fault that they show
    may be this project's. The standard library, torch and this project's `pipeline` and `stages` are nobody's fault.
    A file in the working directory is named from there.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_short(Path(error.filename))}:{error.lineno}"
    installed = {Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")}
    library = {Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib")} - installed
    project = {Path(__file__).parent, Path(__file__).parents[1] / "stages"}
    nobodys = project | {home / "torch" for home in installed}
    in_packages = ""
    for cause in _causes(error):
        frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(cause.__traceback__)]
        for file, line in reversed(frames):
            if file.suffix != ".py" or _within(file, nobodys):
                continue
            if _within(file, installed):
                in_packages = in_packages or f"{_short(file)}:{line}"
            elif not _within(file, library):
                return f"{_short(file)}:{line}"
    return in_packages if packages else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _within(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def _short(file: Path) -> str:
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)
