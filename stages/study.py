"""What a study is asked for, and its worker: trials of one network and method until the study has its total."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
import time
from typing import Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import digest, read_json
from stages.common import RESULTS, SCRATCH, flat


class Study:
    """What the command line and params.yaml ask for."""

    def __init__(self, params: config.Params, given: argparse.Namespace) -> None:
        from pipeline.tracking import root

        self.params, self.given = params, given
        self.network, self.method = given.network or params.search.network, given.method or params.search.method
        for key, value, allowed in (
            ("network", self.network, params.networks),
            ("method", self.method, params.prune.methods),
        ):
            if value not in allowed:
                raise UserError(f"{key} {value!r} isn't in params.yaml, which has {', '.join(allowed)}")
        for key, section in (
            ("train", params.train),
            ("analyze", params.analyze),
            ("prune.networks", params.prune.networks),
            ("finetune", params.finetune),
        ):
            if self.network not in section:
                raise UserError(f"network {self.network!r} isn't in {key}, which has {', '.join(section)}")
        if given.study is not None and not config.NAME.fullmatch(given.study):
            raise UserError(f"--study is {given.study!r}; letters, digits, - and _ make a name")
        self.trials = params.search.trials if given.trials is None else given.trials
        for key, value in (("--trials", self.trials), ("--workers", given.workers)):
            if value < 1:
                raise UserError(f"{key} is {value}; at least 1 is allowed")
        overridden = set(params.search.space) & set(params.prune.methods[self.method].overrides)
        if overridden:
            where = f"prune.methods.{self.method}.overrides"
            raise UserError(f"search.space has {', '.join(sorted(overridden))}, which {where} sets: take it from one")
        self.numbers = params.rules(self.method)
        for key, wanted in params.search.space.items():
            value = getattr(self.numbers, key)
            if not wanted.low <= value <= wanted.high:
                raise UserError(
                    f"params.yaml: prune.{key} is {value:g}, outside search.space.{key}, {wanted.low:g} to "
                    f"{wanted.high:g}: a study begins with the numbers that there are"
                )
        fixed = {key: value for key, value in flat(self.numbers).items() if key not in params.search.space}
        settings = (params.networks, params.train, params.prune.networks, params.finetune)
        asked = (
            fixed,
            params.seed,
            params.prune.methods[self.method].rules,
            flat(params.gate),
            flat(params.search.space),
        )
        asked += (params.search.ssim, *(flat(section[self.network]) for section in settings))
        self.settings = digest(self.network, self.method, *asked)[:8]
        self.name = given.study or f"{self.network}-{self.method}-{self.settings}"
        self.storage = given.storage or f"sqlite:///{root() / 'search.db'}"
        self.folder = RESULTS / "search" / f"{self.network}-{self.method}"

    def open(self) -> Any:
        from pipeline import search

        baseline = digest(RESULTS / "train" / self.network / "network.pt")
        return search.open_study(self.storage, self.name, {"baseline": baseline, "settings": self.settings})

    def problem(self) -> Any:
        """The chain's baseline, control and images."""
        from pipeline import pruning
        from pipeline.job import load_job
        from pipeline.trial import Problem

        params, results = self.params, RESULTS / "control" / self.network
        curve, end = read_json(results / "curve.json"), read_json(results / "metrics.json")
        against_control = params.gate.reference == "control"
        points, final = (curve, end) if against_control else (curve[:1], curve[0])
        return Problem(
            job=load_job(params, self.network, RESULTS),
            numbers=self.numbers,
            active=params.prune.methods[self.method].rules,
            recipe=params.finetune[self.network],
            baseline=RESULTS / "train" / self.network / "network.pt",
            target=pruning.Target(tuple(p["psnr"] for p in points), tuple(p["ssim"] for p in points)),
            final=(final["psnr"], final["ssim"]),
            rivals={"baseline": curve[0]["psnr"], "control": end["psnr"]},
            ssim=params.search.ssim,
        )


def work(study: Study) -> None:
    """One worker: trials until the study has its total."""
    threading.Thread(target=end_with, args=(study.given.worker,), daemon=True).start()
    from pipeline import search, tracking
    from pipeline.trial import CannotWinError, measure

    opened, problem = study.open(), study.problem()
    space = search.distributions(study.params.search.space)
    defaults = {key: getattr(study.numbers, key) for key in space}
    above = tracking.study(study.name, {})

    def run(number: int, values: dict[str, float], report: Any) -> Any:
        tags = {"level": "trial", "network": study.network, "method": study.method}
        child = above.child(f"trial {number}", tags)
        child.params(values)
        folder = SCRATCH / f"search-{digest(study.name, opened.user_attrs['baseline'], values)}"
        folder.mkdir(parents=True, exist_ok=True)

        def follow(iteration: Any, total: int) -> None:
            child.metrics(tracking.iteration_figures(iteration, total), iteration.number)

        try:
            outcome = measure(problem, values, folder, report, follow)
        except BaseException as error:
            child.tags({"reason": f"{error or type(error).__name__}"[:4000]})
            if isinstance(error, CannotWinError):
                child.metrics({"mac_kept": error.mac_kept} | error.notes)
                shutil.rmtree(folder, ignore_errors=True)
            child.end("FINISHED" if isinstance(error, CannotWinError) else "FAILED")
            raise
        child.metrics({"mac_kept": outcome.mac_kept, "feasible": float(outcome.feasible)} | outcome.notes)
        child.tags({"feasible": "yes" if outcome.feasible else "no"})
        child.end()
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    proposals = search.Proposals(space, study.params.seed, defaults)
    search.work(opened, run, proposals, study.trials, problem.constraints)


def end_with(parent: int) -> None:
    """Stop this worker, as by Ctrl-C, when the command that began it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
