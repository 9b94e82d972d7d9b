"""How folders of images are laid out: which files make which split, and what of them is missing or broken."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import config
from pipeline.data.raw import Exposures
from pipeline.errors import UserError
from pipeline.evaluation import metrics
from pipeline.prepare import images, sid, splits
from pipeline.prepare.pairs import Making, Source, bytes_needed, make, measure
from pipeline.prepare.splits import SPLITS

ARCHIVES = {
    "div2k": "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    "sid": "https://github.com/cchen156/Learning-to-See-in-the-Dark",
}
DIV2K_TRAIN = 800  # the images up to this number are in DIV2K_train_HR, those after it in DIV2K_valid_HR
RAW_FILES = Path(".scratch/raw-files.json")  # places of raw files that were decoded: minutes at SID's size
IMAGES = Path(".scratch/images.json")  # image files that were decoded
SSIM_WINDOW = 11  # pixels, of the Y channel's SSIM


@dataclass
class Part:
    """One split, or one extra test set."""

    sources: list[Source]
    making: Making
    sizes: list[tuple[int, int]] = field(default_factory=list)  # of the inputs: height, width

    @property
    def bytes(self) -> int:
        """What it will take on disk."""
        return bytes_needed(self.sources, self.sizes, self.making)

    @property
    def inputs(self) -> str:
        """What will be made of the images here, in words."""
        making, lone = self.making, sum(source.input is None for source in self.sources)
        if making.exposures is not None:
            low, high = making.exposures.ratio
            return f"inputs made here: synthetic low light, exposure ratio {low:g} to {high:g}"
        if making.noise is not None:
            return f"inputs made here: Gaussian noise, σ = {making.noise:g} levels"
        if making.task == "low_light":
            return "raw pairs, packed and developed here once"
        if not lone:
            return "inputs read"
        some = "" if lone == len(self.sources) else f" of {lone} of them"
        return f"inputs{some} made here: bicubic, 1/{making.scale} of each side"


@dataclass
class Listing:
    """What one network's section of `prepare` leads to; of images headers have been read, raw files are decoded."""

    parts: dict[str, Part]  # "train", "validation", "test", "sets/NAME": also their folders' names
    errors: list[str]  # one sentence each


def find(params: config.Params, network: str, pixels: bool = False, decode: bool = False) -> Listing:
    """Look for one network's images; every error is listed, none is raised.

    With `pixels` each image is made as `prepare` will, and thrown away: what `prepare` would refuse is then listed.
    With `decode` each is decoded, unless an earlier call has done so and the file hasn't changed since.
    """
    section, entry = params.prepare[network], params.networks[network]
    exposures = Exposures(section.ratio, section.shot, section.cameras) if entry.task == "low_light" else None
    if section.layout == "sid":
        exposures = None
    crop_border = metrics.border(entry.task, entry.scale, entry.channels)
    # SSIM's window is 7 pixels wide
    measurable = 2 * crop_border + (SSIM_WINDOW if entry.channels == 1 else 8)
    minimum = max(params.train[network].patch * entry.scale, measurable)
    listing = Listing({}, [])
    try:
        splits = _splits(section, entry, params.seed, listing)
    except UserError as error:
        listing.errors.append(str(error))
        splits = {}
    for number, split in enumerate(SPLITS):
        if split in splits:
            seed = params.seed * 10 + number
            making = Making(entry.task, entry.scale, minimum, exposures, section.noise, seed, split != "train",
                            entry.multiple, entry.channels)  # fmt: skip
            listing.parts[split] = Part(splits[split], making)
    for name, folder in section.test_sets.items():
        try:
            sources = [Source(path.name, path) for path in images.list_images(Path(folder))]
        except UserError as error:
            listing.errors.append(f"test_sets.{name}: {error}")
            continue
        minimum = max(measurable, SSIM_WINDOW + 2 * metrics.luma_border(entry.task, entry.scale))
        making = Making(entry.task, entry.scale, minimum, None, section.noise, params.seed * 10 + 3, True,
                        entry.multiple, entry.channels)  # fmt: skip
        listing.parts[f"sets/{name}"] = Part(sources, making)
    if section.layout == "sid":
        sid.recall(RAW_FILES)
    if decode:
        images.recall(IMAGES)
    try:
        for part in listing.parts.values():
            _measure(part, listing, pixels, decode)
    finally:  # a stopped check goes on where it was
        if section.layout == "sid":
            sid.remember(RAW_FILES)
        if decode:
            images.remember(IMAGES)
    listing.errors += _shared(listing.parts)
    listing.errors = list(dict.fromkeys(listing.errors))  # a long exposure is read for each of its short ones
    return listing


