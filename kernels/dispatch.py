"""Which path an operation takes: its Triton kernel or PyTorch on the CPU."""

import os
from functools import cache

import torch
from torch import Tensor

# Triton reads the same variable when a kernel is decorated, so it cannot change later.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

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
