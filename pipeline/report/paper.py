"""The results beside those that Table 1 of the paper (ICIP 2019) prints, for the two networks that are in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.records.types import Positive, Text
from pipeline.schema import expected

PAPER = Path(__file__).parents[2] / "data" / "table1.json"  # what the paper prints; its `original` is our baseline
UNITS = {"mac": ("G", 1e9), "weights": ("K", 1e3), "activations": ("M", 1e6), "bw": ("M", 1e6)}  # Table 1's
COSTS = {"mac": "MAC", "weights": "weights", "activations": "activations", "bw": "BW"}


class Entry(TypedDict):
    """A row of Table 1, in its units."""

    network: Text
    solution: Text
    mac: Positive
    weights: Positive
    activations: Positive
    bw: Positive
    psnr: Positive
    ssim: Positive


class Table(TypedDict):
    """data/table1.json."""

    rows: list[Entry]


def printed() -> dict[str, dict[str, dict[str, Any]]]:
    """The paper's Table 1 by factory and solution; its unpruned network goes by our word, baseline."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        rows = TypeAdapter(Table).validate_python(read_json(PAPER))["rows"]
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ", ".join(map(str, fault["loc"])) or "the whole"
        raise UserError(
            f"{PAPER}: {where}: {expected(fault)}; git checkout data/table1.json brings the paper's figures back"
        ) from None
    for entry in rows:
        solution = "baseline" if entry["solution"] == "original" else entry["solution"]
        table.setdefault(entry["network"].lower(), {})[solution] = {**entry}
    return table


def table_one(rows: Sequence[dict[str, Any]], methods: Sequence[str], factories: dict[str, str]) -> str:
    """The figures that Table 1 of the paper has, in its units, and behind them those that it prints.

    factories: network to its factory; only edsr and sid are in the paper.
    """
    heads = [f"{title} ({letter})" for title, (letter, _) in zip(COSTS.values(), UNITS.values(), strict=True)]
    heads += ["PSNR (dB)", "SSIM"]
    lines = [
        f"| network | solution | {' | '.join(heads)} | {' | '.join(f'paper: {head}' for head in heads)} |",
        "| --- | --- |" + " ---: |" * 2 * len(heads),
    ]
    for row in rows:
        if row["solution"] not in ("baseline", *methods):
            continue
        cells = [f"{row[key] / unit:.4g}" for key, (_, unit) in UNITS.items()]
        cells += [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}"]
        paper = printed().get(factories[row["network"]], {}).get(row["solution"])
        cells += [f"{paper[key]:g}" for key in (*COSTS, "psnr", "ssim")] if paper else [""] * len(heads)
        lines.append(f"| {row['network']} | {row['solution']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost_shares(rows: Sequence[dict[str, Any]], factories: dict[str, str]) -> str:
    """The costs of each method beside what the paper's Table 1 prints, both in % of their own baseline.

    factories: network to its factory. Nothing where no network is in the paper.
    """
    heads = [f"{title} (%) | paper (%)" for title in COSTS.values()]
    lines = ["| network | method | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * 8]
    for row in rows:
        paper = printed().get(factories[row["network"]], {})
        if row["solution"] not in paper or row["solution"] == "baseline":
            continue
        cells = []
        for key in COSTS:
            share = 100 * paper[row["solution"]][key] / paper["baseline"][key]
            cells.append(f"{row[f'{key}_percent']:.1f} | {share:.1f}")
        lines.append(f"| {row['network']} | {row['solution']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""
