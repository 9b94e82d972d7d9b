"""params.yaml: every fault is one sentence with the key, what was wrong and what is allowed."""

from __future__ import annotations

import copy
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chains import ROOT
from dvc.utils.serialize import load_yaml

from pipeline import config, presets
from pipeline.errors import UserError
from pipeline.schema import read_yaml
from stages import preset

GOOD = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
MISSING = object()


def changed(folder: Path, key: str, value: Any) -> Path:
    """The shipped parameters with one key (a/b/c) set to a value or taken away."""
    values = copy.deepcopy(GOOD)
    *parents, last = key.split("/")
    section = values
    for parent in parents:
        section = section[parent]
    if value is MISSING:
        del section[last]
    else:
        section[last] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        config.read(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_weights_that_tell_a_network_are_its_baselines(tmp_path: Path) -> None:
    told = {"file": "my/weights.pth", "task": "super_resolution", "scale": 2}
    params = config.read(changed(tmp_path, "networks/edsr", told))
    assert params.networks["edsr"].args == {"file": "my/weights.pth"}
    assert (params.train["edsr"].checkpoint, params.train["sid"].checkpoint) == ("my/weights.pth", None)
    others = GOOD["train"]["edsr"] | {"checkpoint": "others.pth"}
    values = GOOD | {"networks": GOOD["networks"] | {"edsr": told}, "train": GOOD["train"] | {"edsr": others}}
    assert config.checked_params(values, "params.yaml").train["edsr"].checkpoint == "others.pth"


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_with_what_it_takes_from_the_small_one(path: Path) -> None:
    params = config.checked_params(presets.values(path), str(path))
    assert set(params.run.networks) == set(params.networks) == set(params.tolerance)


def test_params_yaml_is_the_small_preset() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "presets" / "small.yaml").read_bytes()


def leaves(section: dict[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key that holds no section, with the keys above it."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, *above, key)
        else:
            yield (*above, key), value


@pytest.mark.parametrize("name", ["standard", "paper", "srresnet", "denoiser"])
def test_a_preset_states_no_key_that_it_doesnt_change(name: str) -> None:
    small = dict(leaves(GOOD))
    sections = {keys[:n] for keys in small for n in range(1, len(keys))}
    stated = dict(leaves(read_yaml(ROOT / "presets" / f"{name}.yaml")))
    assert stated
    for keys, value in stated.items():
        if value is None:  # takes the key away
            assert keys in small or keys in sections, keys
        else:
            assert small.get(keys, MISSING) != value, keys


@pytest.mark.parametrize("name", ["small", "standard", "paper", "srresnet", "denoiser"])
def test_a_preset_is_written_with_its_own_first_lines_and_the_small_ones_comments(name: str, tmp_path: Path) -> None:
    path = ROOT / "presets" / f"{name}.yaml"
    text = presets.rendered(path)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "params.yaml") == presets.values(path)
    assert text.splitlines()[0] == path.read_text(encoding="utf-8").splitlines()[0]
    assert "# of alpha after an accepted iteration\n" in text
    assert "\n\nretrain: # what each pruning iteration trains" in text  # sections stay apart
    assert "\n\n\n" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


BASE = "networks: {a: {args: {x: 1, y: 2}, list: [1, 2]}, b: {z: 1}}\ntrain: {a: {lr: 1}, b: {lr: 2}}\nseed: 1\n"


@pytest.mark.parametrize(
    ("changes", "networks", "train"),
    [
        ("networks: {a: {args: {y: 3}}}", {"a": {"args": {"x": 1, "y": 3}, "list": [1, 2]}, "b": {"z": 1}}, "ab"),
        ("networks: {a: {list: [3]}}", {"a": {"args": {"x": 1, "y": 2}, "list": [3]}, "b": {"z": 1}}, "ab"),
        ("networks: {a: {args: null}}", {"a": {"list": [1, 2]}, "b": {"z": 1}}, "ab"),
        ("networks: {a: null, c: {}}", {"b": {"z": 1}, "c": {}}, "b"),
        ("train: {a: null}", {"a": {"args": {"x": 1, "y": 2}, "list": [1, 2]}, "b": {"z": 1}}, "b"),
    ],
)
def test_a_preset_merges_sections_replaces_the_rest_and_takes_away_by_null(
    tmp_path: Path, changes: str, networks: dict[str, Any], train: str
) -> None:
    (tmp_path / "small.yaml").write_text(BASE)
    (tmp_path / "mine.yaml").write_text(changes)
    merged = presets.values(tmp_path / "mine.yaml")
    assert (merged["networks"], "".join(merged["train"]), merged["seed"]) == (networks, train, 1)


def test_a_preset_replaces_what_is_committed_or_a_preset_and_nobodys_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", "presets")
    params = Path("params.yaml")
    small = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert preset.apply("small") == "preset: params.yaml is now the preset small"  # there was none
    assert "is now the preset standard; `python -m stages.preset small` goes back" in preset.apply("standard")
    assert config.read(params).train["sid"].steps == 40000
    assert preset.apply("standard") == "preset: params.yaml is the preset standard already"
    assert preset.apply("small") == "preset: params.yaml is now the preset small"
    assert params.read_text(encoding="utf-8") == small

    params.write_text(small.replace("seed: 1", "seed: 2"), encoding="utf-8")
    with pytest.raises(UserError, match=r"params\.yaml has changes that are neither committed nor a preset"):
        preset.apply("standard")
    assert config.read(params).seed == 2
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "mine"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words], check=True)
    preset.apply("standard")
    assert config.read(params).seed == 1
    with params.open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    with pytest.raises(UserError, match="neither committed nor a preset"):
        preset.apply("small")


