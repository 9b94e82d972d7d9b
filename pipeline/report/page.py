"""Writes the report: tables, figures, a Markdown file, and one page of HTML that needs no other file.

report.html.j2 is the page's first screen, report.md.j2 the same as Markdown; details.md.j2 follows in both. style.css
is the page's style, picture.html.j2 how a chart or a test image is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipeline import config, records
from pipeline.files import replacing, write_bytes, write_csv, write_text
from pipeline.report import captions, paper, tables, times, verdict
from pipeline.report.figures import styled
from pipeline.report.pictures import Crop, data_uri

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


@dataclass(frozen=True)
class Made:
    """When the report was made, and of what."""

    when: str = ""
    commit: str = ""
    preset: str = ""


def write(results: Path, folder: Path, params: config.Params, made: Made | None = None) -> list[str]:
    """Write tables, figures, report.md and index.html into `folder`; gives the verdict on each network.

    made: of a run of the chain, whose commands the report then names.
    """
    networks, methods, method = params.run.networks, params.run.methods, params.report.method
    tasks = {name: params.networks[name].task for name in networks}
    rows = [row for name in networks for row in tables.rows(results, name, methods, tasks[name])]
    sizes = {name: params.analyze[name].size for name in networks}
    synthetic = [name for name in networks if tasks[name] == "low_light" and params.prepare[name].layout != "sid"]
    luma = [name for name in networks if params.networks[name].channels == 1]
    sets = [row for name in networks for row in tables.set_rows(results, name, methods, tasks[name])]
    factories = {name: params.networks[name].factory for name in networks}
    sections = [_section(results, params, rows, name, made) for name in networks]
    given = {
        "made": made,
        "place": "results" if made else results.name,  # the folder of the files that it names
        "processor": sections[0]["measured"]["processor"],
        "next": NEXT if made else {},
        "method": method,
        "methods": verdict.methods_in_words({name: params.methods[name].rules for name in methods}),
        "networks": sections,
        "table": tables.markdown(rows),
        "counted": tables.counted(sizes, synthetic),
        "protocol": tables.protocol(params.gate, luma),
        "sets": tables.sets_markdown(sets),
        "cost_shares": paper.cost_shares(rows, factories),
        "table_one": paper.table_one(rows, methods, factories),
    }
    figures = [figure for section in sections for figure in section["figures"]]
    crops = {figure.file: figure.crops() for figure in figures if figure.crops}  # a damaged one is told at once
    with replacing(folder / "figures") as drawn:  # a figure that can't be drawn leaves the last report as it was
        with styled():
            for figure in figures:
                figure.draw(drawn / figure.file)
        html = page(given, drawn, crops)
        readme_image = (drawn / sections[0]["worst"].file).read_bytes()
    write_bytes(folder / "example.png", readme_image)
    write_text(folder / "table.md", "\n".join(given[key] for key in ("table", "counted", "protocol")) + given["sets"])
    write_csv(folder / "table.csv", tables.csv(rows))
    write_text(folder / "metrics.json", json.dumps(verdict.headlines(rows, methods), indent=1) + "\n")
    write_text(folder / "report.md", TEMPLATES.get_template("report.md.j2").render(given))
    write_text(folder / "index.html", html)
    return [section["verdict"] for section in sections]


def _section(
    results: Path, params: config.Params, rows: Sequence[dict[str, Any]], name: str, made: Made | None
) -> dict[str, Any]:
    """What the templates say of one network."""
    methods, method = params.run.methods, params.report.method
    measured = records.latency(results, name, method)
    figures = captions.figures_of(results, params, list(rows), name)
    factory = params.networks[name].factory
    file = results / "finetune" / name / method / "network.pt"
    groups = records.groups(results, name)
    return {
        "name": name,
        "task": WORDS[params.networks[name].task],
        "verdict": verdict.sentence(rows, methods, method, name),
        "tiles": verdict.tiles(rows, method, name, measured),
        "size": params.analyze[name].size,
        "file": str(file),
        "next": commands(file, name, method, factory) if made else {},
        "figures": figures,
        "worst": next(figure for figure in figures if figure.file.endswith("-largest-loss.png")),
        "tradeoff": next(figure for figure in figures if figure.file.endswith("-tradeoff.png")),
        "measured": measured,
        "times": times.table(measured),
        "alignment": times.alignment(measured, method),
        "slow_layers": times.slow_layers(measured, method),
        "frozen": groups["frozen"],
        "normalised": [group["name"] for group in groups["groups"] if not group.get("exact", True)],
    }


NEXT = {
    "Prune again, keeping multiples of 8 channels, which many processors run faster": "dvc exp run -S prune.align=8",
    "See every step of the pruning in a browser": "make ui",
}


def commands(file: Path, network: str, method: str, factory: str) -> dict[str, str]:
    """What one may do with a pruned network: a command to copy for each."""
    own = ":" in factory  # a user's: loading it runs their code, so it must be named
    name = f", '{factory}'" if own else ""
    option = f" --network {factory}" if own else ""
    load = f"net, about = checkpoint.load(Path('{file}'){name})"
    export = f"python -m pipeline.export {file}{option} --output {network}.onnx"
    return {
        "Load it in Python": f'python -ic "from pathlib import Path; from pipeline.networks import checkpoint; {load}"',
        "Export it to ONNX, for programs without torch": export,
        "Search for settings that remove more": f'make search ARGS="--network {network} --method {method}"',
    }


def page(given: dict[str, Any], figures: Path, crops: dict[str, list[Crop]]) -> str:
    """The report as one page of HTML without any other file.

    given: what the templates say. figures: the folder of the charts. crops: by figure's file, of the test images.
    """
    picture = TEMPLATES.get_template("picture.html.j2")

    def shown(file: str) -> str:
        uri = "" if file in crops else data_uri((figures / file).read_bytes())
        return picture.render(file=file, crops=crops.get(file), uri=uri)

    details = html(TEMPLATES.get_template("details.md.j2").render(given), shown)
    return TEMPLATES.get_template("report.html.j2").render(
        given, details=details, shown=shown, html=partial(html, shown=shown)
    )


def html(text: str, shown: Callable[[str], str]) -> str:
    """Markdown as HTML, in which HTML is no more than text; shown: an image's HTML by its file below figures/."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in (child for block in tokens for child in block.children or ()):
        if token.type == "image":
            token.type, token.content = "html_inline", shown(unquote(str(token.attrs["src"])).removeprefix("figures/"))
    return parser.renderer.render(tokens, parser.options, {})
