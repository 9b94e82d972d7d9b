"""The published networks that benchmarks/architectures.py measures, small where their arguments allow."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pipeline import cost
from pipeline.errors import UserError
from pipeline.networks import duplicate, outputs

SIDES = (16, 32, 48, 64, 128, 256, 512)  # pixels; the first that a network runs on is taken

# Arguments that make a network small, or that it can't be built without.
SMALL: dict[str, dict[str, Any]] = {
    "AuraSR": {"dim": 16, "image_size": 64, "input_image_size": 16, "up_dim_mults": (1, 2, 4), "down_dim_mults": (2,),
               "style_network": {"dim_in": 16, "dim_out": 32, "depth": 2}, "full_attn": (False, False, True),
               "attn_depths": (1, 1, 1), "mid_attn_depth": 1},
    "ATD": {"depths": (2, 2), "num_heads": (6, 6), "upscale": 2, "upsampler": "pixelshuffle"},
    "CRAFT": {"depths": [2], "num_heads": [6]},
    "CodeFormer": {"n_layers": 2},
    "DDColor": {"encoder_name": "convnext-t", "num_queries": 10, "dec_layers": 3},
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
