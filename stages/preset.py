"""Write params.yaml from a preset: `python -m stages.preset NAME` for presets/NAME.yaml.

presets/small.yaml is whole. Every other preset states only what it changes of it: sections merge key by key, a list or
a value replaces, null takes a key away, and a network that is taken from `networks` goes from every other section too.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import config
from pipeline.cli import Parser
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.schema import parsed_yaml, read_yaml
from stages.command import guarded

PRESETS, PARAMS = Path("presets"), Path("params.yaml")


def main() -> None:
    """Write params.yaml from a preset, unless that would lose changes of it."""
    parser = Parser(prog="python -m stages.preset", description=main.__doc__)
    parser.add_argument("name", help="of a file of presets/, without .yaml")
    with guarded("preset"):
        print(apply(parser.parse_args().name))


def apply(name: str) -> str:
    """Write params.yaml from presets/NAME.yaml; what was done, in one line. UserError where changes would be lost."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise UserError(f"{PRESETS} has no preset {name!r}; it has {', '.join(names) or 'none'}")
    path = PRESETS / f"{name}.yaml"
    config.checked_params(values(path), str(path))
    text, present = rendered(path), PARAMS.read_bytes() if PARAMS.exists() else None
    if present == text.encode():
        return f"preset: {PARAMS} is the preset {name} already"
    others = [_bytes_of(PRESETS / f"{other}.yaml") for other in names]
    preset = present is None or any(_loses_nothing(present, other) for other in others)
    if not preset and not _loses_nothing(present, _committed()):
        raise UserError(
            f"{PARAMS} has changes that are neither committed nor a preset: commit them or take them back "
            f"(git checkout {PARAMS}), then take the preset {name}"
        )
    write_bytes(PARAMS, text.encode())
    back = "" if name == "small" else "; `python -m stages.preset small` goes back to the small one"
    if not preset:
        back = f"; `git checkout {PARAMS}` goes back to the committed one"
    return f"preset: {PARAMS} is now the preset {name}{back}"


def values(path: Path) -> dict[str, Any]:
    """The values of a preset, merged with presets/small.yaml. UserError for what is no YAML."""
    base, changes = read_yaml(path.with_name("small.yaml")), read_yaml(path)
    for file, content in ((path.with_name("small.yaml"), base), (path, changes)):
        if not isinstance(content, dict):
            raise UserError(f"{file} must hold sections, as params.yaml does")
    if not isinstance(base.get("networks"), dict):
        raise UserError(f"{path.with_name('small.yaml')} has no section networks")
    return merged(base, changes)


def rendered(path: Path) -> str:
    """The text of params.yaml for a preset: small.yaml with its comments, below the preset's first lines."""
    text = path.read_text(encoding="utf-8")
    if path.stem == "small":
        return text
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    small = path.with_name("small.yaml").read_text(encoding="utf-8")
    stream = io.StringIO()
    yaml.dump(merged(yaml.load(_split(small)[1]), yaml.load(_split(text)[1])), stream)
    body = re.sub(r"\n+(?=\w+:( #.*)?\n)", "\n\n", stream.getvalue())  # blank lines went with the key above them
    closer = re.sub(r"(?<=\S) {2,}(?=# )", " ", body)  # comments stood where the old value ended
    return _split(text)[0] + (closer if YAML().load(closer) == YAML().load(body) else body)  # a text may hold "  # "


def _loses_nothing(present: bytes, other: bytes) -> bool:
    """Whether all that a file says is in another: `dvc exp run -S` writes params.yaml anew, in another form."""
    if present == other:
        return True
    remarks = [{" ".join(text.split()) for text in re.findall(r"#.*", one.decode("utf-8", "replace"))}
               for one in (present, other)]  # fmt: skip
    try:
        values = [json.dumps(parsed_yaml(one, PARAMS), sort_keys=True) for one in (present, other)]
    except UserError:
        return False
    return values[0] == values[1] and remarks[0] <= remarks[1]


def _bytes_of(path: Path) -> bytes:
    """params.yaml for a preset; nothing for one that can't be merged."""
    try:
        return rendered(path).encode()
    except (YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return b""


def _split(text: str) -> tuple[str, str]:
    """The comment that a file begins with, and the rest."""
    comment = re.match(r"(#.*\n)*", text)[0]
    return comment, text[len(comment) :]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the changes of a preset, in place."""
    before = set(base["networks"])
    _merge(base, changes)
    left = base.get("networks")
    for network in before - set(left) if isinstance(left, dict) else ():
        for section in base.values():
            if isinstance(section, dict):
                section.pop(network, None)
    return base


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _committed() -> bytes:
    """params.yaml of the last commit; nothing where there is none."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    except OSError:  # without git
        return b""
    return done.stdout if done.returncode == 0 else b""


if __name__ == "__main__":
    main()
