"""One progress line for a stage: step, rate, validation PSNR, time left."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

QUIET_SECONDS = 30.0  # between lines when the output is a file, a pipe, or shared by several stages


class Progress:
    """A bar on a terminal; now and then a line elsewhere (or where PROGRESS=lines asks for it)."""

    def __init__(self, stage: str, total: int, unit: str = "step") -> None:
        lines = not sys.stderr.isatty() or os.environ.get("PROGRESS") == "lines"
        self.stage, self.total, self.base, self.done = stage, total, 0, 0
        self.began = self.last_line = time.monotonic()
        self.first: int | None = None  # this process's first step: a resumed stage starts late
        self.bar = None if lines else tqdm(total=total, desc=stage, unit=unit, dynamic_ncols=True)

    def tick(self, done: int, psnr: float | None = None) -> None:
        """`done` steps of the current phase are behind us."""
        done += self.base
        if self.first is None:  # it took the set-up's time as well, and doesn't count
            self.first, self.began = done, time.monotonic()
            if done - self.base > 1:  # what came before `base` may have been another phase's, or kept
                self.say(f"goes on from step {done - 1}")
        if self.bar is not None:
            if psnr is not None:
                self.bar.set_postfix_str(f"PSNR {psnr:.2f} dB", refresh=False)
            self.bar.update(done - self.done)
        elif done > self.first and time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            rate = (done - self.first) / (self.last_line - self.began)
            quality = "" if psnr is None else f", PSNR {psnr:.2f} dB"
            left = (self.total - done) / rate / 60
            self.say(f"step {done}/{self.total}, {rate:.1f} steps/s{quality}, about {left:.1f} min left")
        self.done = done

    def phase_over(self, steps: int) -> None:
        """The current phase is complete or was cut short; the next one counts from here."""
        self.base += steps

    def extend(self, steps: int) -> None:
        """There is more to do than was expected."""
        self.total += steps
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.refresh()

    def say(self, text: str) -> None:
        """A line that stays."""
        line = f"{self.stage}: {text}"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Silent(Progress):
    """For training inside a study, which shows its own progress."""

    def __init__(self) -> None:  # a bar, even one that is closed at once, would leave a line on the terminal
        self.base, self.bar = 0, None

    def tick(self, done: int, psnr: float | None = None) -> None:
        pass

    def extend(self, steps: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Trials(Progress):
    """The trials of a study: how many are done, the best one, time left."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(name, total, unit="trial")
        self.last_count = -1
        self.failed: set[int] = set()  # trials whose failure was said

    def show(self, count: int, words: str) -> None:
        """`count` trials are done, those of earlier calls included; `words` tell of the best one."""
        if self.first is None:
            self.first = count
            if self.bar is not None:
                self.bar.initial = count
        if self.bar is not None:
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.n = count
            self.bar.refresh()
        elif count != self.last_count:
            left = ""
            if count > self.first:
                each = (time.monotonic() - self.began) / (count - self.first)
                left = f", about {each * (self.total - count) / 60:.1f} min left"
            self.say(f"trial {count}/{self.total}, {words}{left}")
        self.last_count = count
