"""Hostile params.yaml: every fault of it is said before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import Hostile, base, check, copied


def written(text: str):
    return lambda folder: (folder / "params.yaml").write_text(text)


CASES = [
    Hostile("an unknown key", "stages.check", ("params.yaml: gate.max_drop", "unknown key"), {"gate__max_drop": 1.0}),
    Hostile("a rate that is text", "stages.train edsr", ("train.edsr.lr", "number"), {"train__edsr__lr": "fast"}),
    Hostile("no YAML at all", "stages.check", ("params.yaml",), make=written("{[")),
]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_parameter_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
