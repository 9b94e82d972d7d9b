"""Write params.yaml from a preset: `python -m stages.preset NAME` for presets/NAME.yaml."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline import config, presets
from pipeline.cli import Parser
from pipeline.errors import UserError
from pipeline.files import write_bytes
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
    text, present = (
        presets.rendered(path),
        PARAMS.read_text(encoding="utf-8", errors="replace") if PARAMS.exists() else None,
    )
    if present == text:
        return f"preset: {PARAMS} is the preset {name} already"
    preset = present is None or any(present == presets.rendered_or_none(PRESETS / f"{other}.yaml") for other in names)
    if not preset and present != _committed():
        raise UserError(
            f"{PARAMS} has changes that are neither committed nor a preset: commit them or take them back "
            f"(git checkout {PARAMS}), then take the preset {name}"
        )
    write_bytes(PARAMS, text.encode())
    back = "" if name == "small" else "; `python -m stages.preset small` goes back to the small one"
    if not preset:
        back = f"; `git checkout {PARAMS}` goes back to the committed one"
    return f"preset: {PARAMS} is now the preset {name}{back}"


def _committed() -> str | None:
    """params.yaml of the last commit; nothing where there is none."""
    done = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


if __name__ == "__main__":
    main()
