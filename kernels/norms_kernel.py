"""Launch and kernel of the root-mean-square norm, alone or with the residual sum before it.

A program takes one row, whole: d entries fit in registers up to 16,384.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH

# Warps by entries of a row up to the key. Not yet measured.
_WARPS = {1024: 2, 4096: 4, 8192: 8, 2**31 - 1: 16}


def num_warps(width: int) -> int:
    """Warps of a program for rows of a width."""
    return next(warps for limit, warps in _WARPS.items() if width <= limit)


def launch_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Start the kernel: the norm of x + residual [T, d] and that sum (x itself without one)."""
    rows, width = x.shape
    x = x.contiguous()
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    if rows > 0:
        _rms_norm_kernel[(rows,)](
            x,
            x if residual is None else residual.contiguous(),
            weight,
            normed,
            total,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            HAS_RESIDUAL=residual is not None,
            num_warps=num_warps(width),
            **LAUNCH,
        )
    return normed, total


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, d]
    residual_ptr,  # [T, d]
    weight_ptr,  # [d]
    normed_ptr,  # [T, d]
    total_ptr,  # [T, d]
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    x = tl.load(x_ptr + start + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + start + columns, mask=mask, other=0.0)
        # Rounded to the type of the stream before the norm, as the next layer will read it.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + start + columns, x, mask=mask)
    x = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    normed = (x * inverse * weight).to(normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + start + columns, normed, mask=mask)