def test_a_preset_replaces_what_only_has_another_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", "presets")
    preset.apply("standard")
    whole = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(yaml.safe_dump(read_yaml(Path("params.yaml"))))
    assert preset.apply("standard") == "preset: params.yaml is now the preset standard; " \
        "`python -m stages.preset small` goes back to the small one"  # fmt: skip
    assert Path("params.yaml").read_text(encoding="utf-8") == whole

    small = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for changes, lost in (({"seed": 2}, True), ({"threads": True}, True), ({"device": "cpu"}, True), ({}, False)):
        Path("params.yaml").write_text(yaml.safe_dump(small | changes))
        if lost:
            with pytest.raises(UserError, match="neither committed nor a preset"):
                preset.apply("standard")
        else:
            preset.apply("standard")
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "mine"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *words], check=True)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    Path("params.yaml").write_text(yaml.safe_dump(small | {"seed": 2}))
    with pytest.raises(UserError, match="neither committed nor a preset"):
        preset.apply("standard")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: -1\n", "presets/mine.yaml: seed is -1 but should be greater"),
        ("sead: 1\n", "presets/mine.yaml: sead is an unknown key"),
        ("seed: [\n", "presets/mine.yaml isn't YAML"),
        ("", "presets/mine.yaml must hold sections"),
        ("networks: null\n", "presets/mine.yaml: networks is missing"),
        ("networks: 3\n", "presets/mine.yaml: networks is 3 but should be a section"),
    ],
)
def test_a_faulty_preset_is_named_and_params_yaml_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", "presets")
    Path("presets/mine.yaml").write_text(text)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    with pytest.raises(UserError) as caught:
        preset.apply("mine")
    assert said in str(caught.value)
    assert Path("params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_a_misspelt_key_is_told_before_the_one_that_it_stands_for() -> None:
    values = copy.deepcopy(GOOD)
    values["gate"]["max_psnr_dorp"] = values["gate"].pop("max_psnr_drop")
    with pytest.raises(UserError, match=r"gate\.max_psnr_dorp is an unknown key; allowed here: .*max_psnr_drop"):
        config.checked_params(values, "params")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("gate/drop", 1,
         "gate.drop is an unknown key; allowed here: reference, max_psnr_drop, max_ssim_drop, confidence"),
        ("evaluate/boot", 1, "evaluate.boot is an unknown key; allowed here: bootstrap"),
        ("finetune/sid/step", 1, "finetune.sid.step is an unknown key; allowed here: steps, lr, lr_final, teacher"),
        ("retrain/sid/lr_final", 1.0,
         "retrain.sid.lr_final is an unknown key; allowed here: max_iterations, steps, lr, teacher"),
        ("retrain/sid/teacher", 1.5, "retrain.sid.teacher is 1.5 but should be less than or equal to 1"),
        ("gate/reference", "worst", "gate.reference is 'worst' but should be 'best', 'baseline' or 'control'"),
        ("gate/confidence", 1.0, "gate.confidence is 1.0 but should be less than 1"),
        ("prune/reconstruct", 1, "prune.reconstruct is 1 but should be a valid boolean"),
        ("prune/criterion", "l3",
         "prune.criterion is 'l3' but should be 'magnitude', 'saliency', 'l1', 'l2', 'random', 'taylor', "
         "'mac_taylor', 'obd', 'apoz' or 'variance'"),
        ("prepare/sid/cameras", "two", "prepare.sid.cameras is 'two' but should be 'one' or 'random'"),
        ("prepare/edsr/cameras", "one", "prepare.edsr: cameras is for the task low_light, not super_resolution"),
        ("tolerance/sid/psnr_drop", 1.0, "tolerance.sid.psnr_drop is an unknown key; allowed here: psnr, ssim"),
        ("tolerance/sid", MISSING, "run.networks names 'sid', which tolerance doesn't have; it has 'edsr'"),
        ("retrain/sid", MISSING, "run.networks names 'sid', which retrain doesn't have; it has 'edsr'"),
        ("report/method", "Z", "report.method is 'Z', which run.methods doesn't have; it has 'D'"),
        ("run/methods", ["A", "B"], "report.method is 'D', which run.methods doesn't have; it has 'A', 'B'"),
        ("search/network", "vdsr", "search.network is 'vdsr', which networks doesn't have; it has 'edsr', 'sid'"),
        ("search/method", "Z", "search.method is 'Z', which methods doesn't have; it has 'A', 'B', 'C', 'D'"),
        ("methods/A/rule", [], "methods.A.rule is an unknown key; allowed here: rules, overrides, networks"),
        ("train/edsr/checkpoint", 3, "train.edsr.checkpoint is 3 but should be a valid string"),
        ("train/edsr/checkpoint", "", "train.edsr.checkpoint is '' but should have at least 1 character"),
        ("gate/reference", MISSING, "gate.reference is missing"),
        ("report", MISSING, "report is missing"),
        ("seed", "yes", "seed is 'yes' but should be a valid integer"),
        ("seed", True, "seed is True but should be a valid integer"),
        ("seed", -1, "seed is -1 but should be greater than or equal to 0"),
        ("train/edsr/lr", "fast", "train.edsr.lr is 'fast' but should be a valid number"),
        ("train/edsr/lr", 0.0, "train.edsr.lr is 0.0 but should be greater than 0"),
        ("train/edsr/steps", 10.0, "train.edsr.steps is 10.0 but should be a valid integer"),
        ("train/edsr/patch", 7, "train.edsr.patch is 7 but should be greater than or equal to 8"),
        ("train/edsr/schedule", "linear", "train.edsr.schedule is 'linear' but should be 'cosine' or 'step'"),
        ("train/edsr", 3, "train.edsr is 3 but should be a section of keys"),
        ("train", None, "train is None but should be a section of keys"),
        ("prepare/sid/ratio", [200.0, 100.0], "prepare.sid: ratio is [200, 100], but the lowest must come first"),
        ("prepare/sid/ratio", [100.0, 400.0],
         "prepare.sid.ratio.1 is 400.0 but should be less than or equal to 300"),
        ("prepare/sid/shot", [0.0, 0.1], "prepare.sid.shot.0 is 0.0 but should be greater than 0"),
        ("prepare/edsr/photos", "x", "prepare.edsr.photos is an unknown key; allowed here: layout, folder, train, "
                                     "validation, test, ratio, shot, cameras, noise, test_sets"),
        ("prepare/edsr/layout", "flickr",
         "prepare.edsr.layout is 'flickr' but should be 'photographs', 'paired', 'div2k' or 'sid'"),
        ("prune/target_mac", 1.5, "prune.target_mac is 1.5 but should be less than or equal to 1"),
        ("prune/max_share", 0, "prune.max_share is 0 but should be greater than 0"),
        ("prune/balance_range", [2.0, 3.0],
         "prune: balance_range must hold 1 between its two numbers, lowest first"),
        ("prune/align", 0, "prune.align is 0 but should be greater than or equal to 1"),
        ("prune/align", 7.5, "prune.align is 7.5 but should be a valid integer"),
        ("analyze/edsr/size", [10, 10, 10], "analyze.edsr.size is [10, 10, 10] but should have at most 2 items"),
        ("device", "tpu", "device is 'tpu' but should be 'auto', 'cpu' or 'cuda'"),
        ("run/methods", "A", "run.methods is 'A' but should be a list"),
        ("run/methods", [], "run.methods is [] but should have at least 1 item"),
        ("run/methods", ["A", "Z"],
         "run.methods names 'Z', which methods doesn't have; it has 'A', 'B', 'C', 'D'"),
        ("run/networks", ["vdsr"], "run.networks names 'vdsr', which networks doesn't have; it has 'edsr', 'sid'"),
        ("train/sid", MISSING, "prepare has 'sid', which train doesn't have; it has 'edsr'"),
        ("finetune/sid", MISSING, "run.networks names 'sid', which finetune doesn't have; it has 'edsr'"),
        ("methods/D/rules", ["adaptive", "magic"],
         "methods.D.rules.1 is 'magic' but should be 'adaptive', 'depth', 'efficiency' or 'balance'"),
        ("methods/B/rules", ["depth"],
         "methods.B: rules must contain 'adaptive': without it the threshold never moves"),
    ],
)  # fmt: skip
def test_a_fault_is_said_with_its_key_and_what_is_allowed(tmp_path: Path, key: str, value: Any, sentence: str) -> None:
    path = changed(tmp_path, key, value)
    assert complaint(path) == f"{path}: {sentence}"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("prune/efficiency_power", 1e9, "less than or equal to 10"),
        ("prune/threshold_scale", 1e300, "less than or equal to 1000"),
        ("prune/threshold_growth", 1e300, "less than or equal to 1000"),
        ("prune/sparsity", 1e300, "less than or equal to 1000"),
        ("prune/imbalance", 1e300, "less than or equal to 1000"),
        ("prune/balance_strength", 1e300, "less than or equal to 1000"),
        ("retrain/sid/max_iterations", 10**9, "less than or equal to 100000"),
        ("prune/patience", 10**9, "less than or equal to 100000"),
        ("prune/depth_channels", 10**9, "less than or equal to 100000"),
        ("prune/align", 10**9, "less than or equal to 4096"),
        ("retrain/edsr/steps", 10**12, "less than or equal to 100000000"),
        ("retrain/edsr/lr", 1e300, "less than or equal to 10"),
        ("tolerance/edsr/psnr", 1e300, "less than or equal to 100"),
        ("train/edsr/lr", 1e300, "less than or equal to 10"),
        ("train/edsr/steps", 10**12, "less than or equal to 100000000"),
        ("train/edsr/batch", 10**9, "less than or equal to 4096"),
        ("train/edsr/patch", 10**9, "less than or equal to 4096"),
        ("train/edsr/clip", 1e300, "less than or equal to 1000000"),
        ("train/edsr/decay", 2.0, "less than or equal to 1"),
        ("train/edsr/validate_every", 10**12, "less than or equal to 100000000"),
        ("finetune/sid/steps", 10**12, "less than or equal to 100000000"),
        ("finetune/sid/lr", 1e300, "less than or equal to 10"),
        ("gate/max_psnr_drop", 1e300, "less than or equal to 100"),
        ("gate/max_ssim_drop", -1e300, "greater than or equal to -100"),
        ("evaluate/bootstrap", 10**12, "less than or equal to 100000"),
        ("latency/repeats", 10**9, "less than or equal to 1000"),
        ("report/crop", 10**9, "less than or equal to 4096"),
        ("search/trials", 10**9, "less than or equal to 100000"),
        ("prepare/edsr/folder", "", "at least 1 character"),
        ("networks/edsr/factory", "", "at least 1 character"),
    ],
)
def test_every_number_has_an_upper_bound(tmp_path: Path, key: str, value: Any, allowed: str) -> None:
    text = complaint(changed(tmp_path, key, value))
    assert f"params.yaml: {key.replace('/', '.')} is {value!r} but should" in text
    assert allowed in text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("latency/sides", [64, 65536], "latency.sides.1 is 65536 but should be less than or equal to 8192"),
        ("latency/sides", [16] * 33, "latency.sides is [16, 16,"),
        ("analyze/sid/size", [10**6, 4], "analyze.sid.size.0 is 1000000 but should be less than or equal to 65536"),
        ("prune/efficiency_range", [0.5, 1e9], "prune.efficiency_range.1 is 1000000000.0 but should be less than"),
        ("train/edsr/milestones", [100], "train.edsr: milestones is for the schedule 'step', not 'cosine'"),
        ("train/edsr/schedule", "step", "train.edsr: lr_final is for the schedule 'cosine', not 'step'"),
        (
            "train/edsr/lr_final",
            0.01,
            "train.edsr: lr_final is 0.01, but at most lr, 0.003, is allowed: the rate falls",
        ),
        ("finetune/sid/lr_final", 0.01, "finetune.sid: lr_final is 0.01, but at most lr, 0.001, is allowed"),
        ("methods/B/overrides", {"efficiency_power": 1e9}, "methods.B.overrides: efficiency_power is 1000"),
        ("methods/B/rules", ["adaptive", "depth", "depth"], "methods.B: rules has 'depth' twice"),
        ("search/space", {"efficiency_power": {"low": 0.1, "high": 1e9}}, "search.space: efficiency_power is 10000000"),
        ("search/space", {"max_share": {"low": 0.0, "high": 0.5}}, "search.space: max_share is 0.0 but should be"),
        ("methods/d", {"rules": ["adaptive"]}, "methods has 'D' and 'd', which are one folder where case"),
        ("methods/Baseline", {"rules": ["adaptive"]}, "methods has the name 'Baseline'; letters"),
        (
            "methods/" + 300 * "m",
            {"rules": ["adaptive"]},
            "… (302 characters); letters, digits, - and _ make one",
        ),
        ("networks/" + 300 * "n", GOOD["networks"]["edsr"], "… (302 characters); letters, digits, - and _ make one"),
        ("run/networks", [2000 * "n"], "run.networks.0 is 'nnnn"),
        ("prepare/edsr/folder", "a\0b", "prepare.edsr.folder is 'a\\x00b', which has control characters"),
        ("prepare/edsr/folder", "a\nb", "prepare.edsr.folder is 'a\\nb', which has control characters"),
    ],
)
def test_numbers_that_dont_go_together_and_names_that_break_folders_are_refused(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    text = complaint(changed(tmp_path, key, value))
    assert said in text
    assert len(text) < 500


def test_batch_and_patch_are_bounded_together_and_milestones_rise_within_the_steps(tmp_path: Path) -> None:
    step = {"steps": 9, "batch": 1, "patch": 8, "lr": 0.1, "schedule": "step", "validate_every": 99}
    assert config.read(changed(tmp_path, "train/edsr", step | {"milestones": [3, 8]})).train["edsr"].milestones == (
        3,
        8,
    )
    for more, said in (
        ({"batch": 4096, "patch": 512}, "batch is 4096 and patch 512, but batch × patch² may be 268435456 pixels"),
        ({"milestones": [3, 9]}, "milestones has 9, but training ends at step 9"),
        ({"milestones": [3, 3]}, "milestones has 3 after 3, but they must rise"),
    ):
        assert f"params.yaml: train.edsr: {said}" in complaint(changed(tmp_path, "train/edsr", step | more))


@pytest.mark.parametrize("digits", [400, 4000, 5000])
def test_a_number_of_hundreds_of_digits_is_one_short_sentence(tmp_path: Path, digits: int) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("edsr: {steps: 8000", "edsr: {steps: " + digits * "9"), encoding="utf-8")
    said = complaint(path)
    assert ("train.edsr.steps is 9999" if digits < 4300 else "a number has more than 4300 digits") in said
    assert len(said) < 300


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "key",
    [
        "gate/max_psnr_drop",
        "gate/max_ssim_drop",
        "tolerance/sid/psnr",
        "train/sid/lr",
        "prune/target_mac",
    ],
)
def test_numbers_must_be_finite(tmp_path: Path, key: str, value: float) -> None:
    text = complaint(changed(tmp_path, key, value))
    assert f"{key.replace('/', '.')} is {value} but should be" in text


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"maximum": 1}, "maximum is an unknown key; allowed here: threshold_scale, threshold_growth, max_share,"),
        ({"max_iterations": 9}, "max_iterations is an unknown key; allowed here: threshold_scale,"),
        ({"max_share": 2.0}, "max_share is 2.0 but should be less than or equal to 1"),
        ({"sparsity": "none"}, "sparsity is 'none' but should be a valid number"),
    ],
)
def test_a_faulty_override_is_found_before_its_method_runs(tmp_path: Path, overrides: dict, sentence: str) -> None:
    text = complaint(changed(tmp_path, "methods/C/overrides", overrides))
    assert text.startswith(f"methods.C.overrides: {sentence}")


