"""What a study is asked for, checked against params.yaml, and what its trials need of the chain's results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import config, records
from pipeline.errors import UserError
from pipeline.files import digest

if TYPE_CHECKING:
    import optuna

    from pipeline.study.trial import Problem


@dataclass(frozen=True)
class Study:
    """The study of one network and one method; UserError when it can't be run with these parameters.

    name: None, for one made of the network, the method and a digest of all that the trials depend on.
    """

    params: config.Params
    network: str
    method: str
    trials: int  # in total, those of earlier calls included
    storage: str  # address of its database
    results: Path  # folder of the chain's results
    given_name: str | None = None

    def __post_init__(self) -> None:
        params = self.params
        for key, value, allowed in (
            ("network", self.network, params.networks),
            ("method", self.method, params.methods),
        ):
            if value not in allowed:
                raise UserError(f"{key} {value!r} isn't in params.yaml, which has {', '.join(allowed)}")
        params.require(self.network)
        if self.given_name is not None and not config.NAME.fullmatch(self.given_name):
            raise UserError(f"--study is {self.given_name!r}; letters, digits, - and _ make a name")
        if self.trials < 1:
            raise UserError(f"--trials is {self.trials}; at least 1 is allowed")
        overridden = set(params.search.space) & set(params.methods[self.method].overrides)
        if overridden:
            where = f"methods.{self.method}.overrides"
            raise UserError(f"search.space has {', '.join(sorted(overridden))}, which {where} sets: take it from one")
        for key, limits in params.search.space.items():
            value = getattr(self.settings, key)
            if not limits.low <= value <= limits.high:
                raise UserError(
                    f"params.yaml: prune.{key} is {value:g}, outside search.space.{key}, {limits.low:g} to "
                    f"{limits.high:g}: the first trial of a study runs with the settings of params.yaml"
                )

    @cached_property
    def settings(self) -> config.Settings:
        """The settings of the method, with which the first trial runs."""
        return self.params.settings(self.method, self.network)

    @cached_property
    def settings_digest(self) -> str:
        """Names what the trials minimise, and all of params.yaml that they depend on."""
        params, network = self.params, self.network
        searched = params.search.space
        fixed = self.settings.model_dump(exclude_none=True, exclude=set(searched))
        sections: list[Mapping[str, config.Section]] = [
            params.networks,
            params.train,
            params.retrain,
            params.tolerance,
            params.finetune,
        ]
        return digest(
            "mac_percent", "beyond_limit", network, self.method, fixed, params.seed, params.methods[self.method].rules,
            params.gate.model_dump(), {key: limits.model_dump() for key, limits in searched.items()},
            params.search.ssim, *(section[network].model_dump(exclude_none=True) for section in sections),
        )[:8]  # fmt: skip

    @property
    def name(self) -> str:
        return self.given_name or f"{self.network}-{self.method}-{self.settings_digest}"

    @property
    def folder(self) -> Path:
        """Where its table and its figures go."""
        return self.results / "search" / f"{self.network}-{self.method}"

    @property
    def baseline(self) -> Path:
        return self.results / "train" / self.network / "network.pt"

    def open(self) -> optuna.Study:
        """The study in its storage; UserError when it was begun with another baseline or other parameters."""
        from pipeline.study.storage import open_study

        identity = {"baseline": digest(self.baseline), "settings": self.settings_digest}
        return open_study(self.storage, self.name, identity)

    def problem(self, control: list[records.Point]) -> Problem:
        """What the trials share. control: its quality after each iteration, and after its fine-tune."""
        from pipeline.pruning import gate
        from pipeline.study.trial import Problem
        from pipeline.training.setup import load_setup

        params = self.params
        target, final = gate.targets(params.gate.reference, control)
        return Problem(
            setup=load_setup(params, self.network, self.results, cache=Path(".scratch/trainings")),
            settings=self.settings,
            active=params.methods[self.method].rules,
            recipe=params.finetune[self.network],
            baseline=self.baseline,
            target=target,
            final=final,
            rivals={"baseline": control[0]["psnr"], "control": control[-1]["psnr"]},
            ssim=params.search.ssim,
        )