def _measure(part: Part, listing: Listing, pixels: bool, decode: bool) -> None:
    """Fill in a part's sizes, and take out the sources that can't be used."""
    whole = []
    for source in part.sources:
        try:
            size = measure(source, part.making)
            for path in (source.target, source.input) if decode and source.ratio is None else ():
                if path is not None:
                    images.check_image(path)
            if pixels and source.ratio is None:  # raw files have been decoded; to develop them takes hours
                for _ in make([source], part.making)[1]:
                    pass
            part.sizes.append(size)
            whole.append(source)
        except UserError as error:
            listing.errors.append(str(error))
    part.sources = whole


def checked(params: config.Params, network: str, decode: bool = False) -> Listing:
    """`find`, with UserError for the first error."""
    listing = find(params, network, decode=decode)
    if listing.errors:
        more = len(listing.errors) - 1
        tail = f" ({more} more: python -m stages.prepare --check says more)" if more else ""
        raise UserError(f"prepare.{network}: {listing.errors[0]}{tail}")
    return listing


def _shared(parts: dict[str, Part]) -> list[str]:
    """A sentence for each target that is byte for byte one of another split: what is measured on must not train."""
    sizes: dict[int, list[tuple[str, Path]]] = {}
    for name, part in parts.items():
        for path in dict.fromkeys(source.target for source in part.sources if source.ratio is None):
            sizes.setdefault(path.stat().st_size, []).append((name, path))
    seen: dict[bytes, tuple[str, Path]] = {}
    errors = []
    for alike in sizes.values():
        if len({name for name, _ in alike}) < 2:
            continue
        for name, path in alike:
            with open(path, "rb") as file:
                other, where = seen.setdefault(hashlib.file_digest(file, "sha256").digest(), (name, path))
            if other != name and not other.startswith("sets/") and (other == "train" or not name.startswith("sets/")):
                errors.append(
                    f"{path}: has the same bytes as {where}, but one is in {other} and the other in {name}; an image "
                    "belongs to one split"
                )
    return errors


def _splits(section: config.Prepare, entry: config.Network, seed: int, listing: Listing) -> dict[str, list[Source]]:
    folder = Path(section.folder)
    if section.layout == "photographs":
        paths = {path.name: path for path in images.list_images(folder)}
        divided = _divided(folder, sorted(paths), seed)
        return {split: [Source(name, paths[name]) for name in names] for split, names in divided.items()}
    if section.layout == "paired":
        return _paired(folder, seed, listing)
    if not os.path.isdir(folder):  # False, too, for a name that is too long
        raise UserError(f"{folder}: there is no such folder; it comes from {ARCHIVES[section.layout]}")
    if section.layout == "div2k":
        return _div2k(section, entry, listing)
    return _sid(folder, listing)


