"""The pages that people read: short enough, linked right, and in step with the table and the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from chains import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def test_the_readme_is_read_to_its_end() -> None:
    assert len(README.splitlines()) <= 130
    assert [command for command in ("make repro", "make test", "dvc repro") if command not in README] == []


def test_the_readme_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w/.-]+\.md)\)", README))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_a_page_begins_with_who_needs_it(page: Path) -> None:
    assert page.read_text().splitlines()[2].startswith("This page is for anyone who ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_prints_exist(page: Path) -> None:
    text = page.read_text()
    modules = {name.replace(".", "/") for name in re.findall(r"python -m (pipeline\.[a-z_.]+[a-z])", text)}
    files = {f"{name}.py" for name in modules} | set(re.findall(r"python ((?:benchmarks|tests)/\w+\.py)", text))
    assert [name for name in files if not (ROOT / name).is_file()] == []
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert isinstance(yaml.safe_load(block), dict)


def cells(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by column."""
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(head, row, strict=True)) for row in rows]


def committed(path: str) -> str:
    words = ["git", "show", f"HEAD:{path}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_readmes_table_is_the_reports() -> None:
    """Every cell of the README's table stands in results/report/table.md, under the same head.

    In the committed one where the README is as committed: make repro may have written another processor's.
    """
    block = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", README, re.DOTALL)
    assert block
    printed = cells(block[1])
    table = "results/report/table.md"
    text = committed(table) if committed("README.md") == README else (ROOT / table).read_text()
    whole = text.partition("\n\n")[0]
    rows = {(row["network"], row["solution"]): row for row in cells(whole)}
    for row in printed:
        assert row.items() <= rows[row["network"], row["solution"]].items()
    assert {(row["network"], row["solution"]) for row in printed} == {
        (network, row) for network in ("edsr", "sid") for row in ("baseline", "control", "D")
    }
