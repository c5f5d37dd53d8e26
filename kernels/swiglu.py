"""Gated activation of a feed-forward layer.

Shapes: T rows, I intermediate size.
From: Shazeer 2020, GLU variants improve transformer; arXiv 2002.05202.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu import runs_native
from kernels.dispatch import runs_triton
from kernels.swiglu_kernel import launch_swiglu


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [T, I] of gate_up [T, 2 I] (gate first).

    Raises ValueError when the last dimension is odd.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up must have an even last dimension, got {gate_up.shape[-1]}")
    if runs_triton(gate_up):
        return launch_swiglu(gate_up)
    if (native := runs_native(gate_up)) is not None and gate_up.ndim == 2:
        return native.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """Define the operation in float32."""
    intermediate = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :intermediate].float(), gate_up[..., intermediate:].float()
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)
