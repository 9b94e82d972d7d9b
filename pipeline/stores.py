"""What the two stores (MLflow's and Optuna's) share: a quick look whether one can be used, and what is said of it.

A text that is printed or stored goes through `masked`, a user's name that becomes a key through `key`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

LOCKED_SECONDS = 15.0  # a lock that is held for longer isn't another stage's write
CONNECT_SECONDS = 10  # for a database server to answer
KEY_LENGTH = 100  # characters; MLflow allows 250, but puts an image's key into a file name with 100 of its own
SECRET = "(?:password|passwd|passphrase|pwd|token|secret|api_?key)"
SECRET_WORD = rf"[\w.-]*{SECRET}[\w.-]*"
SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD")
URL_VARIABLES = ("MLFLOW_TRACKING_URI", "STUDY_STORAGE")


# --- passwords ----------------------------------------------------------------------------------------------------


def masked(text: str, *urls: str) -> str:
    """The text without the passwords in it: those of `urls`, of the environment, and whatever stands where one would.

    urls: store addresses that were given; a password of theirs is found in any form, as written and decoded.
    """
    known = [url for url in (*urls, *map(os.environ.get, URL_VARIABLES)) if url]
    for url in sorted(known, key=len, reverse=True):
        text = text.replace(url, _address(url))
    secrets = {os.environ.get(name, "") for name in SECRET_VARIABLES}.union(*map(_passwords, known))
    for word in sorted(filter(None, secrets), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "***", text)
    return _fallback(text, r"[^\s'\"]")


def _address(url: str) -> str:
    """An address by itself: whatever stands before its last @ may be a password, spaces and quotes too."""
    return _fallback(url, ".")


def _fallback(text: str, character: str) -> str:
    def without(match: re.Match[str]) -> str:
        return match[0] if re.match("(?i)sqlite|file", match[1]) else f"{match[1]}//***@"

    # the look behind begins a match at a word's start alone: tried at each character, a long word takes minutes
    text = re.sub(rf"(?s)(?<![\w+.-])([\w+.-]*:?)//{character}*@", without, text)
    text = re.sub(r"(?<![\w/.+-])([\w.+-]++):[^\s:@/'\"]++@(?=\w)", r"\1:***@", text)  # an address without its kind
    word = rf"(?<![\w.-])(?=[\w.-]*?{SECRET})([\w.-]++)"
    return re.sub(rf"(?i){word}(=|%3d)('[^']*'|\"[^\"]*\"|[^\s&;,'\"]*)", r"\1\2***", text)


def _passwords(url: str) -> set[str]:
    """The passwords in an address, each as it is written and decoded."""
    passwords = set(re.findall(rf"(?i)[?&;]{SECRET_WORD}=([^&;#]*)", url))
    if not re.match("(?i)sqlite|file", url):
        passwords |= set(re.findall(r"(?s)//[^:/@]*:(.*)@", url))
    with contextlib.suppress(SQLAlchemyError, ValueError):
        passwords.add(make_url(url).password or "")
    with contextlib.suppress(ValueError):
        passwords.add(urlsplit(url).password or "")
        passwords |= {
            value for name, value in parse_qsl(urlsplit(url).query) if re.fullmatch(f"(?i){SECRET_WORD}", name)
        }
    # of a password with @ or / in it, not written as %40 and %2F, a driver takes a piece for the host and names it
    passwords |= {piece for word in passwords for piece in re.split("[@/:?#]", word) if len(piece) > 1}
    return {form for word in passwords for form in (word, unquote(word), quote(word, safe="")) if form}


def reason(error: BaseException, *urls: str) -> str:
    """What a store's library says, in one line: without SQL, without passwords."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and cause.orig is not None:
            error = cause.orig
            break
        cause = cause.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return masked(lines[0], *urls)[:300].rstrip(" .;:")


# --- names --------------------------------------------------------------------------------------------------------


def key(name: str, also: str = "") -> str:
    """A name that a user gave as a key: ASCII letters, digits, `_-. /` and the characters of `also`.

    A name of these, of at most KEY_LENGTH characters and of which a path would make no other, is its own key. Any
    other is changed and shortened, and ends with a hash, so that two names don't come to the same key.
    """
    allowed = re.sub(rf"[^A-Za-z0-9_\-./ {re.escape(also)}]", "_", name)
    plain = posixpath.normpath(allowed) == allowed and not allowed.startswith(("/", ".")) and allowed == allowed.strip()
    if allowed == name and plain and len(name) <= KEY_LENGTH:
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if not plain:
        allowed = allowed.replace("/", "_").strip(". ")
    return f"{allowed[: KEY_LENGTH - 9]}-{mark}"


def text(value: object, limit: int) -> str:
    """A value as a text that every store takes: no password, no half of a character, no NUL, not too long."""
    return readable(masked(str(value)))[:limit]


def readable(words: str) -> str:
    """A text in which what isn't UTF-8, and NUL, is written as an escape."""
    return words.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")


# --- whether a store can be used ----------------------------------------------------------------------------------


class UnusableError(Exception):
    """A store can't be used; the text says why."""


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for another kind of store."""
    try:
        parsed = make_url(uri)
    except (SQLAlchemyError, ValueError):
        return None
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise UnusableError("it is no file, so each process would have its own")
    return Path(parsed.database)


def probe(uri: str, absent: bool = False) -> None:
    """UnusableError unless the database is there and can be written now; quick, where its libraries try for minutes.

    absent: whether an SQLite file may be missing, or empty.
    """
    path = sqlite_file(uri)
    if path is not None:
        _probe_file(path, absent)
    elif "://" in uri and not uri.startswith(("http", "file", "databricks", "uc:")):
        with _refused(uri):
            engine = sqlalchemy.create_engine(uri, poolclass=NullPool, connect_args=connect_arguments(uri))
            with engine.connect():
                pass


@contextlib.contextmanager
def _refused(uri: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ImportError, ValueError, TypeError, OSError, sqlite3.Error) as error:
        raise UnusableError(reason(error, uri)) from None


def _probe_file(path: Path, absent: bool) -> None:
    folder = Path(os.path.realpath(path)).parent  # a new file is made where a link leads
    try:
        size = None
        with contextlib.suppress(FileNotFoundError):
            there = path.stat()
            size = there.st_size
            if not stat.S_ISREG(there.st_mode):
                raise UnusableError("it is a folder" if stat.S_ISDIR(there.st_mode) else "it is no regular file")
        if not folder.is_dir():
            raise UnusableError(f"the folder {folder} isn't there")
    except OSError as error:
        raise UnusableError(error.strerror or str(error)) from None
    if not size:
        if not absent:
            raise UnusableError("the file is gone" if size is None else "the file is empty")
        try:
            with tempfile.TemporaryFile(dir=folder):  # tried, since root may write where nothing can be
                return
        except OSError as error:
            raise UnusableError(f"the folder {folder} can't be written: {error.strerror}") from None
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=LOCKED_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")  # fails where nothing can be written
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        locked = f", for more than {LOCKED_SECONDS:g} s" if "locked" in str(error) else ""
        raise UnusableError(f"{error}{locked}") from None


def connect_arguments(uri: str) -> dict[str, float]:
    """For sqlalchemy's connect_args: how long to wait for a lock, or for a server."""
    if uri.startswith("sqlite"):
        return {"timeout": 2 * LOCKED_SECONDS}
    return {"connect_timeout": CONNECT_SECONDS} if uri.startswith(("postgresql", "mysql", "mariadb")) else {}
