"""Add a network of your own to params.yaml: `python -m stages.add mine mynet:build --images photos/`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pipeline import config, networks
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.schema import read_yaml

PARAMS = Path("params.yaml")


def main() -> None:
    """Write all sections of a network into params.yaml, once it runs; say what of it can be pruned."""
    parser = Parser(prog="python -m stages.add", description=main.__doc__)
    parser.add_argument("name", help="of the network: letters, digits, - and _")
    parser.add_argument("factory", help="module:function that builds it, or a file of weights that spandrel recognises")
    parser.add_argument("--images", required=True, help="a folder of photographs")
    parser.add_argument("--scale", type=int, default=2, help="output pixels per input pixel; 1: restoration of noise")
    parser.add_argument("--channels", type=int, default=3, help="of the network's images: 3 is RGB, 1 is luma")
    with guarded("add"):
        given = parser.parse_args()
        if not Path(given.images).is_dir():
            raise UserError(f"--images is {given.images}, which is no folder; one of photographs is needed")
        if not Path(given.factory).is_file():
            try:
                networks.input_channels(given.factory)
            except UserError as error:
                raise UserError(f"{error}, or a file of weights, and there is no such file") from None
        params_file = PARAMS.absolute()  # a factory may change the working folder
        read_yaml(PARAMS)  # a sentence for what is no YAML
        before, asked = PARAMS.read_text(encoding="utf-8"), (given.factory, given.images, given.scale, given.channels)
        text = extended(before, sections(*asked), given.name)
        params = config.checked_params(_yaml().load(text), str(PARAMS))
        if (multiple := sides_of(params.networks[given.name])) > 1:
            text = extended(before, sections(*asked, multiple), given.name)
            params = config.checked_params(_yaml().load(text), str(PARAMS))
        from pipeline.prepare import layouts

        layouts.checked(params, given.name)
        print(prunable(params, given.name))
        write_bytes(params_file, text.encode())
        print(f"add: {PARAMS} has {given.name} now, alone in run.networks; next: make repro")


def sides_of(section: config.Network) -> int:
    """What the sides of the network's input must be multiples of."""
    from pipeline import checks
    from pipeline.networks import build

    return checks.multiple(section, build(section.factory, section.args, section.output)) or 1


def sections(factory: str, images: str, scale: int, channels: int = 3, multiple: int = 1) -> dict[str, Any]:
    """What each section of params.yaml gets: numbers that a small network is trained by in minutes.

    multiple: what an input's sides must be multiples of, in pixels: patches grow to one, the counted size shrinks.
    """
    task = "restoration" if scale == 1 else "super_resolution"
    patch, side = multiple * -(-24 // multiple), 1020 - 1020 % multiple
    steps = {"steps": 3000, "batch": 16, "patch": patch, "lr": 1e-3, "lr_final": 1e-6, "clip": 0.1, "average": 0.99}
    more = ({} if channels == 3 else {"channels": channels}) | ({} if multiple == 1 else {"multiple": multiple})
    built = {"file": factory} if ":" not in factory and Path(factory).is_file() else {"factory": factory, "args": {}}
    return {
        "networks": built | {"task": task, "scale": scale} | more,
        "prepare": {"layout": "photographs", "folder": images} | ({"noise": 25.0} if scale == 1 else {}),
        "train": steps | {"validate_every": 500},
        "analyze": {"size": [side, side]},
        "retrain": {"max_iterations": 8, "steps": 50, "lr": 5e-4, "teacher": 0.5},
        "tolerance": {"psnr": 0.1, "ssim": 0.003},
        "finetune": {"steps": 2000, "lr": 5e-4, "lr_final": 1e-6, "teacher": 0.5},
    }


def extended(text: str, added: dict[str, Any], name: str) -> str:
    """The text of params.yaml with a network in each section, and alone in run.networks; its comments stay."""
    yaml = _yaml()
    content = yaml.load(text)
    lacking = [
        key for key in ("run", *added) if not isinstance(content, dict) or not isinstance(content.get(key), dict)
    ]
    if lacking:
        raise UserError(f"{PARAMS} has no section {', '.join(lacking)}; presets/small.yaml is a whole one")
    if not isinstance(content["run"].get("networks"), list):
        raise UserError(f"{PARAMS}: run.networks must be a list of names, as in presets/small.yaml")
    if name in content["networks"]:
        raise UserError(f"{PARAMS}: networks has {name} already; another name is needed")
    for section, values in added.items():
        own = yaml.map()
        own.update(values)
        own.fa.set_flow_style()
        content[section].insert(0, name, own)  # first: what stands behind the last key stays below the section
    content["run"]["networks"][:] = [name]
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def prunable(params: config.Params, name: str) -> str:
    """What can be removed of a network, and what stays whole; UserError where it can't be built, run or trained."""
    from pipeline import checks
    from pipeline.networks import build
    from pipeline.pruning import coupling
    from pipeline.training.setup import example

    section = params.networks[name]
    net = build(section.factory, section.args, section.output)
    image = example(section, params.train[name], net)
    checks.check(name, section, image, net)
    found = coupling.find_groups(net, image, params.norms(name))
    lines = [f"add: {name}: {sum(group.channels for group in found.groups)} channels can be pruned"]
    lines += [f"  {group.name}: {group.channels} channels of {', '.join(group.producers)}" for group in found.groups]
    return "\n".join([*lines, *(f"  stays whole: {sentence}" for sentence in found.frozen)])


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    return yaml


if __name__ == "__main__":
    main()
