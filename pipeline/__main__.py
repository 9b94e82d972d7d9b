"""`python -m pipeline prune WEIGHTS --images FOLDER --minutes 20`: a file of weights pruned, without params.yaml."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.cli import Parser, guarded, json_arguments
from pipeline.files import destination

FILES = ("network.pt", "network.onnx", "report.html")  # what --work will hold, beside folders


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    prune = commands.add_parser("prune", description="Prune a network, and write it, its ONNX file and a report.")
    prune.add_argument("weights", metavar="WEIGHTS", type=Path, help="a file of the trained network's weights")
    prune.add_argument(
        "--images", metavar="FOLDER", type=Path, required=True, help="photographs, or inputs/ and targets/"
    )
    prune.add_argument(
        "--network", metavar="NAME", help="edsr, sid or package.module:function: what builds the network"
    )
    prune.add_argument("--args", metavar="JSON", type=json_arguments, help="its arguments, as '{\"channels\": 32}'")
    prune.add_argument("--task", help="super_resolution, restoration or low_light; else what the network does tells")
    prune.add_argument("--scale", type=int, help="output pixels for an input pixel; else what the network does tells")
    prune.add_argument("--channels", type=int, help="3: RGB, 1: luma; else what the network takes tells")
    prune.add_argument("--output", type=_output, help="of several tensors that the forward gives: 0, 1 … or a key")
    prune.add_argument("--noise", type=float, help="of restoration of noise: standard deviation in 8-bit levels")
    prune.add_argument(
        "--norms", action="store_true", help="remove channels under normalisations too, whose statistics change then"
    )
    prune.add_argument("--method", default="D", help="of presets/small.yaml: A, B, C or D")
    prune.add_argument("--minutes", type=float, default=20.0, help="about how long it takes")
    prune.add_argument("--work", type=Path, default=Path("pruned"), help="the folder for all that is made")
    return parser


def _output(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def main(argv: list[str] | None = None) -> None:
    """The command line; bad input ends in one sentence and status 2."""
    with guarded("prune"):
        given = _parser().parse_args(argv)
        for name in FILES:  # before any training
            destination(given.work / name, source=given.weights)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as the stages do
        from pipeline.pruner import Pruner
        from pipeline.pruner.length import check_minutes

        check_minutes(given.minutes)  # before the network is tried
        pruner = Pruner(
            given.weights, given.images, given.task, given.scale,
            channels=given.channels, output=given.output, noise=given.noise, factory=given.network, args=given.args,
            norms=given.norms, work=given.work,
        )  # fmt: skip
        result = pruner.run(given.method, given.minutes)
        result.save(given.work / "network.pt")
        result.export(given.work / "network.onnx")
        print(f"{result}\nnetwork: {given.work / 'network.pt'}, {given.work / 'network.onnx'}")


if __name__ == "__main__":
    main()
