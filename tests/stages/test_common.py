"""What stages share: the folder of what is unfinished."""

from __future__ import annotations

from pathlib import Path

import pytest
from chains import ROOT

from pipeline import config, files
from pipeline.errors import UserError
from stages import common


def test_a_stage_that_another_process_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = config.read(ROOT / "params.yaml")
    folder = common.scratch("prune", params, "a")
    assert common.scratch("prune", params, "a") == folder  # this process's own
    common.finished(folder)
    assert not folder.exists()
    said = f"{folder} is in use: another process makes the same stage prune; wait for it, or stop it"
    with files.hold(folder), pytest.raises(UserError, match=said):
        common.scratch("prune", params, "a")
    assert common.scratch("prune", params, "b") != folder
