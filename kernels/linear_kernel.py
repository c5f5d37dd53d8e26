"""Launch and kernel of the weight-only int8 product: weights are widened in registers.

Half the bytes of 16-bit weights are read, which is what a product of few rows waits for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH

# (outputs, depth, warps, stages) by rows of a tile. Not yet measured.
TUNED = {
    16: (64, 128, 4, 4),
    32: (64, 64, 4, 4),
    64: (128, 64, 4, 4),
    128: (128, 64, 8, 3),
}
_MAX_FLOAT32_ROWS = 32


def launch_int8_linear(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    *,
    output: Tensor | None = None,
) -> Tensor:
    """Start the kernel: x [T, in] times values [out, in] int8 times scales [out], plus bias.

    Written to output [T, out] of any floating type, rows contiguous, or to a new tensor of x's.
    """
    rows, width = x.shape
    outputs = values.shape[0]
    x, values = x.contiguous(), values.contiguous()
    if output is None:
        output = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if rows == 0:
        return output
    most = _MAX_FLOAT32_ROWS if x.dtype == torch.float32 else max(TUNED)
    block_t = min(max(16, triton.next_power_of_2(rows)), most)
    block_o, block_k, warps, stages = TUNED[block_t]
    _int8_linear_kernel[(triton.cdiv(rows, block_t), triton.cdiv(outputs, block_o))](
        x,
        values,
        scales,
        scales if bias is None else bias,
        output,
        rows,
        output.stride(0),
        WIDTH=width,
        OUTPUTS=outputs,
        HAS_BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_K=block_k,
        STAGES=stages,
        num_warps=warps,
        **LAUNCH,
    )
    return output


@triton.jit(do_not_specialize=["num_rows", "output_stride"])
def _int8_linear_kernel(
    x_ptr,  # [T, in]
    values_ptr,  # [out, in] int8
    scales_ptr,  # [out] float32
    bias_ptr,  # [out]
    output_ptr,  # [T, out]
    num_rows,
    output_stride,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    row_mask = rows < num_rows
    output_mask = outputs < OUTPUTS
    depth = tl.arange(0, BLOCK_K)
    x_starts = rows.to(tl.int64) * WIDTH
    w_starts = outputs.to(tl.int64) * WIDTH
    product = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
        columns = start + depth
        x_mask = row_mask[:, None] & (columns < WIDTH)[None, :]
        x = tl.load(x_ptr + x_starts[:, None] + columns[None, :], mask=x_mask, other=0.0)
        w_mask = output_mask[:, None] & (columns < WIDTH)[None, :]
        w = tl.load(values_ptr + w_starts[:, None] + columns[None, :], mask=w_mask, other=0)
        product = tl.dot(x, tl.trans(w.to(x.dtype)), product, input_precision="ieee")
    product *= tl.load(scales_ptr + outputs, mask=output_mask, other=0.0)[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs, mask=output_mask, other=0.0).to(tl.float32)
        product += bias[None, :]
    offsets = rows.to(tl.int64)[:, None] * output_stride + outputs[None, :]
    mask = row_mask[:, None] & output_mask[None, :]
    tl.store(output_ptr + offsets, product.to(output_ptr.dtype.element_ty), mask=mask)
