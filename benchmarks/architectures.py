"""How much of published restoration networks can be removed: traced or not, MACs left at half, equal to the masked one.

    python3 -m venv archs && archs/bin/pip install -r requirements.txt -r benchmarks/requirements.txt
    archs/bin/python benchmarks/architectures.py             # an hour on one core; it goes on after a stop
    archs/bin/python benchmarks/architectures.py SPAN PLKSR  # measures these anew

An environment of its own, because the collections bring much along: Spandrel with its extra architectures,
super-image and torchSR. The networks are built by name with fresh weights, small where their arguments allow; nothing
is downloaded. Of several outputs the largest is taken. Each network is measured in a process of its own, with one
thread, that is stopped after --limit seconds of processor time. Torch-Pruning gets a quarter of it, because where it
isn't done in seconds it wasn't in minutes.

Of every group that `find_groups` finds, half of the channels are removed, by chance. *MACs left* are those of 2-D
convolutions (pipeline/cost.py) and linear layers, in percent; products of two computed tensors aren't counted.
*Possible* is what would be left if every convolution and linear layer lost half of its inputs and outputs, but for the
network's own: colours, and what becomes the picture without another layer. A grouped one loses half of its groups once.
*Difference* is the largest one between the smaller and the masked network's output, as a share of the output's largest
value, in float64 (float32 where a forward can't do that), with weights drawn anew, at another size than the traced one.
Torch-Pruning (Fang et al., CVPR 2023) removes half of every group by its own magnitudes. It is told which layers make
the picture, and nothing else by hand; version 1.6.1 fails at a PixelShuffle in front of a layer ("index 64 is out of
bounds"). Its network *works* if it gives an output of the same shape; what it computes isn't compared with anything.

Written to benchmarks/results/architectures.csv (a line a network) and .md (the table and its summary).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pipeline import cost
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError, first_line
from pipeline.files import write_text
from pipeline.networks import duplicate, folded, outputs
from pipeline.progress import Progress
from pipeline.pruning import coupling, labels, rehearsal, removal, tracing

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "architectures.csv"
SIDES = (16, 32, 48, 64, 128, 256, 512)  # pixels; the first that a network runs on is taken
EQUAL = {"float64": 1e-10, "float32": 1e-4}
CLOSE = 1.5  # points of the MACs: as good as what is possible

# Arguments that make a network small, or that it can't be built without.
SMALL: dict[str, dict[str, Any]] = {
    "AuraSR": {"dim": 16, "image_size": 64, "input_image_size": 16, "up_dim_mults": (1, 2, 4), "down_dim_mults": (2,),
               "style_network": {"dim_in": 16, "dim_out": 32, "depth": 2}, "full_attn": (False, False, True),
               "attn_depths": (1, 1, 1), "mid_attn_depth": 1},
    "ATD": {"depths": (2, 2), "num_heads": (6, 6), "upscale": 2, "upsampler": "pixelshuffle"},
    "CRAFT": {"depths": [2], "num_heads": [6]},
    "CodeFormer": {"n_layers": 2},
    "DDColor": {"encoder_name": "convnext-t", "nf": 64, "num_queries": 10, "dec_layers": 3},
    "DAT": {"embed_dim": 60, "depth": [2], "num_heads": [2]},
    "DRCT": {"embed_dim": 60, "depths": (6,), "num_heads": (6,), "upscale": 2, "upsampler": "pixelshuffle"},
    "DRUNet": {"in_nc": 3, "out_nc": 3, "nc": [16, 32, 64, 128], "nb": 2},
    "DnCNN": {"in_nc": 3, "out_nc": 3, "nb": 8},
    "ESRGAN": {"num_blocks": 2},
    "FBCNN": {"nb": 1},
    "FDAT": {"embed_dim": 60, "num_groups": 1},
    "FFTformer": {"dim": 24, "num_blocks": [1, 1, 2], "num_refinement_blocks": 1},
    "GFPGAN": {"out_size": 64, "num_style_feat": 64, "channel_multiplier": 1, "narrow": 0.25},
    "GRL": {"embed_dim": 48, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2], "upscale": 2,
            "upsampler": "pixelshuffle"},
    "HAT": {"embed_dim": 48, "depths": (2,), "num_heads": (6,), "window_size": 8, "upscale": 2},
    "IPT": {"n_feats": 16, "num_heads": 4, "num_layers": 1, "patch_size": 48, "scale": [2]},
    "KBNet_l": {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1},
    "KBNet_s": {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 1], "dec_blk_nums": [1, 1, 1, 1]},
    "M3SNet": {"width": 16, "enc_blk_nums": [1, 1, 1, 2]},
    "MIRNet2": {"n_feat": 32, "n_MRB": 1},
    "MMRealSR": {"num_in_ch": 3, "num_out_ch": 3, "num_block": 2, "num_feats": [16, 32, 64, 128]},
    "MPRNet": {"num_cab": 2},
    "MoESR": {"n_blocks": 2, "n_block": 2},
    "MoSR": {"n_block": 4},
    "NAFNet": {"width": 16, "enc_blk_nums": [1, 1, 1], "dec_blk_nums": [1, 1, 1]},
    "PLKSR": {"n_blocks": 4},
    "RCAN": {"n_resgroups": 2, "n_resblocks": 3},
    "RGT": {"embed_dim": 60, "depth": [2], "num_heads": [2]},
    "RealPLKSR": {"n_blocks": 4},
    "Restormer": {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1},
    "SAFMN": {"dim": 36},
    "SAFMNBCIE": {"dim": 36},
    "SCUNet": {"config": [2, 2, 2, 2, 2, 2, 2]},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3},
    "SRFormer": {"embed_dim": 48, "depths": (2,), "num_heads": (6,), "window_size": 8, "upscale": 2,
                 "upsampler": "pixelshuffle"},
    "SeemoRe": {"num_layers": 2},
    "Swin2SR": {"embed_dim": 48, "depths": [2], "num_heads": [6], "window_size": 8, "upsampler": "pixelshuffle"},
    "SwinIR": {"embed_dim": 48, "depths": [2], "num_heads": [6], "window_size": 8, "upscale": 2,
               "upsampler": "pixelshuffle"},
    "SwiftSRGAN": {"num_blocks": 4},
    "Uformer": {"embed_dim": 16, "depths": [1] * 9},
    "Drn": {"n_blocks": 4},
    "Edsr": {"n_resblocks": 8},
    "Han": {"n_resblocks": 2},
    "Physicssr": {"n_resblocks": 4, "n_feats": 64},
    "Rcan": {"n_resgroups": 2, "n_resblocks": 3},
    "Rnan": {"n_resgroups": 2},
    "Smsr": {"n_resblocks": 4},
}  # fmt: skip
TORCHSR = [
    *("edsr_baseline", "edsr_r32f256", "vdsr", "rdn_a", "rdn_b", "rcan"),
    *("ninasr_b0", "ninasr_b1", "ninasr_b2", "carn", "carn_m"),
]
# Those that weigh places or channels by products of computed tensors; the others are convolutional.
ATTENTION = """
    ATD AuraSR CRAFT CodeFormer DAT DCTLSA DDColor DITN DRCT FDAT FFTformer GRL HAT HVICIDNet IPT KBNet_l MAT OmniSR
    RGT RestoreFormer Restormer RetinexFormer Rnan SCUNet SRFormer Swin2SR SwinIR Uformer
