"""The report: verdicts, tables and pictures from the files in results/, as Markdown and as one page of HTML."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline import config, figures, tables
from pipeline.files import read_json, write_bytes

PAPER = Path(__file__).parents[1] / "data" / "table1.json"  # the printed results of the ICIP 2019 paper
COSTS = {"mac": "MAC", "weights": "weights", "activations": "activations", "bw": "BW"}

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #8884; white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
blockquote { margin: 0; padding: .1rem 1rem; border-left: 4px solid #d55e00; font-size: 1.1rem; }
@media print { body { max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  img, table { break-inside: avoid; } }
"""


def verdict(rows: Sequence[dict[str, Any]], methods: Sequence[str], network: str) -> str:
    """One sentence on a network: what the method that removed most has removed, and what it lost on the test images."""
    mine = {row["solution"]: row for row in rows if row["network"] == network}
    best = min(methods, key=lambda method: mine[method]["mac"])
    row = mine[best]
    if row["mac_percent"] == 100:
        return f"**{network}: nothing was removed**, as no iteration held; results/prune/{network} says why."
    removed = f"**{network}, method {best}: {100 - row['mac_percent']:.0f}% of the MACs removed**"
    return (
        f"{removed}, BW −{100 - row['bw_percent']:.0f}%; test PSNR {_gain(row['against_baseline'])} against the "
        f"baseline, {_gain(row['against_original'])} against the equally trained control."
    )


