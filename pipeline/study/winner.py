"""The winner of a study: what it is, how the chain runs with it, and params.yaml with its settings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import optuna

from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.study import results, slots
from pipeline.study.definition import Study


def report(study: Study, opened: optuna.Study, rows: list[dict[str, Any]], apply: bool) -> None:
    """Print the winner and how the chain runs with it; UserError when no trial holds the gate.

    rows: the study's table; apply: whether to write its settings into params.yaml.
    """
    saved = 100 * results.saved_share(rows)
    print(f"search: {study.name}: {len(rows)} trials, {saved:.0f}% of their steps saved; {study.folder}/")
    for row in rows:
        if row["state"] == "fail":
            print(f"search: trial {row['trial']} failed twice: {row.get('reason', slots.SILENT)}")
    best = slots.winner(opened)
    if best is None:
        near = slots.nearest(opened)
        if near is None:
            raise UserError("no trial was finished; their reasons stand above")
        raise UserError(
            f"no trial holds the gate; the nearest, {near.number}, keeps {near.value:.1f}% of the MACs and misses by "
            f"{max(near.constraints.values()):.4f} ({_words(near.params)})"
        )
    changes = ", ".join(
        f"{best.user_attrs[f'psnr_change_{name}']:+.4f} dB against the {name}" for name in ("baseline", "control")
    )
    print(f"search: trial {best.number} wins: {best.value:.1f}% of the MACs, PSNR {changes} (validation)")
    if best.value == 100:
        print("search: it removes nothing, as no trial that does holds the gate")
    print(f"search: {_words(best.params)}")
    place = f"methods.{study.method}.networks.{study.network}"
    settings = " ".join(f"-S ++{place}.{key}={value!r}" for key, value in best.params.items())
    alone = f"-S 'run.networks=[{study.network}]' -S 'run.methods=[{study.method}]'"  # what was searched, no more
    alone += f" -S report.method={study.method}"
    print(f"search: the chain with it, which then looks for a smaller one: dvc exp run {alone} {settings}")
    if apply:
        write_settings(Path("params.yaml"), study.method, study.network, best.params)
        print(f"search: params.yaml has it now, at {place}: dvc repro")


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def write_settings(path: Path, method: str, network: str, values: dict[str, float]) -> None:
    """Set what a method prunes one network by in a parameter file; its comments and its layout stay."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    content = yaml.load(path.read_text(encoding="utf-8"))
    content["methods"][method].setdefault("networks", {}).setdefault(network, {}).update(values)
    text = io.StringIO()
    yaml.dump(content, text)
    write_bytes(path, text.getvalue().encode())
