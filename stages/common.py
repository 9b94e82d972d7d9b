"""What stage files share: the folders of results and of what is unfinished, and the parameters in other shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import again, digest, hold

if TYPE_CHECKING:
    from torch import Tensor, nn

RESULTS = Path("results")
SCRATCH = Path(".scratch")
TRAININGS = SCRATCH / "trainings"  # what stages and trials trained, for those that need the same
_HELD: dict[Path, IO[str]] = {}  # the folders that this process works in


def scratch(stage: str, params: config.Params, *key: Any) -> Path:
    """The folder of an unfinished stage, named by all that its result depends on; files count by their contents.

    It is this process's until `finished`. UserError where another one makes the same, and where none can be made.
    """
    machine = (params.seed, params.device, params.threads, params.precision)
    folder = SCRATCH / f"{stage}-{digest(stage, machine, *key)}"
    place = folder.resolve()
    if place not in _HELD:
        try:
            _HELD[place] = hold(folder)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use: another process makes the same stage {stage}; wait for it, or stop it"
            ) from None
    return folder


def given_weights(params: config.Params, network: str, net: nn.Module) -> str:
    """Put weights of train.NETWORK.checkpoint, if any, into `net`, in place; how they were read. UserError names it."""
    from pipeline.networks.pretrained import check_output, load_weights
    from pipeline.training.setup import example

    recipe, section = params.train[network], params.networks[network]
    if not recipe.checkpoint:
        return ""
    try:
        if recipe.checkpoint == section.file:  # `net` has them
            how = "recognised by spandrel"
        else:
            how = load_weights(Path(recipe.checkpoint), net, section.factory, section.args)
        check_output(net, example(section, recipe), recipe.checkpoint)
        return how
    except UserError as error:
        raise UserError(f"train.{network}.checkpoint: {error}") from None


def images_of(network: str) -> list[Path]:
    """The files that say what the training and validation images are: they hold their checksums."""
    return [RESULTS / "prepare" / network / split / "index.json" for split in ("train", "validation")]


def control_of(params: config.Params, network: str) -> list[Any]:
    """The control's quality after each iteration, and after its fine-tune; UserError when its files aren't whole."""
    from pipeline import records

    retrain = params.retrain[network]
    return records.control(RESULTS, network, retrain.steps, retrain.max_iterations)


def network_of(path: Path, settings: config.Network, pruned: bool) -> nn.Module:
    """A network of the chain; UserError for one of other arguments or types, or a baseline or control that was cut."""
    from pipeline.networks import checkpoint

    net, meta = checkpoint.load(path, settings.factory)
    if meta["args"] != settings.args or (meta["kept"] and not pruned):
        raise UserError(f"{path} holds another network than params.yaml says; {again(path)}")
    odd = {name: tensor for name, tensor in checkpoint.tensors(net).items() if _retyped(tensor)}
    if odd:
        from pipeline.networks import build

        built = checkpoint.tensors(build(settings.factory, settings.args))
        for name, tensor in odd.items():
            if tensor.dtype != built[name].dtype:
                words = f"'{name}' of {tensor.dtype}, but the network is built with {built[name].dtype}"
                raise UserError(f"{path} holds {words}; {again(path)}")
    return net


def _retyped(tensor: Tensor) -> bool:
    """Whether a tensor may have been cast: images and training are in float32."""
    return tensor.is_floating_point() and tensor.element_size() != 4


def finished(folder: Path) -> None:
    """The stage's results are written: nothing is left to go on with."""
    shutil.rmtree(folder, ignore_errors=True)
    if held := _HELD.pop(folder.resolve(), None):
        held.close()
