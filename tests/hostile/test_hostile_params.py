"""Hostile params.yaml: every fault of it is said before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import Hostile, base, check, copied


def written(text: str | bytes):
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "params.yaml").write_bytes(content)


def replaced(old: str, new: str):
    """params.yaml with one piece of its text changed."""

    def make(folder: Path) -> None:
        text = (folder / "params.yaml").read_text()
        assert text.count(old) >= 1
        (folder / "params.yaml").write_text(text.replace(old, new, 1))

    return make


def without(folder: Path) -> None:
    (folder / "params.yaml").unlink()


def as_folder(folder: Path) -> None:
    without(folder)
    (folder / "params.yaml").mkdir()


def listed(split: str, *lines: str):
    """SID's tree in miniature, and more lines in one of its lists."""

    def make(folder: Path) -> None:
        from raw_files import write_sid

        write_sid(folder / "SID", 96)
        with (folder / f"SID/Sony_{split}_list.txt").open("a") as file:
            file.write("\n".join(lines))

    return make


def raw(name: str, **header: int):
    """SID's tree in miniature, one file of which is of another camera."""

    def make(folder: Path) -> None:
        import numpy as np
        from raw_files import write_dng, write_sid

        write_sid(folder / "SID", 96)
        write_dng(folder / "SID/Sony" / name, np.full((96, 96), 600), **header)

    return make


SID = {"prepare__sid": {"layout": "sid", "folder": "SID"}}
VAL = "./Sony/short/20001_00_0.033s.ARW ./Sony/long/20001_00_10s.ARW"
CHECK = "stages.check"
A = {"rules": ["adaptive"]}

