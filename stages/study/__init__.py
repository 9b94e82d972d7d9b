"""What a study is asked for, and what its trials need of the chain's results."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import digest
from stages.common import RESULTS, control_of, flat

# what a worker is told its storage by: a list of processes shows everybody what stands on a command line
STORAGE = "STUDY_STORAGE"


class Study:
    """What the command line and params.yaml ask for."""

    def __init__(self, params: config.Params, given: argparse.Namespace) -> None:
        from pipeline.tracking.runs import root

        self.params, self.given = params, given
        self.network, self.method = given.network or params.search.network, given.method or params.search.method
        for key, value, allowed in (
            ("network", self.network, params.networks),
            ("method", self.method, params.prune.methods),
        ):
            if value not in allowed:
                raise UserError(f"{key} {value!r} isn't in params.yaml, which has {', '.join(allowed)}")
        params.require(self.network)
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
        given_storage = os.environ[STORAGE] if given.worker else given.storage
        self.storage = given_storage or f"sqlite:///{root() / 'search.db'}"
        self.folder = RESULTS / "search" / f"{self.network}-{self.method}"

    def open(self) -> Any:
        from pipeline.study import search

        baseline = digest(RESULTS / "train" / self.network / "network.pt")
        return search.open_study(self.storage, self.name, {"baseline": baseline, "settings": self.settings})

    def problem(self) -> Any:
        """The chain's baseline, control and images."""
        from pipeline.pruning import gate
        from pipeline.study.trial import Problem
        from pipeline.training.setup import load_setup

        params = self.params
        points = control_of(params, self.network)
        target, final = gate.targets(params.gate.reference, points)
        return Problem(
            setup=load_setup(params, self.network, RESULTS),
            numbers=self.numbers,
            active=params.prune.methods[self.method].rules,
            recipe=params.finetune[self.network],
            baseline=RESULTS / "train" / self.network / "network.pt",
            target=target,
            final=final,
            rivals={"baseline": points[0]["psnr"], "control": points[-1]["psnr"]},
            ssim=params.search.ssim,
        )
