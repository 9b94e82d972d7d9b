"""The counterpart of the paper's Table 1, and the pictures."""

from __future__ import annotations

from pipeline import config, records
from pipeline.tracking import runs
from stages.command import main
from stages.common import RESULTS


def report(params: config.Params) -> None:
    """Write the table and the pictures from the files in results/."""
    with runs.stage("report") as run:
        from pipeline.report import page as made

        folder = RESULTS / "report"
        verdicts = made.write(RESULTS, folder, params)
        parent = runs.parent_of(run)
        parent.tell("\n\n".join([*verdicts, "The report: *Artifacts*, index.html."]))
        for name in ("index.html", "report.md", "table.md", "table.csv"):
            parent.artifact(folder / name)  # where who opens the chain's run looks first
        for picture in sorted((folder / "pictures").glob("*.png")):
            parent.artifact(picture, "pictures")
        for network in params.run.networks:
            found = records.solutions(RESULTS, network, params.run.methods)
            best = min(params.run.methods, key=lambda method: found[method]["mac"])
            parent.tags({f"best.{network}": f"{best}: {found[best]['mac_percent']:.1f}% of the MACs"})
            told = {
                "mac_percent": found[best]["mac_percent"],
                "psnr_change_baseline": found[best]["against_baseline"]["mean"],
                "psnr_change_control": found[best]["against_original"]["mean"],
            }
            parent.metrics({f"{network}_{key}": round(value, 4) for key, value in told.items()})
        runs.save_views(run, params.run.networks)
    print(f"report: {folder / 'index.html'}, {folder / 'table.md'}, pictures in {folder / 'pictures'}")


if __name__ == "__main__":
    main(report)
