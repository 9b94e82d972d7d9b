"""Stores that can't be used: each way that happens, and what is said of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def lock(path: Path) -> sqlite3.Connection:
    held = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    held.execute("BEGIN EXCLUSIVE")
    return held


def spoil(path: Path, how: str) -> sqlite3.Connection | None:
    """Make a store useless in one of the ways that happen."""
    if how == "locked":
        return lock(path)
    if how != "garbage":
        path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "empty":
        path.touch()
    elif how == "garbage":
        path.write_bytes(b"no database " * 1000)
    elif how == "another database":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE t (x INTEGER)")
        other.close()
    return None


WAYS = {
    "locked": "database is locked, for more than 0.3 s",
    "gone": "the file is gone",
    "a folder": "it is a folder",
    "empty": "the file is empty",
    "garbage": "file is not a database",
}
