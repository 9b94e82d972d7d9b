"""The progress line: what it says of the rate and of the time left."""

from __future__ import annotations

import pytest

from pipeline import progress


class Clock:
    """time.monotonic, moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setenv("PROGRESS", "lines")
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_time_left_follows_from_the_steps_and_not_from_the_set_up(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = progress.Progress("train x", 1000)
    clock.now = 100.0  # the set-up
    line.tick(1)
    assert capsys.readouterr().err == ""
    clock.now += 10.0  # 100 steps at 10 steps/s
    line.tick(101, 30.0)
    assert capsys.readouterr().err == "train x: step 101/1000, 10.0 steps/s, PSNR 30.00 dB, about 1.5 min left\n"


def test_a_resumed_stage_says_where_it_goes_on_and_counts_its_own_steps_alone(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = progress.Progress("train x", 1000)
    line.tick(401)
    assert capsys.readouterr().err == "train x: goes on from step 400\n"
    clock.now = 50.0
    line.tick(501)
    assert capsys.readouterr().err == "train x: step 501/1000, 2.0 steps/s, about 4.2 min left\n"


def test_a_phase_that_begins_after_others_that_were_kept_is_not_resumed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = progress.Progress("control x", 1000)
    line.phase_over(400)
    line.tick(1)
    assert capsys.readouterr().err == ""


def test_lines_come_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = progress.Progress("train x", 1000)
    for step in range(1, 101):
        line.tick(step)
        clock.now += 1.0
    assert len(capsys.readouterr().err.splitlines()) == 3
