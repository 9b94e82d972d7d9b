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

from pipeline import config, records
from pipeline.files import read_json, replacing, write_bytes
from pipeline.latency import layer_times
from pipeline.report import captions, tables

PAPER = Path(__file__).parents[2] / "data" / "table1.json"  # the printed results of the ICIP 2019 paper
UNITS = {"mac": ("G", 1e9), "weights": ("K", 1e3), "activations": ("M", 1e6), "bw": ("M", 1e6)}  # Table 1's
COSTS = {"mac": "MAC", "weights": "weights", "activations": "activations", "bw": "BW"}

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #8884; } td { white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
blockquote { margin: 0; padding: .1rem 1rem; border-left: 4px solid #d55e00; font-size: 1.1rem; }
@media (max-width: 44rem) { p:has(> img) { overflow-x: auto; } img { max-width: none; width: 44rem; } }
@media print { body { max-width: none; font-size: 11px; } h2, h3, h3 + p { break-after: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5px; } th, td { padding: .1rem .2rem; white-space: normal; }
  h1 { font-size: 18px; } blockquote { font-size: 12px; }
  img, table { break-inside: avoid; } img { max-height: 17cm; } }
"""


def verdict(rows: Sequence[dict[str, Any]], methods: Sequence[str], network: str, measured: dict[str, Any]) -> str:
    """What the last method, whose pictures and times are shown, has removed and lost on the test images.

    rows: the table's; measured: what `latency` has timed of the network.
    """
    mine, shown = {row["solution"]: row for row in rows if row["network"] == network}, methods[-1]
    row, most = mine[shown], min(methods, key=lambda method: mine[method]["mac"])
    if row["mac_percent"] == 100:
        said = f"**{network}, method {shown}: nothing was removed**, as no iteration held: see its path."
    else:
        said = (
            f"**{network}, method {shown}: {100 - row['mac_percent']:.0f}% of the MACs removed**, "
            f"BW −{100 - row['bw_percent']:.0f}%; test PSNR {_gain(row['against_baseline'])} against the baseline "
            f"({_judged(row['against_baseline'])}), {_gain(row['against_original'])} against the control "
            f"({_judged(row['against_original'])}). {_timed(measured, shown)}"
        )
    if mine[most]["mac"] < row["mac"]:
        said += f" Method {most} removed more: {100 - mine[most]['mac_percent']:.1f}%."
    return said


def _timed(measured: dict[str, Any], method: str) -> str:
    """The time that a method's network takes of the original's at the largest size, on each runtime."""
    side = measured["side"]
    found = [
        f"{row['runtime']} {100 * row['ratio']:.0f}%" for row in measured["networks"]
        if (row["network"], row["side"]) == (method, side)
    ]  # fmt: skip
    return f"Time at {side}×{side}, of the baseline's: {', '.join(found)}."


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
    said = f"{difference['mean']:+.3f} dB [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return said.replace("-", "−")


def _judged(difference: dict[str, float]) -> str:
    """What the 95% interval of a gain says."""
    if difference["low"] == difference["high"]:
        return "one image has no interval"
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no difference shown"


def _printed() -> dict[str, dict[str, dict[str, float]]]:
    """The paper's Table 1 by factory and solution."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for entry in read_json(PAPER)["rows"]:
        found.setdefault(entry["network"].lower(), {})[entry["solution"]] = entry
    return found


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
        name = "original" if row["solution"] == "baseline" else row["solution"]  # as the paper says
        cells = [f"{row[key] / unit:.4g}" for key, (_, unit) in UNITS.items()]
        cells += [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}"]
        paper = _printed().get(factories[row["network"]], {}).get(name)
        cells += [f"{paper[key]:g}" for key in (*COSTS, "psnr", "ssim")] if paper else [""] * len(heads)
        lines.append(f"| {row['network']} | {row['solution']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def beside_the_paper(rows: Sequence[dict[str, Any]], factories: dict[str, str]) -> str:
    """The costs of each method beside what the paper's Table 1 prints, both in % of their own original.

    factories: network to its factory; only edsr and sid are in the paper.
    """
    printed = _printed()
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


def times(measured: dict[str, Any]) -> str:
    """Measured time and memory of pruned networks, as shares of the original's, beside their shares of the MACs."""
    lines = [
        "| runtime | input | network | MAC (%) | time (%) | time / MAC | baseline (ms) | this one (ms) | range (ms) "
        "| memory (%) |",
        "| --- | --- | --- |" + " ---: |" * 7,
    ]
    original: dict[str, Any] = {}
    for row in measured["networks"]:
        if row["network"] == "baseline":
            original = row
            continue
        mac, time = measured["mac_percent"][row["network"]], 100 * row["ratio"]
        known = row["memory"] is not None and original["memory"]
        memory = f"{100 * row['memory'] / original['memory']:.0f}" if known else ""
        lines.append(
            f"| {row['runtime']} | {row['side']}×{row['side']} | {row['network']} | {mac:.1f} "
            f"| {time:.1f} | {time / mac:.2f} | {1e3 * original['seconds']:.2f} | {1e3 * row['seconds']:.2f} "
            f"| {1e3 * row['low']:.2f} to {1e3 * row['high']:.2f} | {memory} |"
        )
    lines += [f"\n{runtime} was left out: {reason}" for runtime, reason in measured["left_out"].items()]
    return "\n".join(lines) + "\n"


def alignment(measured: dict[str, Any], method: str) -> str:
    """What `prune.align` would have left of a pruned network, on a processor that computes `lanes` numbers at once."""
    lanes, shares = measured["lanes"], measured["mac_percent"]
    rounded = shares[f"{method}, to {lanes}"]
    if shares[method] == 100:
        return "Nothing was pruned, so there is no width to round up."
    said = (
        f"`prune.align: {lanes}` rounds every pruned width up to a multiple of the {lanes} numbers that this processor "
        "computes at once. "
    )
    if rounded == shares[method]:
        return f"{said}The widths of {method} are such multiples already."
    if rounded == 100:
        return f"{said}That would bring back all that {method} removed: the network is too narrow to run faster here."
    return f'{said}It would leave {rounded:.1f}% of the MACs: "{method}, to {lanes}" in the table.'


def slow_layers(measured: dict[str, Any], method: str) -> str:
    """Which layers fall short of their MACs, and why; and what convolutions have no part in."""
    rows, side = measured["layers"], measured["side"]
    found = layer_times.falling_short(rows, method, measured["lanes"])
    outside = {row["network"]: row["seconds"] for row in rows if row["layer"] == layer_times.OUTSIDE}
    whole = {name: sum(row["seconds"] for row in rows if row["network"] == name) for name in outside}
    before, after = (f"{1e3 * outside[name]:.1f} of {1e3 * whole[name]:.1f} ms" for name in ("baseline", method))
    lines = [
        f"Layer by layer, in rounds of their own in torch at {side}×{side}: everything else (pooling, activations, "
        f"sums, copies, convolutions that aren't modules) takes {before} before pruning and {after} after.",
        "",
    ]
    if not found:
        return "\n".join([*lines, f"No layer takes more than {layer_times.SLOW} times its share of the MACs.", ""])
    lines += [f"Layers that take more than {layer_times.SLOW} times their share of the MACs, the costliest first:", ""]
    for one in found[:SHOWN]:
        lines.append(
            f"- `{one['layer']}` keeps {100 * one['mac']:.0f}% of its MACs and {100 * one['time']:.0f}% of its time "
            f"({1e3 * one['over']:.2f} ms too much); {one['why']}"
        )
    if len(found) > SHOWN:
        lines.append(f"- and {len(found) - SHOWN} more that cost less")
    return "\n".join([*lines, ""])


def described(methods: dict[str, Sequence[str]]) -> str:
    """What each method's rules are, in words: in those of an earlier method where it has them all."""
    said: list[str] = []
    for number, (name, rules) in enumerate(methods.items()):
        earlier = [other for other in list(methods)[:number] if set(methods[other]) <= set(rules)]
        base = max(earlier, key=lambda other: len(methods[other]), default=None)
        new = [RULES[rule] for rule in rules if base is None or rule not in methods[base]]
        said.append(f"**{name}** {', '.join([f'as {base}'] * (base is not None) + new)}")
    return f"Methods: {'; '.join(said)}."


def shown(picture: captions.Picture, network: str) -> list[str]:
    """A picture with how it is read and where its figures are."""
    return [f"### {picture.heading}", f"{picture.says} {_from(*picture.sources)}".strip(), "",
            *(f"- {note}" for note in picture.notes), "",
            f"![{picture.file.removesuffix('.png')}](pictures/{picture.file})", ""]  # fmt: skip


def _from(*sources: str) -> str:
    """Where figures stand."""
    return f"*From {', '.join(f'results/{source}' for source in sources)}.*"


def markdown(
    params: config.Params,
    rows: list[dict[str, Any]],
    latency: dict[str, dict[str, Any]],
    pictures: dict[str, list[captions.Picture]],
    whole: dict[str, list[str]],
    table: str,
) -> str:
    """The whole report. By network, `latency`: what was timed; `pictures`; `whole`: what can't be pruned, and why;
    `table`: the main one."""
    methods = params.run.methods
    parts = ["# What was pruned, what it saves, what it costs in quality", ""]
    parts += [f"> {verdict(rows, methods, network, latency[network])}\n" for network in params.run.networks]
    parts += [VERDICT_NOTE, described({method: params.prune.methods[method].rules for method in methods}), ""]
    parts += ["## The table", table, _from("report/table.csv"), ""]
    factories = {name: params.networks[name].factory for name in params.run.networks}
    paper = beside_the_paper(rows, factories)
    if paper:
        parts += ["## Beside the paper", paper, PAPER_NOTE, "### Absolute figures", table_one(rows, methods, factories)]
        parts += [TABLE_ONE_NOTE]
    for network, (*drawn, times_drawn) in pictures.items():
        measured = latency[network]
        parts += [f"## {network}", *(line for picture in drawn for line in shown(picture, network))]
        note = f"{TIME_NOTE.format(**measured)}{_from(f'latency/{network}/latency.json')}\n"
        parts += ["### Where the time goes", times(measured), note, alignment(measured, methods[-1]), ""]
        parts += [slow_layers(measured, methods[-1]), *shown(times_drawn, network)]
        if whole[network]:
            parts += ["### What stays whole", *(f"- {sentence}" for sentence in whole[network]), ""]
            parts += [_from(f"analyze/{network}/groups.json"), ""]
    return "\n".join(parts)


SHOWN = 6  # layers that are named one by one
RULES = {  # in words, in the paper's order
    "adaptive": "a threshold that rises while iterations hold",
    "depth": "a least number of channels in every group",
    "efficiency": "more pressure where a weight costs most MACs",
    "balance": "more pressure on groups that lag behind",
}
VERDICT_NOTE = """\
A gain of PSNR is a plus; brackets hold 95% intervals over the test images, which no training and no decision has used.
The baseline is the network as trained. The control (`original` in the table) got at least the extra training that a
pruned network gets, with nothing removed. MACs are multiply-adds; BW is what travels to memory and back, weights and
activations. Pictures and times below are of the last method.
"""
PAPER_NOTE = """\
*Architecture-Aware Network Pruning for Vision Quality Applications* (ICIP 2019), Table 1. Costs are shares of each
baseline and can be set side by side, though the networks are as large as the paper's in `presets/paper.yaml` alone.
Quality can't: the paper trained on DIV2K and on the SID set. Its SID activations are 7·H·W elements lower than this
project's definition. *From data/table1.json and results/report/table.csv.*
"""
TABLE_ONE_NOTE = """\
In the paper's units: MAC in 10⁹, weights in 10³, activations and BW in 10⁶ elements. Ours are of the networks and input
sizes of params.yaml; the paper's are of EDSR-baseline ×2 at 1020×1020 and of SID at 1424×2128, its PSNR and SSIM on its
own validation images. *From data/table1.json and results/report/table.csv.*
"""
TIME_NOTE = """\
MACs removed are not time saved. Medians on {processor}, threads: {threads}, the networks run in turns; the time's share
is the median over rounds, the range is of the network in that row; memory is what one run holds at its peak, beyond the
network, in % of the baseline's. `python benchmarks/latency.py` measures networks of the paper's size.
"""


def page(text: str, pictures: Path) -> str:
    """The Markdown report as one page of HTML without any other file; `pictures` is the folder where they lie."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")

    def inlined(found: re.Match[str]) -> str:
        data = base64.b64encode((pictures / unquote(html.unescape(found[1]))).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="pictures/([^"]+)"', inlined, body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Pruning report</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


def write(results: Path, folder: Path, params: config.Params) -> list[str]:
    """Write tables, pictures, report.md and index.html into `folder`; gives the verdict on each network."""
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
    latency = {n: records.latency(results, n, params.run.methods[-1]) for n in params.run.networks}
    whole = {n: records.groups(results, n)["frozen"] for n in params.run.networks}
    pictures = {network: captions.pictures(results, params, rows, network) for network in params.run.networks}
    text = markdown(params, rows, latency, pictures, whole, table)
    with replacing(folder / "pictures") as drawn:  # what can't be drawn leaves the last report as it was
        for picture in (one for found in pictures.values() for one in found):
            picture.draw(drawn / picture.file)
        html_page = page(text, drawn)
        example = next(one.file for one in pictures[params.run.networks[0]] if "largest-loss" in one.file)
        shown_in_readme = (drawn / example).read_bytes()
    write_bytes(folder / "example.png", shown_in_readme)
    for name, content in {
        "table.md": table,
        "table.csv": tables.csv(rows),
        "metrics.json": json.dumps(headlines(rows, params.run.methods), indent=1) + "\n",
        "report.md": text,
        "index.html": html_page,
    }.items():
        write_bytes(folder / name, content.encode())
    return [verdict(rows, params.run.methods, network, latency[network]) for network in params.run.networks]
