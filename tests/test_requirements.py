"""What is imported is declared: each package of others in requirements.in, and pinned in requirements.txt."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from chains import ROOT

OWN = {"pipeline", "stages", "examples"}


def plain(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(path: Path) -> set[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return {plain(re.split(r"[\[=<>~! ;]", line)[0]) for line in lines if line}


def imported() -> dict[str, str]:
    """The top names that the project imports, each with a file that does."""
    files = [path for top in (*OWN, "tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
    ours = OWN | {path.stem for path in files}  # tests import their neighbours by name
    names: dict[str, str] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            for name in {module.partition(".")[0] for module in modules} - ours - sys.stdlib_module_names:
                names[name] = str(path.relative_to(ROOT))
    return names


def test_every_imported_package_is_declared() -> None:
    packages, known = packages_distributions(), declared(ROOT / "requirements.in")
    missing = {
        name: file
        for name, file in imported().items()
        if not known & {plain(distribution) for distribution in packages.get(name, [name])}
    }
    assert not missing


def test_every_declared_package_is_pinned() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert declared(ROOT / "requirements.in") <= {plain(name) for name in pinned}
