"""Stops: whatever ends a chain's command ends the chain, and what a killed DVC leaves is mended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from chains import ENVIRONMENT, ROOT, checkout, living, run, tiny

from pipeline.errors import UserError
from stages.mend import _is_busy, mend

SLEEP = """
import time
from pathlib import Path
from stages.command import main
def sleep(params, network):
    Path(f"{network}.begun").write_text("begun")
    try:
        time.sleep(3600)
    finally:
        Path(f"{network}.left").write_text("cleared up")
if __name__ == "__main__":
    main(sleep, "network")
"""
SLOW = """
import time
from pathlib import Path
def build():
    Path("slow.begun").write_text("begun")
    time.sleep(3600)
"""
LOCK = "schema: '2.0'\nstages:\n  one:\n    cmd: make one\n    outs:\n    - path: a\n      hash: md5\n      md5: abc\n"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two networks whose one stage sleeps, and `make repro` of it without set-up and checks."""
    folder = checkout(tmp_path_factory.mktemp("stops"), tiny(ROOT / "params.yaml"))
    stages = {"evaluate": {"matrix": {"network": ["edsr", "sid"]}, "cmd": "python -m stages.sleep ${item.network}",
                           "outs": ["${item.network}.begun"]}}  # fmt: skip
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "stages/sleep.py").write_text(SLEEP)
    (folder / "stages/check.py").write_text("")
    (folder / "requirements.txt").write_text("")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/ready").write_text("")
    return folder


