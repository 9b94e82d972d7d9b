"""Where the arithmetic runs, and what makes it repeat to the bit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pipeline.errors import UserError


@dataclass(frozen=True)
class Machine:
    """A device and the precision of its training."""

    device: torch.device
    bf16: bool  # run the multiplications of training in bfloat16; weights, losses and quality stay in float32


def choose(device: str, threads: int, precision: str) -> Machine:
    """Set up PyTorch for repeatable arithmetic on the device that params.yaml names.

    The bits repeat on one machine at one thread count; between CPUs, or one and two threads, they differ.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "params.yaml: device is 'cuda', but PyTorch finds no CUDA device; 'auto' or 'cpu' runs anywhere"
        )
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # TF32 would round the inputs of convolutions to 10 bits while quality is measured
    torch.backends.cudnn.allow_tf32 = False
    return Machine(chosen, precision == "bf16" or (precision == "auto" and _has_bf16(chosen)))


def _has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is native there: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
