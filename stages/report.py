"""Write the report: the counterpart of the paper's Table 1, its figures and its page."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline import config, presets, records
from pipeline.errors import UserError
from pipeline.schema import read_yaml
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS


def report(params: config.Params) -> None:
    """Write the tables, the figures and the page from the files in results/."""
    with runs.stage("report") as run:
        from pipeline.report import page

        folder = RESULTS / "report"
        made = page.Made(time.strftime("%Y-%m-%d %H:%M"), runs.commit(), preset())
        verdicts = page.write(RESULTS, folder, params, made)
        parent = runs.parent_of(run)
        parent.tell("\n\n".join([*verdicts, "The report: *Artifacts*, index.html."]))
        for name in ("index.html", "report.md", "table.md", "table.csv"):
            parent.artifact(folder / name)  # where who opens the chain's run looks first
        for figure in sorted((folder / "figures").glob("*.png")):
            parent.artifact(figure, "figures")
        for network in params.run.networks:
            measured = records.solutions(RESULTS, network, params.run.methods)
            method = params.report.method  # as the report's first lines
            row = measured[method]
            parent.tags({f"result.{network}": f"{method}: {row['mac_percent']:.1f}% of the MACs"})
            figures = {
                "mac_percent": row["mac_percent"],
                "psnr_change_baseline": row["against_baseline"]["mean"],
                "psnr_change_control": row["against_control"]["mean"],
            }
            parent.metrics({f"{network}_{key}": value for key, value in figures.items()})
        runs.save_views(run, params.run.networks)
    print(f"report: {folder / 'index.html'}, {folder / 'table.md'}, figures in {folder / 'figures'}")


def preset() -> str:
    """Which preset params.yaml is, in words."""
    values = read_yaml(Path("params.yaml"))
    for path in sorted(Path("presets").glob("*.yaml")):
        try:
            if presets.values(path) == values:
                return f"preset {path.stem}"
        except UserError:  # of a file that the user is at work on
            continue
    return "a params.yaml of your own"


if __name__ == "__main__":
    main(report)