def _divided(folder: Path, names: list[str], seed: int) -> dict[str, list[str]]:
    listed = folder / "splits.json"
    if os.path.lexists(listed):  # a link to nothing is no leave to divide them anew
        return splits.read_splits(listed, names)
    try:
        return splits.make_splits(names, seed)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _paired(folder: Path, seed: int, listing: Listing) -> dict[str, list[Source]]:
    sides: list[dict[str, Path]] = []
    for side in ("inputs", "targets"):
        paths = images.list_images(folder / side)
        sides.append({path.stem: path for path in paths})
        names = {path.name for path in sides[-1].values()}
        for path in paths:
            if path.name not in names:
                listing.errors.append(f"{path}: {sides[-1][path.stem].name} has the same stem; one of each is allowed")
    inputs, targets = sides
    for stem in sorted(inputs.keys() ^ targets.keys()):
        path, other = (inputs[stem], "targets") if stem in inputs else (targets[stem], "inputs")
        listing.errors.append(f"{path}: has no partner of the same name in {folder / other}")
    both = {targets[stem].name: stem for stem in sorted(inputs.keys() & targets.keys())}
    divided = _divided(folder, sorted(path.name for path in targets.values()), seed)
    return {
        split: [Source(name, targets[both[name]], inputs[both[name]]) for name in names if name in both]
        for split, names in divided.items()
    }


def _div2k(section: config.Prepare, entry: config.Network, listing: Listing) -> dict[str, list[Source]]:
    """Super-resolution's small images are read where their folder is there, and else made."""
    folder, scale = Path(section.folder), entry.scale
    splits: dict[str, list[Source]] = {}
    absent: dict[Path, list[str]] = {}
    for split in SPLITS:
        splits[split] = []
        low, high = getattr(section, split)
        for number in range(low, high + 1):
            part = "train" if number <= DIV2K_TRAIN else "valid"
            target = folder / f"DIV2K_{part}_HR" / f"{number:04d}.png"
            small = folder / f"DIV2K_{part}_LR_bicubic" / f"X{scale}"
            read = entry.task == "super_resolution" and small.is_dir()
            image = small / f"{number:04d}x{scale}.png" if read else None
            missing = [path for path in (target, image) if path is not None and not path.is_file()]
            for path in missing:
                absent.setdefault(path.parent, []).append(path.name)
            if not missing:
                splits[split].append(Source(target.name, target, image))
    for parent, names in absent.items():
        if not os.path.isdir(parent):
            listing.errors.append(f"{parent}: there is no such folder; it comes from {ARCHIVES['div2k']}")
        else:
            more = f", and {len(names) - 1} more up to {names[-1]}" if len(names) > 1 else ""
            listing.errors.append(
                f"{parent / names[0]}: there is no such file{more}; DIV2K has it, and "
                "prepare.NETWORK.train, validation and test say which numbers are wanted"
            )
    return splits


def _sid(folder: Path, listing: Listing) -> dict[str, list[Source]]:
    lists: dict[str, list[sid.Pair]] = {}
    for split, name in sid.LISTS.items():
        try:
            lists[split] = sid.read_list(folder / name)
        except UserError as error:
            listing.errors.append(str(error))
    listing.errors += sid.repeated(lists)
    splits: dict[str, list[Source]] = {split: [] for split in sid.LISTS}
    absent: dict[Path, str] = {}
    for split, pairs in lists.items():
        for pair in pairs:
            missing = [path for path in (pair.short, pair.long) if not _is_file(path)]
            for path in missing:
                absent.setdefault(path, pair.line)
            if not missing:
                splits[split].append(Source(pair.short.name, pair.long, pair.short, pair.ratio))
    for parent in dict.fromkeys(path.parent for path in absent):
        if not os.path.isdir(parent):
            listing.errors.append(f"{parent}: there is no such folder; it comes from {ARCHIVES['sid']}")
    listing.errors += [
        f"{path}: there is no such file; {line} names it" for path, line in absent.items() if os.path.isdir(path.parent)
    ]
    return splits


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def summary(part: Part) -> str:
    """How many images, how large, and what their inputs are."""
    if not part.sources:
        return "no image that can be used"
    low, high = ("×".join(str(side * part.making.scale) for side in reversed(size)) for size in _spread(part.sizes))
    sizes = low if low == high else f"{low} to {high}"
    return f"{len(part.sources)} image{'s' * (len(part.sources) > 1)}, {sizes} pixels; {part.inputs}"


def _spread(sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest and the largest by area."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return ordered[0], ordered[-1]
