"""Presets: parameter files that state only what they change of presets/small.yaml, which is whole.

Sections merge key by key, a list or a value replaces, null takes a key away, and a network that is taken from
`networks` goes from every other section too.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import UserError
from pipeline.schema import read_yaml


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


def _split(text: str) -> tuple[str, str]:
    """The comment that a file begins with, and the rest."""
    rest = re.sub(r"\A(#.*\n)*", "", text)
    return text[: len(text) - len(rest)], rest


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
