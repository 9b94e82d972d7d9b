"""Files are whole or absent, and equal contents give equal bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
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


def test_a_folder_that_is_held_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    with files.hold(tmp_path / "work"), pytest.raises(BlockingIOError):
        files.hold(tmp_path / "work")
    with files.hold(tmp_path / "work"):
        shutil.rmtree(tmp_path / "work")  # as who is done with it
        files.hold(tmp_path / "work").close()


def test_a_folder_that_cant_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"{path} can't be made a folder: .*; a writable folder"):
            files.make_folder(path)


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


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "a.json"
    target.write_text("old")
    for name, to in (("one", target), ("two", Path("one")), ("new", Path("there") / "absent.json")):
        (tmp_path / name).symlink_to(to)
        files.write_text(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).resolve().read_text() == name
    assert sorted(os.listdir(tmp_path / "there")) == ["a.json", "absent.json"]


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:  # a socket's path is at most 107 bytes
        bound.bind(path.name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "it is a pipe"),
        (make_socket, "it is a socket"),
        (lambda path: path.symlink_to("/dev/full"), "it is a device"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to(path.parent), "Is a directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "x"
    make(path)
    kind = path.lstat().st_mode
    with pytest.raises(UserError, match=f"x can't be written: {said}; .* is needed"):
        files.write_text(path, "new")
    assert path.lstat().st_mode == kind
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root could replace a device")
def test_a_device_stays_a_device() -> None:
    for device in ("/dev/null", "/dev/full"):
        with pytest.raises(UserError, match=f"{device} can't be written: it is a device"):
            files.write_text(Path(device), "x")
        assert Path(device).is_char_device()


def test_a_link_to_what_nobody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cached").write_text("kept")
    (tmp_path / "cached").chmod(0o444)
    (tmp_path / "x").symlink_to("cached")
    with pytest.raises(UserError, match="x can't be written: it is a link to a file that is read-only; remove the"):
        files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "cached").read_text() == "kept"


def test_what_was_read_is_not_written_over_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("kept")
    (tmp_path / "link").symlink_to("read")
    os.link(tmp_path / "read", tmp_path / "hard")
    for name in ("read", "link", "hard"):
        with pytest.raises(UserError, match=f"{name} can't be written: it is .*read, which is read to make it"):
            files.destination(tmp_path / name, source=tmp_path / "read")
    assert files.destination(tmp_path / "new", source=tmp_path / "read") == tmp_path / "new"


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x1b[31m", "\x7f", "a\0b"])
def test_a_name_with_control_characters_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="can't be written: its name holds control characters") as caught:
        files.write_text(tmp_path / name, "x")
    assert str(caught.value).isprintable()
    assert not os.listdir(tmp_path)


def test_a_name_as_long_as_it_may_be_is_written_and_a_longer_one_is_said(tmp_path: Path) -> None:
    longest = tmp_path / ("ö" * 127 + "x")
    (tmp_path / f".{hashlib.sha256(os.fsencode(longest.name)).hexdigest()}.999999999.tmp").touch()  # of a dead process
    files.write_text(longest, "text")
    assert os.listdir(tmp_path) == [longest.name]
    for name in ("x" * 256, "x" * 5000, "/".join(["deep"] * 2000)):
        with pytest.raises(UserError, match="can't be written: File name too long; a shorter name is needed") as caught:
            files.write_text(tmp_path / name, "x")
        assert len(str(caught.value)) < 400


def test_a_folder_is_replaced_where_its_link_leads_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    (tmp_path / "link").symlink_to("data")
    with files.replacing(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "data") == ["new"]
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file can't be written: Not a directory"), files.replacing(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "kept"


def test_a_sealed_file_is_as_it_was_written_or_refused(tmp_path: Path) -> None:
    path, value = tmp_path / "log.json", {"state": {"alpha": 0.1}, "cuts": [{"head": (1, 2)}]}
    files.write_sealed(path, value)
    assert files.read_sealed(path) == {"state": {"alpha": 0.1}, "cuts": [{"head": [1, 2]}]}
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(UserError, match=r"log\.json isn't as it was written"):
        files.read_sealed(path)


@pytest.mark.parametrize("old", ["before zip files", "without checksums"])
def test_tensors_without_checksums_are_read(tmp_path: Path, old: str) -> None:
    path, value = tmp_path / "a.pt", {"weight": torch.arange(6.0)}
    if old == "before zip files":
        torch.save(value, path, _use_new_zipfile_serialization=False)
    else:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(value, path)
        finally:
            torch.serialization.set_crc32_options(True)
    assert torch.equal(files.load_tensors(path)["weight"], value["weight"])


@pytest.mark.parametrize("read", [files.load_tensors, files.read_json])
def test_a_file_larger_than_memory_is_one_sentence(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 2**43)  # without contents: it takes no space
    with pytest.raises(UserError, match=r"large can't be read: its 8,796,093,022,208 bytes are more than memory"):
        read(path)


def test_tensors_are_read_from_regular_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} can't be read: a regular file is needed"):
            files.load_tensors(path)


def test_a_name_that_leads_to_what_this_process_prints_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline import files\n"
        "try: files.write_text(Path(sys.argv[1]), 'new')\n"
        "except files.UserError as error: print(error, file=sys.stderr)\n"
    )
    out = tmp_path / "out"
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", str(out), str(tmp_path / "link")):
        if name.endswith("link"):
            (tmp_path / "link").symlink_to("/dev/stdout")
        with out.open("w") as file:
            words = [sys.executable, "-c", program, name]
            done = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, text=True, check=True)
            assert os.path.samestat(os.fstat(file.fileno()), out.stat())
        assert f"{name} can't be written: it is this command's output" in done.stderr
        assert out.read_text() == ""
        done = subprocess.run([*words[:3], "/dev/stdout"], capture_output=True, text=True, check=True)
        assert "/dev/stdout can't be written: it is a pipe" in done.stderr


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"text"])
def test_tensors_of_a_stage_that_cant_be_read_name_the_stage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results" / "prune" / "edsr" / "A" / "accepted-001.pt"
    with pytest.raises(UserError, match=r"No such file.*: dvc repro prune@edsr-A$"):
        files.load_tensors(path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"dvc repro -s -f prune@edsr-A makes it anew$"):
        files.load_tensors(path)
    (tmp_path / "given.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"torch.save\(network.state_dict\(\), FILE\) writes one that is$"):
        files.load_tensors(tmp_path / "given.pth")