@pytest.fixture
def begun(chain: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Begin a command in a session of its own, and wait until its stages run."""
    processes = []

    def begin(*words: str, stages: int = 2, **environment: str) -> subprocess.Popen:
        for left in [*chain.glob("*.begun"), *chain.glob("*.left")]:
            left.unlink()
        log = open(chain / "log", "w")  # noqa: SIM115
        # a shell's `make test &` ignores the first, and nohup the second; what is ignored stays so in the command
        before = [(number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGINT, signal.SIGHUP)]
        try:
            process = subprocess.Popen(
                words, cwd=chain, env=ENVIRONMENT | environment, stdout=log, stderr=log, start_new_session=True
            )
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        processes.append(process)
        until = time.monotonic() + 900
        while len(list(chain.glob("*.begun"))) < stages:
            assert process.poll() is None, (chain / "log").read_text()
            assert time.monotonic() < until, (chain / "log").read_text()
            time.sleep(0.05)
        return process

    yield begin
    for process in living(chain):
        process.kill()


def gone(folder: Path) -> bool:
    """Whether nothing works in a folder any more, soon: 4 s on an idle machine."""
    until = time.monotonic() + 600
    while living(folder) and time.monotonic() < until:
        time.sleep(0.1)
    return not living(folder)


@pytest.mark.parametrize(
    ("number", "whole"),
    [(signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGTERM, False), (signal.SIGKILL, False),
     (signal.SIGKILL, True)],
)  # fmt: skip
def test_a_stop_of_make_ends_both_chains(begun: Callable, chain: Path, number: int, whole: bool) -> None:
    process = begun("make", "repro")
    os.killpg(process.pid, number) if whole else process.send_signal(number)
    process.wait(900)
    assert gone(chain), [each.cmdline() for each in living(chain)]
    assert len(list(chain.glob("*.left"))) == 2  # asked to stop, not just killed
    assert not any(json.loads((chain / ".dvc/tmp/rwlock").read_text()).values())  # DVC too


def test_what_check_refuses_is_said_before_dvc_begins(chain: Path) -> None:
    check = chain / "stages/check.py"
    check.write_text("import sys; sys.exit('check: error: params.yaml')")
    try:
        done = run(chain, "make", "repro")
    finally:
        check.write_text("")
    assert done.returncode == 2
    assert done.stderr.startswith("check: error: params.yaml\nmake: ")
    assert done.stdout == ""


def test_a_check_ends_with_the_make_repro_that_began_it(begun: Callable, chain: Path) -> None:
    """Its network is one that is never built: by itself it would go on for an hour."""
    params, check = chain / "params.yaml", chain / "stages/check.py"
    before = params.read_text()
    values = yaml.safe_load(before)
    values["networks"]["edsr"] = {"factory": "slow:build", "task": "super_resolution", "scale": 2}
    (chain / "slow.py").write_text(SLOW)
    params.write_text(yaml.safe_dump(values))
    shutil.copy(ROOT / "stages/check.py", check)
    try:
        process = begun("make", "repro", stages=1)
        (repro,) = (each for each in living(chain) if "stages.repro" in each.cmdline())
        assert any("stages.check" in each.cmdline() for each in living(chain))
        repro.kill()
        process.wait(900)
        assert gone(chain), [each.cmdline() for each in living(chain)]
    finally:
        params.write_text(before)
        check.write_text("")


def test_a_moved_environments_programs_are_told_their_new_place(tmp_path: Path) -> None:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "dvc").write_text("#!/old/place/.venv/bin/python\nprint('#!/old/place/.venv/bin/python')\nx = 1\n")
    (programs / "activate").write_text('VIRTUAL_ENV="/old/place/.venv"\n')
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/ready").write_text("")
    for said in ("setup: the folder was moved", ""):
        done = run(tmp_path, "make", "setup")
        assert (done.returncode, done.stdout[:26]) == (0, said[:26])
    assert (programs / "dvc").read_text().startswith(f"#!{programs}/python\n")
    assert (programs / "activate").read_text() == f'VIRTUAL_ENV="{tmp_path}/.venv"\n'


@pytest.mark.parametrize("shell", ["/bin/bash", "waits"])
def test_a_killed_dvc_ends_its_stage(begun: Callable, chain: Path, tmp_path: Path, shell: str) -> None:
    if shell == "waits":  # as fish and older dashes do
        shell = str(tmp_path / "shell")
        Path(shell).write_text('#!/bin/bash\n/bin/bash "$@"\nexit $?\n')
        Path(shell).chmod(0o755)
    process = begun("dvc", "repro", "evaluate@edsr", stages=1, SHELL=shell)
    process.kill()
    process.wait()
    assert gone(chain), [each.cmdline() for each in living(chain)]
    assert (chain / "edsr.left").exists()


def test_a_stage_that_someone_else_began_outlives_them(begun: Callable, chain: Path) -> None:
    begun("/bin/bash", "-c", f"{sys.executable} -m stages.sleep edsr & while true; do sleep 1; done", stages=1)
    (shell,) = (each for each in living(chain) if each.name() == "bash")
    shell.kill()
    time.sleep(2)
    assert [each.cmdline()[-1] for each in living(chain) if "stages.sleep" in each.cmdline()] == ["edsr"]


# --- what make says before its set-up -------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A Makefile with two presets, and nothing installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "presets").mkdir()
    for name in ("small", "standard"):
        (tmp_path / "presets" / f"{name}.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("preset", ["typo", "s%", "*", "small standard", "../small", "it's"])
def test_a_preset_that_isnt_there_is_said_before_anything_is_installed(clone: Path, preset: str) -> None:
    done = run(clone, "make", "repro", f"PRESET={preset}")
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert f"presets has no preset '{preset}'; it has small standard" in said
    assert done.stdout == ""
    assert not (clone / ".venv").exists()


def test_a_python_without_pip_is_one_sentence(clone: Path) -> None:
    bare = clone / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    for python, said in ((str(bare), "install python3-pip"), ("nowhere", "Python 3.11 or newer is needed")):
        done = run(clone, "make", "setup", f"PYTHON={python}")
        assert done.returncode == 2
        sentence, stop = done.stderr.splitlines()
        assert said in sentence
        assert stop.startswith("make: ***")
    assert not (clone / ".venv").exists()


# --- what a killed DVC leaves ---------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a dvc.lock, and DVC's folder."""
    (tmp_path / ".dvc/tmp/exps/run/workspace").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    for words in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-q", "-m", "start"]):
        run(tmp_path, "git", *words)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BROKEN = {
    "empty": b"",
    "cut short": LOCK[:60].encode(),
    "cut within a letter": LOCK.encode() + "  ü:".encode()[:-2],
    "conflict": b"<<<<<<< HEAD\n" + LOCK.encode() + b"=======\n" + LOCK.encode() + b">>>>>>> other\n",
    "both sides": LOCK.encode() + LOCK.encode()[14:],
    "zeros": b"\0" * 100,
    "a stage without command": b"schema: '2.0'\nstages:\n  one:\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_dvc_lock_is_gits_again(repository: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("dvc.lock").write_bytes(content)
    mend()
    assert Path("dvc.lock").read_text() == LOCK
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("mended: dvc.lock ")
    assert "git's" in said


def test_a_damaged_dvc_lock_that_git_has_no_whole_one_of_is_removed(repository: Path) -> None:
    Path("dvc.lock").write_bytes(BROKEN["conflict"])
    run(repository, "git", "commit", "-aqm", "conflict")
    mend()
    assert not Path("dvc.lock").exists()


def test_a_damaged_dvc_lock_is_kept_aside_and_one_without_git_too(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (BROKEN["conflict"], BROKEN["cut short"]):
        Path("dvc.lock").write_bytes(content)
        mend()
        (copy,) = re.findall(r"what it held is in (\S+)$", capsys.readouterr().err.strip())
        assert Path(copy).read_bytes() == content
    monkeypatch.setenv("PATH", str(repository))  # no git there
    Path("dvc.lock").write_bytes(content)
    mend()
    assert not Path("dvc.lock").exists()
    assert "it is removed" in capsys.readouterr().err
    assert Path(copy).read_bytes() == content


@pytest.mark.parametrize("version", ["3.0", "1.5"])
def test_a_dvc_lock_of_another_dvc_stays(repository: Path, version: str) -> None:
    text = LOCK.replace("2.0", version)
    assert text != LOCK
    Path("dvc.lock").write_text(text)
    with pytest.raises(UserError, match=rf"dvc\.lock has schema '{version}', which .*`git checkout dvc\.lock`"):
        mend()
    assert Path("dvc.lock").read_text() == text


def test_what_isnt_a_file_where_dvc_writes_one_is_said_and_an_empty_folder_goes(repository: Path) -> None:
    Path(".dvc/tmp/rwlock").mkdir()
    mend()
    assert not Path(".dvc/tmp/rwlock").exists()
    Path(".dvc/tmp/rwlock/x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"rwlock is no regular file, but DVC writes one there: move what is there"):
        mend()
    Path(".dvc/tmp/rwlock/x").rmdir()
    Path("dvc.lock").unlink()
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing")):
        make(Path("dvc.lock"))
        with pytest.raises(UserError, match=r"dvc\.lock is no regular file"):
            mend()
        Path("dvc.lock").rmdir() if Path("dvc.lock").is_dir() else Path("dvc.lock").unlink()


@pytest.mark.parametrize("content", ["", '{"read": {}, "wri', "[]", '{"read": {"a": 3}}'])
def test_a_damaged_list_of_who_is_busy_is_removed(
    repository: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    for path in (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/run/workspace/workspace.json")):
        if content.startswith('{"read": {"a"') and path.name != "rwlock":
            continue
        path.write_text(content)
        mend()
        assert not path.exists()
        assert capsys.readouterr().err.startswith(f"mended: {path} ")


def test_whole_files_stay_as_they_are(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {"dvc.lock": LOCK + "# a remark\n", ".dvc/tmp/rwlock": "{}", ".dvc/tmp/exps/run/workspace/a.json": "{}"}
    for name, text in whole.items():
        Path(name).write_text(text)
    mend()
    assert {name: Path(name).read_text() for name in whole} == whole
    assert capsys.readouterr().err == ""


@pytest.fixture
def dvc(repository: Path) -> Iterator[subprocess.Popen]:
    """Somebody called dvc who works in the repository."""
    words = ["dvc", "-c", "import time; print(flush=True); time.sleep(600)"]
    process = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_nothing_is_mended_under_a_living_dvc(repository: Path, dvc: subprocess.Popen) -> None:
    Path("dvc.lock").write_text("")
    with pytest.raises(UserError, match=rf"dvc\.lock is damaged, and a DVC process \(number {dvc.pid}\)"):
        mend()
    assert Path("dvc.lock").read_text() == ""


def test_a_dead_dvcs_number_that_another_process_has_got_keeps_nobody_out(
    repository: Path, dvc: subprocess.Popen
) -> None:
    held = '{"write": {"/x": {"pid": %d, "cmd": "dvc repro"}}, "read": {}}'
    Path(".dvc/tmp/rwlock").write_text(held % dvc.pid)
    mend()
    assert Path(".dvc/tmp/rwlock").exists()
    dvc.kill()
    dvc.wait()
    Path(".dvc/tmp/rwlock").write_text(held % os.getpid())
    mend()
    assert not Path(".dvc/tmp/rwlock").exists()


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"write": {"a": {"pid": %d, "cmd": "x"}}, "read": {}}' % 10**30])
def test_a_list_of_workers_that_nobody_can_read_is_no_traceback(content: bytes) -> None:
    assert _is_busy(content) is (b"pid" in content)  # a number that no process can have names nobody
