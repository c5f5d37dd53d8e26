"""Which path an operation takes: its Triton kernel or PyTorch on the CPU."""

import os

from torch import Tensor

# Triton reads the same variable when a kernel is decorated, so it cannot change later.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(tensor: Tensor) -> bool:
    """Whether operations on this tensor launch kernels: on a GPU, or in Triton's interpreter."""
    return tensor.is_cuda or _INTERPRETED