def test_an_override_changes_its_own_method_alone(tmp_path: Path) -> None:
    params = config.read(changed(tmp_path, "methods/C/overrides", {"max_share": 0.5, "balance_range": [1, 3]}))
    assert params.settings("C", "edsr").max_share == 0.5
    assert params.settings("C", "edsr").balance_range == (1, 3)
    assert params.settings("D", "edsr").max_share == GOOD["prune"]["max_share"]


@pytest.mark.parametrize(
    ("networks", "sentence"),
    [
        (
            {"vdsr": {"max_share": 0.5}},
            "methods.C.networks has 'vdsr', which networks doesn't have; it has 'edsr', 'sid'",
        ),
        ({"sid": {"max_share": 2.0}}, "methods.C.networks.sid: max_share is 2.0 but should be less than or equal to 1"),
        ({"sid": 3}, "methods.C.networks.sid is 3 but should be"),
    ],
)
def test_faulty_settings_of_one_network_are_found_before_it_is_pruned(
    tmp_path: Path, networks: dict, sentence: str
) -> None:
    assert sentence in complaint(changed(tmp_path, "methods/C/networks", networks))


def test_one_networks_settings_change_no_other_network(tmp_path: Path) -> None:
    method = {"rules": ["adaptive"], "overrides": {"max_share": 0.5, "patience": 7}}
    params = config.read(changed(tmp_path, "methods/C", method | {"networks": {"sid": {"max_share": 0.25}}}))
    assert (params.settings("C", "sid").max_share, params.settings("C", "edsr").max_share) == (0.25, 0.5)
    assert params.settings("C", "sid").patience == 7


