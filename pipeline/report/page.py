"""Writes the report: tables, figures, a Markdown file, and one page of HTML that needs no other file.

Its text is report.md.j2; report.html.j2 and style.css make the page of it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipeline import config, records
from pipeline.files import replacing, write_bytes, write_csv, write_text
from pipeline.report import captions, paper, tables, times, verdict

FIRST = ("-largest-loss.png", "-tradeoff.png")  # of each network, shown before all tables
WORDS = {
    "super_resolution": "enlarges images",
    "low_light": "makes a bright picture of a dark raw image",
    "restoration": "takes noise and damage out of images",
}
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
    autoescape=select_autoescape(("html.j2",)),  # Markdown isn't HTML: page() renders it with HTML switched off
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(results: Path, folder: Path, params: config.Params) -> list[str]:
    """Write tables, figures, report.md and index.html into `folder`; gives the verdict on each network."""
    networks, methods, method = params.run.networks, params.run.methods, params.report.method
    tasks = {name: params.networks[name].task for name in networks}
    rows = [row for name in networks for row in tables.rows(results, name, methods, tasks[name])]
    sizes = {name: params.analyze[name].size for name in networks}
    synthetic = [name for name in networks if tasks[name] == "low_light" and params.prepare[name].layout != "sid"]
    luma = [name for name in networks if params.networks[name].channels == 1]
    sets = [row for name in networks for row in tables.set_rows(results, name, methods, tasks[name])]
    table = tables.markdown(rows, sizes, params.gate, synthetic, luma) + tables.sets_markdown(sets)
    latency = {name: records.latency(results, name, method) for name in networks}
    groups = {name: records.groups(results, name) for name in networks}
    figures = {name: captions.figures_of(results, params, rows, name) for name in networks}
    verdicts = [verdict.sentence(rows, methods, method, name, latency[name]) for name in networks]
    text = markdown(params, rows, verdicts, table, latency, figures, groups)
    with replacing(folder / "figures") as drawn:  # a figure that can't be drawn leaves the last report as it was
        for figure in (figure for of_network in figures.values() for figure in of_network):
            figure.draw(drawn / figure.file)
        html = page(text, drawn)
        example = next(figure.file for figure in figures[networks[0]] if "largest-loss" in figure.file)
        readme_image = (drawn / example).read_bytes()
    write_bytes(folder / "example.png", readme_image)
    write_text(folder / "table.md", table)
    write_csv(folder / "table.csv", tables.csv(rows))
    write_text(folder / "metrics.json", json.dumps(verdict.headlines(rows, methods), indent=1) + "\n")
    write_text(folder / "report.md", text)
    write_text(folder / "index.html", html)
    return verdicts


def markdown(
    params: config.Params,
    rows: Sequence[dict[str, Any]],
    verdicts: Sequence[str],
    table: str,
    latency: dict[str, records.Latency],
    figures: dict[str, list[captions.Figure]],
    groups: dict[str, records.Groups],
) -> str:
    """The whole report in Markdown. rows: the main table's; table: the same, and those below it, in Markdown.

    By network: latency, what was timed; figures; groups, the coupled ones and what can't be pruned.
    """
    networks, methods, method = params.run.networks, params.run.methods, params.report.method
    factories = {name: params.networks[name].factory for name in networks}
    sections = [
        {
            "name": name,
            "first": [figure for figure in figures[name] if figure.file.endswith(FIRST)],
            "figures": [figure for figure in figures[name] if not figure.file.endswith(FIRST)],
            "task": WORDS[params.networks[name].task],
            "factory": params.networks[name].factory if ":" in params.networks[name].factory else "",
            "measured": latency[name],
            "times": times.table(latency[name]),
            "alignment": times.alignment(latency[name], method),
            "slow_layers": times.slow_layers(latency[name], method),
            "frozen": groups[name]["frozen"],
            "normalised": [group["name"] for group in groups[name]["groups"] if not group.get("exact", True)],
        }
        for name in networks
    ]
    return TEMPLATES.get_template("report.md.j2").render(
        verdicts=verdicts,
        method=method,
        methods=verdict.methods_in_words({name: params.methods[name].rules for name in methods}),
        table=table,
        cost_shares=paper.cost_shares(rows, factories),
        table_one=paper.table_one(rows, methods, factories),
        networks=sections,
    )


def page(text: str, figures: Path) -> str:
    """The Markdown report as one page of HTML without any other file; `figures` is the folder where they lie."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in (child for block in tokens for child in block.children or ()):
        if token.type == "image":
            name = unquote(str(token.attrs["src"])).removeprefix("figures/")
            content = base64.b64encode((figures / name).read_bytes()).decode()
            token.attrs["src"] = f"data:image/png;base64,{content}"
    return TEMPLATES.get_template("report.html.j2").render(body=parser.renderer.render(tokens, parser.options, {}))
