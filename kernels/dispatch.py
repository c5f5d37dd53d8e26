"""Which path an operation takes: its Triton kernel or PyTorch on the CPU."""

import os

from torch import Tensor

# Triton reads the same variable when a kernel is decorated, so it cannot change later.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Options of every launch. Fused multiply-add is Triton's default up to 3.9 and stated because
# later versions turn it off.
LAUNCH = {"enable_fp_fusion": True}


def runs_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor launch kernels: on a GPU, or in Triton's interpreter."""
    return tensor.is_cuda or _INTERPRETED
