"""Where the arithmetic runs, and what makes it repeat to the bit."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

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
    _keep_memory()
    return Machine(chosen, precision == "bf16" or (precision == "auto" and _gains_by_bf16(chosen)))


def _keep_memory() -> None:
    """Have glibc keep what a training step frees for the next one.

    It gives the memory back to Linux otherwise, which clears every page anew: a tenth of a step's time on an Intel Xeon
    (benchmarks/kept_memory.py: 0.10 of small EDSR's, 0.13 of small SID's).
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, bytes
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes: the most that it takes


def release_memory() -> None:
    """Give what was freed back to Linux, so that what a process holds can be measured."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _gains_by_bf16(device: torch.device) -> bool:
    """Whether training in bfloat16 is faster there, by what is known of the processor: measuring could differ by run.

    One thread, benchmarks/training_step.py: an AMD EPYC with AVX512-BF16 takes 0.47 to 0.66 of float32's time, an Intel
    Xeon with AVX512-BF16 but without AMX 1.2 to 1.5 times as much.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    return torch.cpu._is_amx_tile_supported() or "AuthenticAMD" in _processor()


def _processor() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