def test_all_faults_are_counted(tmp_path: Path) -> None:
    assert complaint(changed(tmp_path, "report", {"method": "D", "crops": 96})).endswith(
        "(1 more fault after this one)"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3E-5", 3e-5), ("-1e-3", -1e-3), ("+2e-1", 0.2), ("010", 10), ("1_0", 10), ("0x10", 16)],
)
def test_numbers_are_what_dvc_takes_them_for(tmp_path: Path, text: str, value: float) -> None:
    """YAML 1.2: that a number needs no dot, and a leading zero makes no octal."""
    source = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(source.replace("max_psnr_drop: 0.01", f"max_psnr_drop: {text}"), encoding="utf-8")
    assert config.read(path).gate.max_psnr_drop == value
    assert load_yaml(str(path))["gate"]["max_psnr_drop"] == value


@pytest.mark.parametrize("output", [True, 1.5, -1, "", [0], 1000])
def test_an_output_is_a_place_or_a_key(output: object) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["networks"]["edsr"]["output"] = output
    with pytest.raises(UserError, match=r"networks\.edsr\.output: it is .*, but must be a place from 0 or a key"):
        config.checked_params(values, "params.yaml")


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "1:30", "n", "2e-photos", "1.2.3"])
def test_text_is_text_for_dvc_and_here(tmp_path: Path, text: str) -> None:
    source = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("folder: data/photos", f"folder: {text}")
    path = tmp_path / "params.yaml"
    path.write_text(source, encoding="utf-8")
    assert config.read(path).prepare["edsr"].folder == load_yaml(str(path))["prepare"]["edsr"]["folder"] == text


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"# a comment\n---\n", b"\n\r\n"])
def test_a_byte_order_mark_and_a_beginning_of_the_document_are_read(tmp_path: Path, prefix: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(prefix + (ROOT / "params.yaml").read_bytes())
    assert config.read(path) == config.read(ROOT / "params.yaml")


def test_sections_may_be_shared_and_merged(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    source = (ROOT / "params.yaml").read_text(encoding="utf-8")
    old = "  sid: {steps: 1500, lr: 1.0e-3, lr_final: 1.0e-5, teacher: 0.5}"
    source = source.replace("edsr: {steps: 1500", "edsr: &e {steps: 1500")
    path.write_text(source.replace(old, "  sid: {<<: *e, steps: 7}"), encoding="utf-8")
    finetune = config.read(path).finetune
    assert (finetune["sid"].steps, finetune["sid"].lr) == (7, finetune["edsr"].lr)


def test_text_that_only_begins_like_a_number_stays_text(tmp_path: Path) -> None:
    assert config.read(changed(tmp_path, "prepare/edsr/folder", "2e-photos")).prepare["edsr"].folder == "2e-photos"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed: [1\ndevice: cpu\n", "isn't YAML at line 2: "),
        (b"run:\n\tmethods: [A]\n", "isn't YAML at line 2: found character '\\t'"),
        (b"seed: !!int ''\n", "isn't YAML: a value isn't what its tag or its escape says"),
        (b"seed: !!bool x\n", "isn't YAML: a value isn't what its tag or its escape says"),
        (b'seed: "\\UFFFFFFFF"\n', "isn't YAML: a value isn't what its tag or its escape says"),
        (b"seed: \x00\n", "isn't YAML: unacceptable character"),
        (b"seed: \xff\n", "isn't YAML: 'utf-8' codec can't decode"),
        (b"seed: 2024-13-45\n", "isn't YAML: month must be in 1..12"),
        ("seed: 1\n".encode("utf-16"), "isn't YAML: it is UTF-16, but UTF-8 is needed"),
        ("seed: 1\n".encode("utf-16-le"), "isn't YAML: unacceptable character"),
        (b"seed: 1\n" * 100_000, "is larger than 64 kB, which no file of parameters is"),
        (b"seed: 2024-01-02\n", ": seed is 2024-01-02, which YAML reads as a date; in quotes it is text"),
        (b"<<<<<<< HEAD\nseed: 1\n=======\n", "isn't YAML at line 1: git's conflict marker <<<<<<< is still there"),
        (b"seed: 1\r\n>>>>>>> other\r\n", "isn't YAML at line 2: git's conflict marker >>>>>>> is still there"),
        (b"? [1, 2]\n: 3\n", ": a key is a list, but keys are text, as in quotes"),
        (b"run: {1: 2}\n", ": run: a key is 1, but keys are text, as in quotes"),
        (b"? {a: 1}\n: 3\n", "isn't YAML at line 1: a list or a section is a key, but keys are text"),
        (b"null: 3\n", ": a key is None, but keys are text, as in quotes"),
        (b"seed: !!binary aGk=\n", ": seed is b'hi', but text, numbers, lists and sections are allowed"),
        (b"seed: !!set {a}\n", ": seed is {'a'}, but text, numbers, lists and sections are allowed"),
        (b"seed: !!python/object/apply:os.system [ls]\n", "isn't YAML at line 1: the tag 'tag:yaml.org"),
        (b"seed: *other\n", "isn't YAML at line 1: found undefined alias 'other'"),
        (b"seed: 1\n---\nseed: 2\n", "isn't YAML at line 2: a second document begins, but one is allowed"),
        (b"run: {a: 1, a: 2}\n", "isn't YAML at line 1: key 'a' stands twice"),
        (2_000 * b"- ", "isn't YAML: its lists or sections are nested too deep"),
        (b"seed: &a [*a]\n", "isn't YAML at line 1: a section or list holds itself by an alias"),
        (b"seed: 1\nrun: &a {networks: *a}\n", "isn't YAML at line 2: a section or list holds itself by an alias"),
        (b'"a\\nb": 1\n', ": the key 'a\\nb' has control characters"),
        (b'seed: "\\ud800"\n', ": seed is '\\ud800', which has control characters"),
        (b"", "must hold the sections seed, device, devices, threads, precision, run,"),
        (b"- 1\n", "must hold the sections seed, device, devices, threads, precision, run,"),
    ],
)
def test_a_file_that_is_no_parameter_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert complaint(path).startswith(f"{path}{'' if said.startswith(':') else ' '}{said}")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'} can't be read: No such file or directory"
    assert complaint(tmp_path) == f"{tmp_path} can't be read: Is a directory"


RESTORATION = {"factory": "edsr", "args": {"scale": 1}, "task": "restoration", "scale": 1}


@pytest.mark.parametrize(
    ("network", "section", "sentence"),
    [
        ("edsr", {"layout": "sid"},
         "prepare.edsr: layout is 'sid', but the task super_resolution has 'photographs', 'paired', 'div2k'"),
        ("sid", {"layout": "paired"}, "prepare.sid: layout is 'paired', but the task low_light has"),
        ("sid", {"layout": "sid", "ratio": [1.0, 2.0]},
         "prepare.sid: layout sid can't have ratio, which is for 'photographs', 'div2k'"),
        ("edsr", {"layout": "photographs", "train": [1, 5]},
         "prepare.edsr: layout photographs can't have train, which is for 'div2k'"),
        ("edsr", {"layout": "div2k", "train": [9, 5]},
         "prepare.edsr: train is [9, 5], but the lowest must come first"),
        ("edsr", {"layout": "div2k", "test": [805, 820]},
         "prepare.edsr: validation and test share image 805; no image may serve two splits"),
        ("edsr", {"layout": "photographs", "ratio": [1.0, 2.0]},
         "prepare.edsr: ratio is for the task low_light, not super_resolution"),
        ("edsr", {"layout": "photographs", "noise": 25.0},
         "prepare.edsr: noise is for the task restoration, not super_resolution"),
        ("edsr", {"layout": "photographs", "test_sets": {"Set 5": "x"}},
         "prepare.edsr: test_sets has the name 'Set 5'; letters, digits, - and _ make one"),
        ("sid", {"layout": "photographs", "test_sets": {"Set5": "x"}}, "prepare.sid: test_sets are folders of targets"),
        ("clean", {"layout": "photographs"}, "prepare.clean: noise is missing: with layout photographs, restoration"),
        ("clean", {"layout": "paired", "noise": 25.0}, "prepare.clean: layout paired can't have noise"),
        ("clean", {"layout": "paired", "test_sets": {"Set5": "x"}}, "prepare.clean: test_sets are folders of targets"),
        ("clean", {"layout": "photographs", "noise": 256.0}, "prepare.clean.noise is 256.0 but should be less than"),
        ("vdsr", {"layout": "photographs"},
         "prepare has 'vdsr', which networks doesn't have; it has 'edsr', 'sid', 'clean'"),
    ],
)  # fmt: skip
def test_keys_of_prepare_that_dont_fit_their_layout_or_task_are_refused(
    tmp_path: Path, network: str, section: dict[str, Any], sentence: str
) -> None:
    path = changed(tmp_path, f"prepare/{network}", {"folder": "x"} | section)
    values = yaml.safe_load(path.read_text())
    values["networks"]["clean"], values["train"]["clean"] = RESTORATION, values["train"]["edsr"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert sentence in complaint(path)


def test_a_network_to_run_needs_its_section_of_prepare(tmp_path: Path) -> None:
    text = complaint(changed(tmp_path, "prepare/sid", MISSING))
    assert "run.networks names 'sid', which prepare doesn't have; it has 'edsr'" in text


METHOD = GOOD["methods"]["A"]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("methods/control", METHOD, "methods has the name 'control'; letters, digits, - and _"),
        ("methods/input", METHOD, "methods has the name 'input'"),
        ("methods/A's", METHOD, """methods has the name "A's\""""),
        ("networks/a.b", GOOD["networks"]["edsr"], "networks has the name 'a.b'"),
        ("run/methods", ["A", "D", "A"], "run.methods names 'A' twice"),
        ("run/networks", ["sid", "sid"], "run.networks names 'sid' twice"),
        ("networks/edsr/task", "restoration", "scale is 2, but restoration keeps an image's size: 1"),
        ("networks/edsr/file", "w.pth", "networks.edsr: file tells the network already; "),
        ("networks/edsr/channels", 4, "networks.edsr: channels is 4, but a network has 3, which are RGB, or 1"),
        ("networks/sid/channels", 1, "networks.sid: channels is no key of the task low_light"),
        (
            "networks/sid/scale",
            2,
            "networks.sid: scale is no key of the task low_light, which always makes 2 pixels per",
        ),
    ],
)
def test_names_and_overrides_that_would_break_the_comparison_are_refused(
    tmp_path: Path, key: str, value: Any, sentence: str
) -> None:
    assert sentence in complaint(changed(tmp_path, key, value))


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\nrun: {}\nseed: 2\n")
    assert complaint(path) == f"{path} isn't YAML at line 3: key 'seed' stands twice"