CASES = [
    Hostile("an unknown key", "stages.check", ("params.yaml: gate.max_drop", "unknown key"), {"gate__max_drop": 1.0}),
    Hostile("a rate that is text", "stages.train edsr", ("train.edsr.lr", "number"), {"train__edsr__lr": "fast"}),
    Hostile("no YAML at all", "stages.check", ("params.yaml",), make=written("{[")),
    Hostile("no file", CHECK, ("params.yaml", "No such file"), make=without),
    Hostile("a folder", CHECK, ("params.yaml", "directory"), make=as_folder),
    Hostile("an empty file", CHECK, ("params.yaml must hold the sections",), make=written("")),
    Hostile("conflict markers", CHECK, ("line 1", "conflict marker"), make=replaced("", "<<<<<<< ours\n")),
    Hostile("a doubled key", CHECK, ("line 2", "'seed' stands twice"), make=replaced("", "seed: 1\nseed: 2\n")),
    Hostile("UTF-16", CHECK, ("params.yaml", "UTF-16"), make=written("seed: 1".encode("utf-16"))),
    Hostile("a report of a method that doesn't run", CHECK, ("report.method is 'A'", "run.methods", "'D'"),
            {"run__methods": ["D"], "report__method": "A"}),
    Hostile("devices that can't share a batch", CHECK, ("devices is 3", "train.edsr.batch, 2", "1, 2 can"),
            {"devices": 3}),
    Hostile("CUDA that isn't there, on two devices", "stages.train edsr", ("device is 'cuda'", "no CUDA device"),
            {"devices": 2, "device": "cuda"}),
    Hostile("a stage that trains nothing under torchrun", "stages.analyze edsr", ("analyze trains nothing", "torchrun"),
            environment=(("WORLD_SIZE", "2"), ("RANK", "0"))),
    Hostile("a rank without processes", "stages.train edsr", ("WORLD_SIZE is missing", "torchrun sets all"),
            {"devices": 2}, environment=(("RANK", "0"),)),
    Hostile("a scale of low light", CHECK, ("networks.sid", "scale is no key"), {"networks__sid__scale": 2}),
    Hostile("an unknown preset", "stages.preset huge", ("no preset 'huge'", "small, srresnet, standard")),
    Hostile("a preset over own parameters", "stages.preset standard", ("params.yaml has changes", "commit them")),
    Hostile("a preset of lists", "stages.preset mine", ("presets/mine.yaml must hold sections",),
            make=lambda folder: (folder / "presets/mine.yaml").write_text("- 1\n")),
    Hostile("a preset over a folder", "stages.preset small", ("params.yaml can't be read", "directory"),
            make=as_folder),
    Hostile("a folder's name of 1,000 letters", CHECK, ("prepare.edsr", "there is no such folder of images"),
            {"prepare__edsr__folder": 1000 * "x"}),
    Hostile("a process that is no number", "stages.repro x", ("argument process: invalid int value: 'x'",)),
    Hostile("a billion workers", "stages.search --workers 1000000000", ("--workers is 1000000000; 1 to 256",)),
    Hostile("a process that is gone", "stages.repro 999999999", ("repro: stopped",), status=130),
    Hostile("a hundred megabytes", CHECK, ("larger than 64 kB",), make=written(100_000_000 * b" ")),
    Hostile("a list as key", CHECK, ("a key is a list",), make=written("? [1]\n: 2\n")),
    Hostile("a section in itself", CHECK, ("line 1", "holds itself"), make=written("a: &a {b: *a}\n")),
    Hostile("a date", CHECK, ("a date", "in quotes"), make=written("run: {networks: 2024-01-01}\n")),
    Hostile("a clock time", "stages.train sid", ("steps is '1:30'",), make=replaced("steps: 2", "steps: 1:30")),
    Hostile("no as a number", CHECK, ("seed is 'no'",), make=replaced("seed: 1", "seed: no")),
    Hostile("a NUL in a folder's name", CHECK, ("control characters",), {"prepare__edsr__folder": "a\0b"}),
    Hostile("a line break in a name", CHECK, ("control characters",), {"run__networks": ["a\nb"]}),
    Hostile("half a character", CHECK, ("control characters",), make=written('a: "\\ud800"\n')),
    Hostile("steps of 400 digits", CHECK, ("train.edsr.steps", "100000000"), {"train__edsr__steps": 10**400}),
    Hostile("an endless rate", CHECK, ("train.edsr.lr", "10"), {"train__edsr__lr": 1e300}),
    Hostile("an endless power", CHECK, ("efficiency_power", "10"), {"prune__efficiency_power": 1e9}),
    Hostile("a batch of a billion", CHECK, ("train.edsr.batch", "4096"), {"train__edsr__batch": 10**9}),
    Hostile("a trillion resamples", CHECK, ("evaluate.bootstrap", "100000"), {"evaluate__bootstrap": 10**12}),
    Hostile("sides of 65,536", CHECK, ("latency.sides.0", "8192"), {"latency__sides": [65536]}),
    Hostile("a crop of a billion", CHECK, ("report.crop", "4096"), {"report__crop": 10**9}),
    Hostile("a wild search", CHECK, ("search.space", "max_share"), {"search__space__max_share": {"low": 0, "high": 9}}),
    Hostile("a criterion of no paper", CHECK, ("prune.criterion is 'best'", "'taylor'"), {"prune__criterion": "best"}),
    Hostile("zeros without a ReLU", CHECK, ("'apoz'", "networks.sid has no channel behind a ReLU", "saliency, l1"),
            {"methods__A__overrides": {"criterion": "apoz"}}),
    Hostile("an impossible override", CHECK, ("methods.A.overrides: max_share is 7",),
            {"methods__A__overrides": {"max_share": 7}}),
    Hostile("a method of 300 letters", CHECK, ("methods", "64 at most"), {f"methods__{300 * 'm'}": A}),
    Hostile("a network of 300 letters", CHECK, ("networks", "64 at most"), {f"networks__{300 * 'n'}": {
        "factory": "edsr", "task": "super_resolution"}}),
    Hostile("names that differ in case", CHECK, ("'A' and 'a'", "one folder"), {"methods__a": A}),
    Hostile("a milestone after the end", CHECK, ("train.sid", "milestones has 9"), {
        "train__sid": {"steps": 2, "batch": 2, "patch": 16, "lr": 0.1, "schedule": "step", "milestones": [9],
                       "validate_every": 2}}),
    Hostile("a rising rate", CHECK, ("finetune.edsr", "lr_final is 5"), {"finetune__edsr__lr_final": 5.0}),
    Hostile("a patch larger than the images", CHECK, ("es_", "at least 2048"), {"train__edsr__patch": 1024}),
    Hostile("a pair in two splits", "stages.prepare sid", ("Sony_test_list.txt: line 2", "Sony_val_list.txt: line 1"),
            SID, listed("test", VAL)),
    Hostile("a pair twice", CHECK, ("Sony_val_list.txt: line 2", "again"), SID, listed("val", VAL)),
    Hostile("exchanged exposures", CHECK, ("Sony_val_list.txt: line 2", "short exposure first"), SID,
            listed("val", " ".join(reversed(VAL.split())))),
    Hostile("a raw file of another camera", CHECK, ("00001_00_0.1s.ARW", "black level is 64"), SID,
            raw("short/00001_00_0.1s.ARW", black=64)),
    Hostile("a raw file of 16 bits", "stages.prepare sid", ("00001_00_10s.ARW", "65535"), SID,
            raw("long/00001_00_10s.ARW", white=65535)),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_parameter_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
