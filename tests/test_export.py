"""A pruned network elsewhere: as ONNX that computes what torch computes, and loaded by a program with torch alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import topologies
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import export, networks
from pipeline.errors import UserError
from pipeline.networks import checkpoint, given
from pipeline.pruning import coupling
from pipeline.pruning.prune import Current, cut

EDSR = ("edsr", {"scale": 2, "blocks": 2, "channels": 8})
SID = ("sid", {"base": 4})
TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": topologies.srresnet,
    "channel attention": topologies.rcan,
    "gates": lambda: topologies.Frame(6, topologies.Gated(6, 4)),
}


def pruned(network: nn.Module, channels: int = 3) -> Current:
    """Without every third channel of each group."""
    torch.manual_seed(0)
    groups = coupling.find_groups(network, torch.zeros(1, channels, 16, 16))
    assert groups.groups
    removed = {group.name: tuple(range(0, group.channels - 1, 3)) for group in groups.groups}
    return cut(Current(network.eval(), groups, {}), removed)


def saved(folder: Path, name: str, args: dict) -> Path:
    current = pruned(networks.build(name, args), networks.input_channels(name))
    checkpoint.save(folder / "network.pt", current.network, name, args, current.kept)
    return folder / "network.pt"


def in_onnxruntime(path: Path, image: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": image.numpy()})[0])


@pytest.mark.parametrize(("name", "args"), [EDSR, SID], ids=["edsr", "sid"])
def test_the_command_writes_what_onnxruntime_computes_like_torch_at_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, args: dict
) -> None:
    path, output = saved(tmp_path, name, args), tmp_path / "made" / "network.onnx"
    assert export.main([str(path), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"{output.stat().st_size:,} bytes, ONNX opset 18" in said
    assert "any height and width" in said
    assert float(said.partition("difference from torch: ")[2].split()[0]) <= 1e-4
    assert [file.name for file in output.parent.iterdir()] == ["network.onnx"]  # no weights beside it

    network, _ = checkpoint.load(path)
    for batch, height, width in ((1, 1, 1), (1, 37, 50), (5, 16, 90)):
        image = torch.rand(batch, networks.input_channels(name), height, width)
        with torch.no_grad():
            torch.testing.assert_close(in_onnxruntime(output, image), network(image), rtol=0, atol=1e-5)
    graph = onnx.load(output).graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        "batch", networks.input_channels(name), "height", "width",
    ]  # fmt: skip


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_other_pruned_networks_export_too(tmp_path: Path, name: str) -> None:
    network = pruned(topologies.unsettle(TOPOLOGIES[name]())).network
    done = export.export(network, tmp_path / "network.onnx", (3,))
    assert done.difference <= 1e-5
    assert done.bytes == (tmp_path / "network.onnx").stat().st_size
    image = torch.rand(2, 3, 10, 24)
    with torch.no_grad():
        found = in_onnxruntime(tmp_path / "network.onnx", image)
        torch.testing.assert_close(found, network(image), rtol=0, atol=1e-5)


class Halving(nn.Module):
    """Packed Bayer in; sides that are no multiples of 4 fail at the sums. In double precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        half = F.max_pool2d(x, 2)
        half = half + F.interpolate(F.max_pool2d(half, 2), scale_factor=2.0)
        return self.last(x + F.interpolate(half, scale_factor=2.0))


def halving(width: int = 4) -> nn.Module:
    return Halving(width)


def test_a_factorys_network_says_what_its_sides_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{__name__}:halving"
    checkpoint.save(tmp_path / "network.pt", halving(), name, {}, {})
    output = tmp_path / "network.onnx"
    assert export.main([str(tmp_path / "network.pt"), "--output", str(output)]) == 2
    assert "ask for it by this name" in capsys.readouterr().err
    assert export.main([str(tmp_path / "network.pt"), "--output", str(output), "--network", name]) == 0
    assert "input [batch, 4, height, width], height and width multiples of 4\n" in capsys.readouterr().out
    assert in_onnxruntime(output, torch.rand(2, 4, 12, 40)).shape == (2, 3, 12, 40)


def test_what_a_program_handed_over_is_built_by_the_function_that_the_user_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "small.pt", tmp_path / "small.onnx"
    network = halving(6)
    given.hold("0", network)
    checkpoint.save(path, network, given.NAME, {"key": "0"}, {}, example=torch.zeros(1, 4, 16, 16))
    assert export.main([str(path), "--output", str(output)]) == 2
    assert "small.pt holds a network that a program handed over" in capsys.readouterr().err
    named = [str(path), "--output", str(output), "--network", f"{__name__}:halving"]
    assert export.main(named) == 2
    assert "small.pt: " in capsys.readouterr().err
    assert export.main([*named, "--args", '{"width": 6}']) == 0
    assert in_onnxruntime(output, torch.rand(2, 4, 12, 40)).shape == (2, 3, 12, 40)


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\0b", "class", "a\udc80", "a b", "写真"])
def test_layers_of_any_name_export(tmp_path: Path, name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Conv2d(3, 3, 3, padding=1), "norm": nn.BatchNorm2d(3)})

        def forward(self, x: Tensor) -> Tensor:
            return self.layers["norm"](self.layers[name](x))

    network = Named().eval()
    assert export.export(network, tmp_path / "network.onnx", (3,)).difference < 1e-5
    image = torch.rand(2, 3, 20, 31)
    with torch.no_grad():
        assert (in_onnxruntime(tmp_path / "network.onnx", image) - network(image)).abs().max() < 1e-5


