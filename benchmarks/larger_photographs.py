"""The photographs of data/photos with the training ones at full size, as a folder for `prepare.NETWORK.folder`.

    apt-get download endless-sky-high-dpi && dpkg-deb -x endless-sky-high-dpi_*.deb package
    python benchmarks/larger_photographs.py package large
    sed -i 's|folder: data/photos|folder: large|' params.yaml && make repro

data/photos has one crop of 256×256 pixels from each photograph. The folder that this writes has the whole photographs
(1440×720, 15.8 times the pixels) for the training split of data/photos/splits.json, as far as the Debian package has
them (111 of 147; the others are crops of another package and stay as they are). Validation and test are the same crops.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import Parser, guarded
from pipeline.errors import UserError

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
LAND = "usr/share/games/endless-sky/plugins/endless-sky-high-dpi/images/land"  # inside the package


def main() -> None:
    parser = Parser(prog="python benchmarks/larger_photographs.py", description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path, help="the folder into which the Debian package was unpacked")
    parser.add_argument("output", type=Path, help="the folder to write; it must not be there yet")
    with guarded("larger_photographs"):
        options = parser.parse_args()
        print(write(options.package / LAND, options.output))


def write(land: Path, output: Path) -> str:
    """Write the folder; UserError where the package or one of its photographs is missing, or the folder is there."""
    if not land.is_dir():
        raise UserError(f"{land} isn't a folder; unpack endless-sky-high-dpi with dpkg-deb -x")
    if output.exists():
        raise UserError(f"{output} is there already; name a folder that isn't")
    split = json.loads((PHOTOS / "splits.json").read_text(encoding="utf-8"))
    manifest = {entry["file"]: entry for entry in json.loads((PHOTOS / "MANIFEST.json").read_text(encoding="utf-8"))}
    paths = {name: PHOTOS / name for names in split.values() for name in names}
    whole = [name for name in split["train"] if manifest[name]["package"].startswith("endless-sky-high-dpi")]
    paths |= {name: land / manifest[name]["source"] for name in whole}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; the package's version must be {manifest[whole[0]]['package']}")
    making = output.with_name(f"{output.name}.partial")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name, path in paths.items():
        shutil.copyfile(path, making / name)
    shutil.copyfile(PHOTOS / "splits.json", making / "splits.json")
    making.rename(output)
    return f"{output}: {len(whole)} whole photographs and {len(paths) - len(whole)} crops"


if __name__ == "__main__":
    main()
