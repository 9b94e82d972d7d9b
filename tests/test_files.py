"""Files are whole or absent, and equal contents give equal bytes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import files
from pipeline.errors import UserError


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forbidden(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class FullFile:
    """A file on a disk that fills up after a few bytes."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[:2])
        full()


@pytest.mark.parametrize(
    ("where", "how", "said"),
    [
        ("pipeline.files.os.fsync", full, "No space left on device"),
        ("pipeline.files.open", FullFile, "No space left on device"),
        ("pipeline.files.open", forbidden, "Permission denied"),
        ("pipeline.files.os.replace", forbidden, "Permission denied"),
    ],
)
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, how: Any, said: str
) -> None:
    path = tmp_path / "result.json"
    files.write_text(path, "old")
    monkeypatch.setattr(where, how, raising=False)
    with pytest.raises(UserError) as caught:
        files.write_text(path, "new and longer")
    monkeypatch.undo()
    assert str(caught.value) == f"{path} can't be written: {said}; a writable folder with free space is needed"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_interrupted_write_leaves_nothing_beside_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "result.json"
    files.write_text(path, "old")
    monkeypatch.setattr("pipeline.files.os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    for path in (tmp_path / "results" / "a.json", tmp_path / "results" / "deeper" / "a.json"):
        with pytest.raises(UserError, match=f"{path} can't be written: (File exists|Not a directory); a writable"):
            files.write_text(path, "x")
    assert (tmp_path / "results").read_text() == "a file"


def test_a_file_that_is_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json can't be written: Is a directory"):
        files.write_text(tmp_path / "a.json", "x")
    assert os.listdir(tmp_path) == ["a.json"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a" / "b" / "c.json", {"x": [1, 2.5]})
    assert files.read_json(tmp_path / "a" / "b" / "c.json") == {"x": [1, 2.5]}


def test_equal_values_give_equal_json_whatever_the_order_of_keys(tmp_path: Path) -> None:
    files.write_json(tmp_path / "one", {"a": 1, "b": 2})
    files.write_json(tmp_path / "two", {"b": 2, "a": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json can't be read: No such file or directory; the stage that writes"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json isn't JSON: "):
        files.read_json(tmp_path / "bad.json")


def test_equal_tensors_give_equal_bytes_whatever_the_files_name(tmp_path: Path) -> None:
    for name in ("a.pt", "quite-another-name.pt"):
        files.save_tensors(tmp_path / name, {"weight": torch.arange(6.0).view(2, 3), "step": 3})
    one, two = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert one == two
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weight"], torch.arange(6.0).view(2, 3))


def test_a_digest_stands_for_values_and_for_what_is_in_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    (tmp_path / "c").write_text("other")
    one, two, three = (files.digest({"x": 1, "y": 2}, tmp_path / name) for name in "abc")
    assert one == two
    assert one != three
    assert one == files.digest({"y": 2, "x": 1}, tmp_path / "a")
    assert one != files.digest({"y": 2, "x": 3}, tmp_path / "a")


def test_what_a_killed_process_left_is_swept_and_a_living_ones_stays(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, living = (tmp_path / f".a.json.{pid}.tmp" for pid in (child.pid, os.getppid()))
    dead.touch()
    living.touch()
    files.write_text(tmp_path / "a.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", living.name}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "can't be read: No such file or directory; the stage that writes it must run first"),
        ("", "has no rows with a, b"),
        ("a,b\n", "has no rows with a, b"),
        ("a,c\n1,2\n", "has no rows with a, b"),
        ("a,b\n1,2\n3\n", "has no rows with a, b"),
        ("a,b\n1,é\n", "isn't CSV"),  # and no UTF-8
    ],
)
def test_a_table_that_isnt_whole_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "x.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"x.csv {said}"):
        files.read_csv(tmp_path / "x.csv", "a", "b")


def test_a_whole_table_is_its_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n1,"2, 3"\n')
    assert files.read_csv(tmp_path / "x.csv", "a") == [{"a": "1", "b": "2, 3"}]


def test_json_without_a_key_that_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "x.json", "a") == {"a": 1}
    with pytest.raises(UserError, match=r"x.json has no b, c; it is cut short or of another version"):
        files.read_json(tmp_path / "x.json", "a", "b", "c")