class Odd(nn.Module):
    """Branches on the size: the trace knows one branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[2] % 2 else x + 1


class Training(nn.Module):
    """Adds noise: onnxruntime draws another."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - 2)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, (3, 3))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (Odd(), "differs from torch by 1.0e+00 on an input of 1 × 3 × 17 × 19"),
        (Training(), "differs from torch by"),
        (NotANumber(), "differs from torch by nan"),
        (Unknown(), "adaptive_max_pool2d"),
        (Pair(), "it gives tuple and not one tensor"),
        (nn.Conv2d(5, 3, 1), "makes no image of an input with 3 channels"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_doesnt_compute_the_same_leaves_no_file_and_one_sentence(
    tmp_path: Path, network: nn.Module, part: str
) -> None:
    with pytest.raises(UserError) as caught:
        export.export(network, tmp_path / "network.onnx", (3,))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_network_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST", 36)
    with pytest.raises(UserError, match="holds 36 bytes, but one ONNX file holds less than 36"):
        export.export(nn.Conv2d(3, 3, 1, bias=False), tmp_path / "network.onnx", (3,))


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}.*requirements.txt"):
        export.export(nn.Conv2d(3, 3, 1), tmp_path / "network.onnx", (3,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "FILE"),
        (["network.pt"], "--output"),
        (["absent.pt", "--output", "x.onnx"], "absent.pt"),
        (["network.pt", "--output", "x.onnx", "--network", "sid"], "'sid' is asked for"),
        (["network.pt", "--output", "x.onnx", "--args", "{}"], "--args is for a network that a program handed over"),
        (["network.pt", "--output", "network.pt/x.onnx"], "network.pt/x.onnx can't be written"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    saved(tmp_path, "edsr", {"blocks": 1, "channels": 4})
    monkeypatch.chdir(tmp_path)
    assert export.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert part in captured.err
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt"]


def test_the_command_is_quiet_also_when_its_reader_has_gone(tmp_path: Path) -> None:
    path = saved(tmp_path, "edsr", {"blocks": 1, "channels": 4})
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "pipeline.export", str(path), "--output", str(tmp_path / "network.onnx")]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    onnx.checker.check_model(tmp_path / "network.onnx", full_check=True)


FILES = (
    "errors.py", "files.py", "networks/__init__.py", "networks/branches.py", "networks/checkpoint.py",
    "networks/folded.py", "networks/literals.py", "networks/outputs.py", "networks/rebuilt.py", "networks/sizes.py",
    "networks/edsr.py", "networks/sid.py",
)  # fmt: skip


@pytest.mark.parametrize(("name", "args"), [EDSR, SID], ids=["edsr", "sid"])
def test_a_program_with_torch_and_a_few_copied_files_loads_a_pruned_network(
    tmp_path: Path, name: str, args: dict
) -> None:
    path = saved(tmp_path, name, args)
    for file in FILES:
        copy = tmp_path / "pipeline" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((Path(checkpoint.__file__).parents[1] / file).read_bytes())
    program = (
        "import sys, torch; from pathlib import Path; before = set(sys.modules)\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # other tests set it, and bits hang on it
        "from pipeline.networks import checkpoint\n"
        f"network, meta = checkpoint.load(Path('network.pt'))\n"
        f"torch.save(network(torch.ones(1, {networks.input_channels(name)}, 9, 12)), 'output.pt')\n"
        "print(sys.modules['pipeline'].__path__[0])\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('pipeline.')))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    place, packages, modules = done.stdout.splitlines()
    assert Path(place) == tmp_path / "pipeline"
    assert set(packages.split()) <= {"pipeline", "torch", "numpy"}  # nothing of the chain: no mlflow, dvc, optuna ...
    own = ("branches", "checkpoint", name, "folded", "literals", "outputs", "rebuilt", "sizes")
    used = ["errors", "files", "networks", *sorted(f"networks.{file}" for file in own)]
    assert modules.split() == [f"pipeline.{module}" for module in used]
    network, _ = checkpoint.load(path)
    image = torch.ones(1, networks.input_channels(name), 9, 12)
    assert torch.equal(torch.load(tmp_path / "output.pt"), network(image))
