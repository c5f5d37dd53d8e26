"""Which path an operation takes: its Triton kernel, our own CPU kernel, or PyTorch on the CPU."""

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# Triton reads the same variable when a kernel is decorated, so it cannot change later.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# "0" leaves the compiled CPU kernels out, as if there were no compiler.
_NATIVE_WANTED = os.environ.get("ESTUARY_CPU_KERNELS", "1") != "0"

# Options of every launch. Fused multiply-add is Triton's default up to 3.9 and stated because
# later versions turn it off.
LAUNCH = {"enable_fp_fusion": True}


def runs_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor launch kernels: on a GPU, or in Triton's interpreter."""
    return tensor.is_cuda or INTERPRETED


@cache
def capability(device: torch.device) -> int:
    """Compute capability of a GPU, 10 times major plus minor; the interpreter stands for 80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def native_is_wanted() -> bool:
    """Whether our own CPU kernels may be compiled and used (not beside Triton's interpreter)."""
    return _NATIVE_WANTED and not INTERPRETED


def onednn_limit() -> str:
    """The largest instruction set that oneDNN was told to use, or an empty string."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()


def user_cache_folder() -> Path:
    """Where files that can be made again are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "estuary"