def headlines(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By network and method, what experiments are compared by: MACs kept in percent, PSNR drops in dB."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["solution"] in methods:
            found.setdefault(row["network"], {})[row["solution"]] = {
                "mac_percent": row["mac_percent"],
                "validation_drop": row["validation_drop"],
                "test_drop_baseline": -row["against_baseline"]["mean"],
                "test_drop_control": -row["against_original"]["mean"],
            }
    return found


def _gain(difference: dict[str, float]) -> str:
    return f"{difference['mean']:+.3f} dB [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def beside_the_paper(rows: Sequence[dict[str, Any]], factories: dict[str, str]) -> str:
    """The costs of each method beside what the paper's Table 1 prints, both in % of their own original.

    factories: network to its factory; only edsr and sid are in the paper.
    """
    printed: dict[str, dict[str, dict[str, float]]] = {}
    for entry in read_json(PAPER)["rows"]:
        printed.setdefault(entry["network"].lower(), {})[entry["solution"]] = entry
    heads = [f"{title} (%) | paper (%)" for title in COSTS.values()]
    lines = ["| network | method | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * 8]
    for row in rows:
        paper = printed.get(factories[row["network"]], {})
        if row["solution"] not in paper or row["solution"] == "original":
            continue
        cells = []
        for key in COSTS:
            share = 100 * paper[row["solution"]][key] / paper["original"][key]
            cells.append(f"{row[f'{key}_percent']:.1f} | {share:.1f}")
        lines.append(f"| {row['network']} | {row['solution']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def draw(results: Path, folder: Path, params: config.Params, rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Draw every picture into `folder`/pictures. For each network: heading to file name."""
    methods, made = params.run.methods, {}
    for network in params.run.networks:
        frames, looks = results / "evaluate" / network, read_json(results / "evaluate" / network / "looks.json")
        shown, at = methods[-1], folder / "pictures"
        named = {
            "Before pruning": f"{network}-layers.png",
            "Channels kept and pruned": f"{network}-widths.png",
            "The path": f"{network}-path.png",
            f"Thresholds of {shown}": f"{network}-thresholds.png",
            "Quality against MACs": f"{network}-tradeoff.png",
            "Is the baseline finished?": f"{network}-training.png",
        }
        figures.architecture(results, network, params.analyze[network].size, at / f"{network}-layers.png")
        figures.widths(results, network, methods, at / f"{network}-widths.png")
        figures.path(results, network, methods, at / f"{network}-path.png")
        figures.thresholds(results, network, shown, at / f"{network}-thresholds.png")
        figures.tradeoff(rows, network, at / f"{network}-tradeoff.png")
        figures.training_curves(results, network, at / f"{network}-training.png")
        for rule, (name, drop) in looks.items():
            word = rule.replace(" ", "-")
            file = f"{network}-{word}.png"
            figures.looks(frames / "pictures" / word, at / file, shown, params.report.crop)
            said = {"largest loss": "smallest gain"}.get(rule, rule) if drop <= 0 else rule
            said = {"largest gain": "smallest loss"}.get(rule, said) if drop >= 0 else said
            named[f"Looking closer, {said}: {name}, {-drop:+.3f} dB against the baseline"] = file
        made[network] = named
    return made


def times(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]], network: str) -> str:
    """Measured time and memory of a pruned network, as shares of the original's, beside its share of the MACs."""
    macs = {row["solution"]: row["mac_percent"] for row in rows if row["network"] == network and "mac" in row}
    lines = [
        "| runtime | input | method | MAC (%) | time (%) | original (ms) | pruned (ms) | range (ms) | memory (%) |",
        "| --- | --- | --- |" + " ---: |" * 6,
    ]
    original: dict[str, Any] = {}
    for row in measured:
        if row["network"] == "baseline":
            original = row
            continue
        memory = f"{100 * row['memory'] / original['memory']:.0f}" if original["memory"] else ""
        lines.append(
            f"| {row['runtime']} | {row['side']}×{row['side']} | {row['network']} | {macs[row['network']]:.1f} "
            f"| {100 * row['ratio']:.1f} | {1e3 * original['seconds']:.2f} | {1e3 * row['seconds']:.2f} "
            f"| {1e3 * row['low']:.2f} to {1e3 * row['high']:.2f} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def markdown(
    params: config.Params,
    rows: list[dict[str, Any]],
    latency: dict[str, list[dict[str, Any]]],
    pictures: dict[str, dict[str, str]],
    whole: dict[str, list[str]],
    table: str,
) -> str:
    """The whole report. `latency`: by network, what was timed; `pictures`: what `draw` made; `whole`: what
    can't be pruned, and why; `table`: the main one."""
    methods = params.run.methods
    parts = ["# What was pruned, what it saves, what it costs in quality", ""]
    parts += [f"> {verdict(rows, methods, network)}\n" for network in params.run.networks]
    parts += ["## The table", table]
    paper = beside_the_paper(rows, {name: params.networks[name].factory for name in params.run.networks})
    if paper:
        parts += ["## Beside the paper", paper, PAPER_NOTE]
    for network, named in pictures.items():
        parts += [f"## {network}", "### Where the time goes", times(rows, latency[network], network), TIME_NOTE]
        if whole[network]:
            parts += ["### What stays whole", *(f"- {sentence}" for sentence in whole[network]), ""]
        for heading, file in named.items():
            parts += [f"### {heading}", f"![{network}: {heading}](pictures/{file})", ""]
    return "\n".join(parts)


PAPER_NOTE = """\
Costs are shares of each network's own original and can be compared: what matters is which layers give, and how far.
Quality can't: the paper trained the full networks on DIV2K and on the SID set. Its SID activations are 7·H·W elements
lower than this project's definition.
"""


TIME_NOTE = """\
MACs removed are not time saved. Medians on this machine, original and pruned run in turns; the time's share is the
median over rounds, the range is the pruned network's; memory is what one run holds at its peak, beyond the network.
"""


def page(text: str, folder: Path) -> str:
    """The Markdown report as one page of HTML without any other file; its pictures lie in `folder`."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")

    def inlined(found: re.Match[str]) -> str:
        data = base64.b64encode((folder / unquote(html.unescape(found[1]))).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(pictures/[^"]+)"', inlined, body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Pruning report</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


def write(results: Path, folder: Path, params: config.Params) -> list[dict[str, Any]]:
    """Write tables, pictures, report.md and index.html into `folder`; gives the table's rows."""
    rows = [
        row
        for network in params.run.networks
        for row in tables.rows(results, network, params.run.methods, params.networks[network].task)
    ]
    sizes = {network: params.analyze[network].size for network in params.run.networks}
    tasks = {network: params.networks[network].task for network in params.run.networks}
    synthetic = [n for n, task in tasks.items() if task == "low_light" and params.prepare[n].layout != "sid"]
    sets = [row for n, task in tasks.items() for row in tables.set_rows(results, n, params.run.methods, task)]
    table = tables.markdown(rows, sizes, params.gate, synthetic) + tables.sets_markdown(sets)
    pictures = draw(results, folder, params, rows)
    latency = {network: read_json(results / "latency" / network / "latency.json") for network in params.run.networks}
    whole = {n: read_json(results / "analyze" / n / "groups.json")["frozen"] for n in params.run.networks}
    text = markdown(params, rows, latency, pictures, whole, table)
    example = next(file for file in pictures[params.run.networks[0]].values() if "largest-loss" in file)
    write_bytes(folder / "example.png", (folder / "pictures" / example).read_bytes())  # the README's
    for name, content in {
        "table.md": table,
        "table.csv": tables.csv(rows),
        "metrics.json": json.dumps(headlines(rows, params.run.methods), indent=1) + "\n",
        "report.md": text,
        "index.html": page(text, folder),
    }.items():
        write_bytes(folder / name, content.encode())
    return rows
