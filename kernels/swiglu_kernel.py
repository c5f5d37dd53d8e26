"""Launch and kernel of `swiglu`: gate and up are read once, their product is written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH

# Entries per program; not yet measured.
_BLOCK = 1024


def launch_swiglu(gate_up: Tensor) -> Tensor:
    """Start the kernel; gate_up [T, 2 I]."""
    rows, double = gate_up.shape
    gate_up = gate_up.contiguous()
    output = torch.empty((rows, double // 2), dtype=gate_up.dtype, device=gate_up.device)
    if output.numel() > 0:
        _swiglu_kernel[(rows, triton.cdiv(double // 2, _BLOCK))](
            gate_up, output, WIDTH=double // 2, BLOCK=_BLOCK, num_warps=4, **LAUNCH
        )
    return output


@triton.jit
def _swiglu_kernel(
    gate_up_ptr,  # [T, 2 I]
    output_ptr,  # [T, I]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    start = gate_up_ptr + row * 2 * WIDTH
    gate = tl.load(start + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    # From exp of a negative number alone, which cannot overflow.
    small = tl.exp(-tl.abs(gate))
    product = tl.where(gate >= 0, gate, gate * small) / (1.0 + small) * up
    output = product.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * WIDTH + columns, output, mask=mask)