"""


Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Row:
    """One network. Figures are 0 or nan where they couldn't be measured."""

    collection: str
    name: str
    kind: str  # "convolutional" or "attention"
    side: int = 0  # pixels of the square input
    built: str = ""  # why it couldn't be built or run; empty if it could
    untraced: str = ""  # why no groups were found; empty if they were
    seconds: float = math.nan  # of processor time, of find_groups
    groups: int = 0
    left: float = math.nan  # % of the MACs
    possible: float = math.nan  # % of the MACs
    difference: float = math.nan  # of the smaller network to the masked one
    effect: float = math.nan  # of the masked network to the whole one
    precision: str = ""  # in which they were computed
    whole: str = ""  # what most channels that stay whole have as a reason
    theirs: float = math.nan  # Torch-Pruning: % of the MACs
    theirs_fails: str = ""

    @property
    def traced(self) -> bool:
        return not self.built and not self.untraced

    @property
    def wrong(self) -> bool:
        return self.groups > 0 and not self.difference <= EQUAL.get(self.precision, 0.0)


def main() -> None:
    parser = Parser(prog="python benchmarks/architectures.py", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of networks; without any, all that have no line yet")
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time for each network and method")
    with guarded("architectures"):
        run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    everything = {(group, name): make for group, names in collections().items() for name, make in names.items()}
    unknown = set(options.names) - {name for _, name in everything}
    if unknown:
        raise UserError(f"{min(unknown)!r} isn't one of {', '.join(name for _, name in sorted(everything))}")
    done = {(row.collection, row.name): row for row in read(TABLE)}
    wanted = [key for name in options.names for key in sorted(everything) if key[1] == name]
    wanted = wanted if options.names else [key for key in sorted(everything) if key not in done]
    progress = Progress("architectures", len(wanted))
    for collection, name in wanted:
        row = Row(collection, name, "attention" if name in ATTENTION.split() else "convolutional")
        for method, key, limit in (("ours", "untraced", options.limit), ("theirs", "theirs_fails", options.limit // 4)):
            if not row.built:
                found, fault = apart(everything[collection, name], method, limit)
                row = replace(row, **(found | ({key: fault} if fault else {})))
        done[collection, name] = row
        write(TABLE, [done[key] for key in sorted(done)])
        write_text(TABLE.with_suffix(".md"), summary([done[key] for key in sorted(done)], len(everything)))
        progress.say(f"{name}: {row.built or row.untraced or f'{row.left:.1f}% of {row.possible:.1f}%'}")
        progress.phase_over(1)
    progress.close()
    print(summary([done[key] for key in sorted(done)], len(everything)))


def apart(make: Make, method: str, limit: int) -> tuple[dict[str, Any], str]:
    """What a process of its own finds, as fields of the row, and what went wrong with it; it may hang or crash."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        process = multiprocessing.get_context("fork").Process(target=child, args=(make, method, limit, found))
        process.start()
        process.join(20 * limit)  # of the clock: one that waits for something takes no processor time
        if process.is_alive():
            process.kill()
            process.join()
        fault = ""
        if process.exitcode:
            over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
            fault = f"over {limit} s" if over else f"the process ended with status {process.exitcode}"
        fields = json.loads(found.read_text()) if found.exists() else {}
        return fields, fields.pop("fault", fault)


def child(make: Make, method: str, limit: int, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    torch.manual_seed(0)
    found: dict[str, Any] = {}

    def note(**fields: Any) -> None:
        found.update(fields)
        write_text(path, json.dumps(found))

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            network = make().eval()
            folded.fold(type(network).__name__, network)  # as networks.build does
            side = suited(network)
        except (Exception, SystemExit) as error:
            note(built=fault_of(error))
            return
        note(side=side)
        try:
            (ours if method == "ours" else theirs)(network, torch.zeros(1, 3, side, side), note)
        except (Exception, SystemExit) as error:
            note(fault=fault_of(error))


def collections() -> dict[str, dict[str, Make]]:
    """Collection -> network's name -> its constructor with small arguments."""
    try:
        spandrel, extra = importlib.import_module("spandrel"), importlib.import_module("spandrel_extra_arches")
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} isn't installed; benchmarks/requirements.txt has what is needed") from None
    extra.install(ignore_duplicates=True)
    found: dict[str, dict[str, Make]] = {"Spandrel": {}, "super-image": {}, "torchSR": {}}
    for support in spandrel.MAIN_REGISTRY.architectures("detection"):
        module = importlib.import_module(type(support.architecture).__module__)
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found["Spandrel"][name] = partial(kind, **SMALL.get(name, {}))
    images = importlib.import_module("super_image.models")
    for name in (word.removesuffix("Model") for word in dir(images) if word.endswith("Model")):
        found["super-image"][name] = partial(super_image, images, name)
    models = importlib.import_module("torchsr.models")
    for name in TORCHSR:
        found["torchSR"][name] = partial(getattr(models, name), 2)
    return found


def super_image(models: ModuleType, name: str) -> nn.Module:
    return getattr(models, f"{name}Model")(getattr(models, f"{name}Config")(**{"scale": 2, **SMALL.get(name, {})}))


def suited(network: nn.Module) -> int:
    """The first side that the network runs on; the largest of its outputs is chosen. What it raises on the last one."""
    for side in SIDES:
        try:
            with torch.no_grad(), cost.quiet():
                made = duplicate(network)(torch.rand(1, 3, side, side))
            if not shapes(made):
                raise TypeError(f"it gives {type(made).__name__}")
            if isinstance(made, list | tuple):
                sizes = [part.numel() if isinstance(part, torch.Tensor) else 0 for part in made]
                outputs.choose(network, sizes.index(max(sizes)))
            return side
        except TypeError:  # other arguments than one image
            raise
        except Exception as error:
            fault = error
    raise fault


def shapes(made: Any) -> list[tuple[int, ...]]:
    """Of the tensors that a network gives."""
    return [tuple(leaf.shape) for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]


def fault_of(error: BaseException) -> str:
    return f"{'' if type(error) in (RuntimeError, UserError) else f'{type(error).__name__}: '}{first_line(error)}"


def ours(network: nn.Module, example: torch.Tensor, note: Callable[..., None]) -> None:
    began = time.process_time()
    try:
        found = coupling.find_groups(network, example)
    except UserError as error:
        note(untraced=re.sub(r"/\S*site-packages/", "", str(error)))
        return
    note(seconds=time.process_time() - began, groups=len(found.groups), whole=common(found.frozen))
    chance = random.Random(1)
    removed = {group.name: chance.sample(range(group.channels), group.channels // 2) for group in found.groups}
    small = removal.remove(network, found, removed)
    side = example.shape[-1]
    note(left=100 * macs(small, side) / macs(network, side), possible=possible(network, example))
    if not found.groups:
        return
    rehearsed = rehearsal.rehearse(network.requires_grad_(False), torch.rand(example.shape), torch.Generator())
    if rehearsed is None:
        raise UserError("no output is finite with any weights")
    network, image = rehearsed[:2]
    small, masked = removal.remove(network, found, removed), removal.masked(network, found, removed)
    rng = torch.Generator().manual_seed(2)
    for height, width in ((2 * side, side), (side, side)):
        picture = torch.rand(1, 3, height, width, generator=rng).to(image.dtype)
        try:
            whole, expected = result(network, picture), result(masked, picture)
        except Exception:  # some take squares alone
            continue
        made, size = result(small, picture), float(expected.abs().max())
        note(
            difference=float((made - expected).abs().max()) / size, effect=float((whole - expected).abs().max()) / size
        )
        note(precision=str(image.dtype).removeprefix("torch."))
        return


def result(network: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)  # some add noise
    with torch.no_grad():
        return network(picture.clone())


def theirs(network: nn.Module, example: torch.Tensor, note: Callable[..., None]) -> None:
    """Torch-Pruning: half of every group, but for the layers that make the picture and those that training leaves."""
    tp = importlib.import_module("torch_pruning")
    side = example.shape[-1]
    with torch.no_grad():
        before, expected = macs(network, side), shapes(network(example.clone()))
    try:
        kept = set(makers(network, example))
    except Exception:  # it can't be traced by torch.export: the last layer then
        kept = {list(layers(network, example))[-1]}
    kept |= {name.rpartition(".")[0] for name in tracing.untrained(network)}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    try:
        with cost.quiet():
            pruner = tp.pruner.MagnitudePruner(
                network,
                example.clone(),
                importance=tp.importance.GroupMagnitudeImportance(),
                pruning_ratio=0.5,
                ignored_layers=[module for name, module in network.named_modules() if name and name in kept],
            )
            pruner.step()
            with torch.no_grad():
                made = shapes(network(example.clone()))
        if made != expected:
            raise UserError(f"an output of {made}")
        note(theirs=100 * macs(network, side) / before)
    except (Exception, SystemExit) as error:
        note(theirs_fails=fault_of(error))


class Linears(TorchFunctionMode):
    """Counts the multiply-adds of linear layers, however they are called."""

    macs = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.macs += made.numel() * args[0].shape[-1]
        return made


def macs(network: nn.Module, side: int) -> int:
    """Of 2-D convolutions and linear layers, for one image of that side."""
    with torch.no_grad(), cost.quiet(), Linears() as linears:
        duplicate(network)(torch.rand(1, 3, side, side))
    return cost.measure(network, (side, side), 3).mac + linears.macs


def layers(network: nn.Module, example: torch.Tensor) -> Iterator[str]:
    """Names of the convolutions and linear layers in the order in which they run."""
    called: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        network(example.clone())
    return iter(called)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a traced network."""

    name: str
    macs: float
    inputs: int
    outputs: int
    grouped: bool
    reads_image: bool  # nothing learned lies between the image and it
    makes_image: bool  # nothing learned lies between it and the output
    fixed: bool  # training doesn't change its kernel


def graph_layers(network: nn.Module, example: torch.Tensor) -> list[Layer]:
    """The layers of the graph that torch.export gives, which follows what each reads and makes."""
    with torch.no_grad(), cost.quiet():
        program = tracing.exported(network, example)
    signature, nodes = program.graph_signature, list(program.graph.nodes)
    owned = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    still = tracing.untrained(network) | set(signature.inputs_to_buffers.values())
    found: dict[Any, tuple[Any, Any, str, bool]] = {}  # node -> input, kernel, name, fixed
    for node in nodes:
        operation = labels.operation(node) if node.op == "call_function" else ""
        if re.fullmatch(r"conv_transpose2d|conv2d|linear", operation):
            args = labels.arguments(node)
            name = owned.get(args["weight"].name, "")
            found[node] = args["input"], args["weight"], name.rpartition(".")[0], name in still
    learned = {node for node, (_, _, _, fixed) in found.items() if not fixed}
    behind, before = set(), set()  # what has learned layers above it; what reaches the output without one
    for node in nodes:
        if any(source in behind or source in learned for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user.op == "output" or (user in before and user not in learned) for user in node.users):
            before.add(node)
    result = []
    for node, (read, kernel, name, fixed) in found.items():
        shape, places = labels.shape_of(kernel), labels.shape_of(node)
        wide = "transpose" in labels.operation(node)
        groups = labels.arguments(node).get("groups") or 1
        positions = labels.shape_of(read) if wide else places
        count = math.prod(shape) * positions[0] * math.prod(positions[1:-1] if len(shape) == 2 else positions[2:])
        channel = -1 if len(shape) == 2 else 1
        sides = labels.shape_of(read)[channel], places[channel]
        early = read not in behind and read not in learned
        result.append(Layer(name, count, *sides, groups > 1, early, node in before, fixed))
    return result


def possible(network: nn.Module, example: torch.Tensor) -> float:
    """% of the MACs that would be left if every layer lost half of what it reads and makes, but for the image."""

    def share(count: int, whole: bool) -> float:
        return 1.0 if whole else 1 - count // 2 / count

    left = total = 0.0
    for layer in graph_layers(network, example):
        total += layer.macs
        reads = share(layer.inputs, layer.reads_image or layer.fixed)
        makes = share(layer.outputs, layer.makes_image or layer.fixed)
        left += layer.macs * (max(reads, makes) if layer.grouped else reads * makes)
    return 100 * left / total if total else math.nan


def makers(network: nn.Module, example: torch.Tensor) -> list[str]:
    return [layer.name for layer in graph_layers(network, example) if layer.makes_image or layer.fixed]


def common(frozen: tuple[str, ...]) -> str:
    """The reason that most layers have for staying whole, without where: "the operation bmm: 4 layers, …"."""
    count: Counter[str] = Counter()
    for text in frozen:
        named, _, reason = text.partition(" can't be removed because of ")
        if reason.startswith("the sizes in "):
            reason = "sizes written as numbers"
        count[re.split(r" in |, | \(| and \d+ more|: ", reason)[0]] += named.count(",") + 1
    return "; ".join(f"{reason} ({number})" for reason, number in count.most_common(2))


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)}
    with path.open(encoding="utf-8", newline="") as lines:
        return [Row(**{key: kinds[key](value) for key, value in row.items()}) for row in csv.DictReader(lines)]


def write(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row)] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def summary(rows: list[Row], total: int) -> str:
    """The table and what it comes to; total: the networks that there are."""
    return "\n".join([*overall(rows, total), "", *table(rows)]) + "\n"


def overall(rows: list[Row], total: int) -> Iterator[str]:
    runs = [row for row in rows if not row.built]
    yield (
        f"{len(rows)} of {total} networks measured. {len(runs)} can be built and take one image. "
        f"torch {torch.__version__}; benchmarks/architectures.py says what the figures are.\n"
    )
    for kind in ("convolutional", "attention"):
        own = [row for row in runs if row.kind == kind and row.traced and row.left == row.left]
        if own:
            left, most = statistics.mean(row.left for row in own), statistics.mean(row.possible for row in own)
            close = sum(row.left - row.possible <= CLOSE for row in own)
            yield (
                f"- {kind}, {len(own)} traced: {left:.1f}% of the MACs left on average, {most:.1f}% would be possible; "
                f"{close} are within {CLOSE} points of what is possible."
            )
        both = [row for row in runs if row.kind == kind]
        working = [row for row in both if row.theirs == row.theirs]
        if both and working:
            failing = 100 * (len(both) - len(working))
            mean = statistics.mean(row.theirs for row in working)
            counted = (sum(row.theirs for row in working) + failing) / len(both)
            mine = statistics.mean(row.left if row.left == row.left else 100.0 for row in both)
            yield (
                f"- {kind}, Torch-Pruning: a working network of {len(working)} of {len(both)}, with {mean:.1f}% of the "
                f"MACs left on average; all, with 100 for a failure: {counted:.1f}%, against {mine:.1f}% here."
            )
    grouped = [row for row in runs if row.groups]
    wrong = [f"{row.name} ({row.difference:.1e})" for row in grouped if row.wrong]
    equal = f"{len(grouped) - len(wrong)} of {len(grouped)} with removable groups equal their masked network"
    yield f"- {equal}{'; wrong: ' + ', '.join(wrong) if wrong else ''}."
    untraced = [f"{row.name}: {row.untraced}" for row in runs if row.untraced]
    yield f"- Not traced or not measured: {len(untraced)}.{''.join(f'{chr(10)}  - {text}' for text in untraced)}"
    yield "- Not run:" + "".join(f"\n  - {row.name}: {row.built}" for row in rows if row.built)


def table(rows: list[Row]) -> Iterator[str]:
    yield (
        "| collection | network | kind | traced | seconds | groups | MACs left (%) | possible (%) | difference "
        "| layers that stay whole: reasons | Torch-Pruning: MACs left (%) |"
    )
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    for row in rows:
        if row.built:
            continue
        same = row.precision + (" " if row.precision else "") + number(row.difference, ".0e")
        reason = row.whole.replace("|", "/") if not row.left - row.possible <= CLOSE else ""
        theirs = number(row.theirs, ".1f") or f"fails: {row.theirs_fails[:80]}".replace("|", "/")
        yield (
            f"| {row.collection} | {row.name} | {row.kind} | {'yes' if row.traced else 'no'} "
            f"| {number(row.seconds, '.1f')} | {row.groups or ''} | {number(row.left, '.1f')} "
            f"| {number(row.possible, '.1f')} | {same.removeprefix('float64 ')} | {reason} | {theirs} |"
        )


def number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


if __name__ == "__main__":
    main()
