"""Write params.yaml from a preset: `python -m stages.preset NAME` for presets/NAME.yaml."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from ruamel.yaml.error import YAMLError

from pipeline import config, presets
from pipeline.cli import Parser
from pipeline.errors import UserError
from pipeline.files import regular_bytes, write_bytes
from pipeline.schema import parsed_yaml
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
    config.checked_params(presets.values(path), str(path))
    text, present = presets.rendered(path), _present()
    if present == text.encode():
        return f"preset: {PARAMS} is the preset {name} already"
    others = [_bytes_of(PRESETS / f"{other}.yaml") for other in names]
    preset = present is None or any(_loses_nothing(present, other) for other in others)
    if present is not None and not preset and not _loses_nothing(present, _committed()):
        raise UserError(
            f"{PARAMS} has changes that are neither committed nor a preset: commit them or take them back "
            f"(git checkout {PARAMS}), then take the preset {name}"
        )
    write_bytes(PARAMS, text.encode())
    back = "" if name == "small" else "; `python -m stages.preset small` goes back to the small one"
    if not preset:
        back = f"; `git checkout {PARAMS}` goes back to the committed one"
    return f"preset: {PARAMS} is now the preset {name}{back}"


def _present() -> bytes | None:
    """params.yaml as it is; None where there is none. UserError where it is no file."""
    try:
        return regular_bytes(PARAMS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{PARAMS} can't be read: {error.strerror}; move what is there away") from None


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
        return presets.rendered(path).encode()
    except (YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return b""


def _committed() -> bytes:
    """params.yaml of the last commit; nothing where there is none."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    except OSError:  # without git
        return b""
    return done.stdout if done.returncode == 0 else b""


if __name__ == "__main__":
    main()