@pytest.mark.parametrize("item", ["[{0}]", "{{<<: [{0}]}}"], ids=["lists", "merged sections"])
def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path, item: str) -> None:
    """Twelve lines of nine aliases each would make 300 billion values."""
    lines = ["a0: &a0 {x: 1}"] + [f"a{k}: &a{k} " + item.format(", ".join(9 * [f"*a{k - 1}"])) for k in range(1, 13)]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    began = time.monotonic()
    assert f"{path} isn't YAML at line " in complaint(path)
    assert "aliases make more than 100000 values" in complaint(path)
    assert time.monotonic() - began < 5


def test_a_section_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: &a [*a]\n")
    assert f"{path} isn't YAML" in complaint(path)


def test_a_network_without_a_section_is_named() -> None:
    params = config.read(ROOT / "params.yaml")
    params.require("edsr")
    with pytest.raises(UserError, match="network 'mine' isn't in prepare, which has edsr, sid"):
        params.require("mine", "prepare")


def test_a_preset_keeps_text_that_looks_like_the_start_of_a_comment(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text((ROOT / "presets" / "small.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text('# mine\nprepare:\n  edsr: {folder: "my  # photos"}\n')
    (tmp_path / "params.yaml").write_text(presets.rendered(path))
    assert config.read(tmp_path / "params.yaml").prepare["edsr"].folder == "my  # photos"
