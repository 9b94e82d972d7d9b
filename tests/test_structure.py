"""The house: what a stage imports is what DVC watches, and imports run one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from chains import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What changes no result: how parameters and networks are checked, files written, progress shown and runs logged.
PLUMBING = {
    "checks",
    "config",
    "schema",
    "errors",
    "files",
    "records",
    "progress",
    "cli",
    "stores",
    "tracking",
    "__init__",
}


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            place = ROOT / name.replace(".", "/")
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return found


def reached(path: Path) -> set[str]:
    """All of pipeline/ that a file imports, over any number of steps, but for the plumbing."""
    seen, todo = set(), [path]
    while todo:
        for file in imported(todo.pop()):
            name = file.relative_to(ROOT)
            if name.parts[0] == "pipeline" and file not in seen and Path(name.parts[1]).stem not in PLUMBING:
                seen.add(file)
                todo.append(file)
    return {str(file.relative_to(ROOT)) for file in seen}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_all_that_a_stage_imports(stage: str) -> None:
    section = STAGES[stage].get("do", STAGES[stage])
    watched = [str(dep) for dep in section["deps"] if str(dep).startswith(("pipeline", "stages"))]
    needed = reached(ROOT / "stages" / f"{stage}.py")
    missed = {file for file in needed if not any(file == dep or file.startswith(f"{dep}/") for dep in watched)}
    assert not missed
    idle = {dep for dep in watched if dep.startswith("pipeline") and not any(file.startswith(dep) for file in needed)}
    assert not idle


ORDER = [  # a room imports what stands before it here
    "errors", "files", "schema", "config", "presets", "records", "stores", "progress", "cli", "data", "evaluation",
    "prepare", "networks", "cost", "export", "training", "pruning", "latency", "report", "tracking", "study", "checks",
    "pruner", "__main__", "stages",
]  # fmt: skip
FILES = sorted(file for folder in ("pipeline", "stages") for file in (ROOT / folder).rglob("*.py"))
AT_HOME = {  # package -> where alone it is imported
    "mlflow": ("pipeline/tracking/",),
    "optuna": ("pipeline/study/",),
    "dvc": ("stages/dvc.py", "stages/mend.py"),
}


def room(file: Path) -> str:
    """A file's room: the folder or the module in pipeline/, or stages."""
    parts = file.relative_to(ROOT).parts
    return "stages" if parts[0] == "stages" else Path(parts[1]).stem


def test_rooms_import_one_way() -> None:
    files = [file for file in FILES if room(file) != "__init__"]
    assert {room(file) for file in files} == set(ORDER)
    against = [
        f"{file.relative_to(ROOT)} imports {room(other)}"
        for file in files
        for other in imported(file)
        if room(other) != "__init__" and ORDER.index(room(other)) > ORDER.index(room(file))
    ]
    assert against == []


@pytest.mark.parametrize("package", AT_HOME)
def test_a_large_library_is_imported_in_its_own_room_alone(package: str) -> None:
    importing = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.partition(".")[0] == package for name in names):
                importing.add(str(file.relative_to(ROOT)))
    assert importing
    assert {name for name in importing if not name.startswith(AT_HOME[package])} == set()
