"""benchmarks/race.py: how its contestants are made small enough, and what its tables say."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chains import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import peers
import race
from contestants import WIDTHS, Task, nearest
from standings import Row, Standings, no_drop_table, picture, read, write

from pipeline import networks
from pipeline.errors import UserError
from pipeline.networks.edsr import EDSR
from pipeline.networks.sid import SID

ROW = Row("l1", 1, 0.5, 100, 45.9, 45.8, 28.0, 29.25, 10.0, "abc")
FAILED = replace(ROW, variant="peer", mac_percent=math.nan, psnr_cut=math.nan, psnr=math.nan, failure="fails: a | b")


def test_the_nearest_network_has_as_many_macs_as_allowed_and_no_more() -> None:
    """MACs of a network whose width goes down by steps: 100 channels, MACs their square."""
    tried = []

    def width(gone: float) -> int:
        tried.append(gone)
        return round(100 * (1 - gone))

    assert nearest(width, lambda channels: channels**2, 10_000, 2_600, 0.9, 12) == 50  # 51² is 2601
    assert len(tried) <= 12


def test_what_cannot_be_made_small_enough_is_said() -> None:
    with pytest.raises(UserError, match=r"can't be made so small: 80\.0% of the MACs are left"):
        nearest(lambda gone: 80, float, 100, 50, 0.9, 4)


def test_a_search_that_trains_ends_when_it_is_near_enough() -> None:
    tried: list[float] = []
    nearest(lambda gone: tried.append(gone) or 1 - gone, float, 1.0, 0.5, 0.9, 6)
    assert len(tried) < 6


@pytest.mark.parametrize(
    ("factory", "args", "kept"),
    [("edsr", {"channels": 2, "blocks": 1}, ["upsample.0", "tail"]), ("edsr", {"channels": 2, "blocks": 1, "scale": 4},
     ["upsample.0", "upsample.2", "tail"]), ("sid", {"base": 1}, ["tail"])],
)  # fmt: skip
def test_peers_leave_the_image_and_what_a_shuffle_reads(factory: str, args: dict, kept: list[str]) -> None:
    assert peers._kept_names(networks.build(factory, args)) == kept


def test_widths_are_arguments_of_their_networks() -> None:
    for (argument, default), factory in zip(WIDTHS.values(), (EDSR, SID), strict=True):
        assert inspect.signature(factory).parameters[argument].default == default
        narrow, wide = (sum(p.numel() for p in factory(**{argument: width}).parameters()) for width in (1, 2))
        assert narrow < wide


def test_a_peer_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError, match=r"not installed: torch_pruning; benchmarks/requirements-peers\.txt"):
        peers.taylor(Task(*[None] * 5))  # type: ignore[arg-type]


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    """Also those of a file without the last column, which earlier races have written."""
    file = tmp_path / "race.csv"
    write(file, [ROW, FAILED])
    first, second = read(file)
    assert first == ROW
    assert second.failure == FAILED.failure
    assert math.isnan(second.psnr)
    file.write_text("\n".join(line.rpartition(",")[0] for line in file.read_text().splitlines()[:2]))
    assert read(file) == [ROW]


def test_the_table_has_medians_and_failures() -> None:
    others = [replace(ROW, seed=2, psnr=29.15), replace(ROW, seed=3, psnr=29.18)]
    standings = Standings([ROW, *others, FAILED], 29.2, {1: 29.3, 2: 29.2, 3: 29.2})
    _, _, first, last = standings.table().splitlines()
    assert first == "| l1 | 45.8 | -1.2000 | -0.0200 | -0.0500 to +0.0500 | -0.0500 | 3 |"
    assert last == "| peer | | | fails: a / b | | | 0 |"
    assert standings.drop(ROW) == pytest.approx(0.05)
    assert standings.drop(others[0]) == pytest.approx(0.05)


def test_the_table_of_no_drop_begins_with_the_smallest_and_has_the_seeds_median() -> None:
    seeds = [ROW, replace(ROW, seed=2, psnr=29.22), replace(ROW, seed=3, psnr=29.24)]
    found = {"a": ([replace(ROW, mac_percent=60.0)], ""), "b": (seeds, ""), "c": ([], ""), "d": ([], "not | installed")}
    lines = no_drop_table(found, Standings([], 29.2, {1: 29.26, 2: 29.26, 3: 29.26}), 90).splitlines()[2:]
    assert lines == [
        "| b | 45.8 | -0.0200 |", "| a | 60.0 | -0.0100 |", "| c | none of up to 90% of the MACs | |",
        "| d | not / installed | |",
    ]  # fmt: skip


def held_from(percent: float, failing: tuple[int, float] = (0, 0.0)) -> Callable[[str, int, float], Row]:
    """Trainings that lose nothing with this many MACs or more; one seed fails at the targets above the other number."""

    def row(variant: str, seed: int, target: float) -> Row:
        if seed == failing[0] and target > failing[1]:
            return replace(FAILED, seed=seed, target=target)
        return replace(ROW, seed=seed, target=target, mac_percent=target, psnr=29.2 if target >= percent else 29.0)

    return row


def test_the_fewest_macs_are_found_by_halving_and_no_seeds_failure_is_hidden(tmp_path: Path) -> None:
    rivals = race.Race.__new__(race.Race)
    rivals.standings = lambda: Standings([], 29.2, {1: 29.2, 2: 29.2})  # type: ignore[method-assign]
    rows, failure = rivals.fewest("l1", (1, 2), held_from(44.0))
    assert [(row.seed, row.target) for row in rows] == [(1, 45.0), (2, 45.0)]  # 43.75 was tried
    assert failure == ""
    rows, failure = rivals.fewest("l1", (1, 2), held_from(44.0, failing=(2, 0.0)))
    assert (rows, failure) == ([], FAILED.failure)


def test_lines_go_over_the_targets_with_the_fewest_macs_first(tmp_path: Path) -> None:
    """Seeds of one target are one point; what has one target, failed or is the control has no line."""
    rows = [
        replace(ROW, psnr=29.20), replace(ROW, seed=2, psnr=29.10), replace(ROW, seed=3, psnr=29.24),
        replace(ROW, target=30.0, mac_percent=29.5, psnr=29.0),
        replace(ROW, variant="l2"), replace(FAILED, target=30.0), FAILED,
        replace(ROW, variant="control"), replace(ROW, variant="control", target=30.0),
    ]  # fmt: skip
    lines = Standings(rows, 29.2, {1: 29.3, 2: 29.2, 3: 29.25}).lines()
    assert lines == {"l1": [(29.5, pytest.approx(0.3)), (45.8, pytest.approx(0.1))]}
    picture(lines, 0.01, "edsr", tmp_path / "race.png")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
