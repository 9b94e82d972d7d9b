"""The winner of a study: what it is, how the chain runs with it, and params.yaml with its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_bytes
from stages.study import Study


def tell(study: Study, optuna_search: Any, opened: Any, best: Any, rows: list[dict[str, Any]], saved: float) -> None:
    """The winner, and what to do with it."""
    print(f"search: {study.name}: {len(rows)} trials, {100 * saved:.0f}% of their steps saved; {study.folder}/")
    failed = [row for row in rows if row["state"] == "fail"]
    for row in failed:
        print(f"search: trial {row['trial']} failed twice: {row.get('reason', optuna_search.SILENT)}")
    if best is None:
        close = optuna_search.nearest(opened)
        if close is None:
            raise UserError("no trial was finished; their reasons stand above")
        raise UserError(
            f"no trial holds; the nearest, {close.number}, keeps {100 * close.value:.1f}% of the MACs and misses by "
            f"{max(close.constraints.values()):.4f} ({_words(close.params)})"
        )
    drops = ", ".join(
        f"{best.user_attrs[f'psnr_drop_{name}']:+.4f} dB against the {name}" for name in ("baseline", "control")
    )
    print(f"search: trial {best.number} wins: {100 * best.value:.1f}% of the MACs, drop {drops} (validation)")
    print(f"search: {_words(best.params)}")
    settings = " ".join(f"-S prune.{key}={value!r}" for key, value in best.params.items())
    alone = f"-S 'run.networks=[{study.network}]' -S 'run.methods=[{study.method}]'"  # what was searched, no more
    alone += f" -S report.method={study.method}"
    print(f"search: the chain with it: dvc exp run {alone} {settings}")
    if study.given.apply:
        apply(Path("params.yaml"), best.params)
        print("search: params.yaml has it now: dvc repro")


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def apply(path: Path, values: dict[str, float]) -> None:
    """Set numbers of `prune` in a parameter file; its comments and its layout stay."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    content = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        content["prune"][key] = value
    written = io.StringIO()
    yaml.dump(content, written)
    write_bytes(path, written.getvalue().encode())
