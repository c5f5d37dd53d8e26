"""Launches and kernels of products with packed matrices: int4 in groups, fp8 in blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH

# (outputs, depth, warps, stages) by rows of a tile; of int4 two tiles of that depth are read in a
# step. Not yet measured.
TUNED = {
    16: (32, 128, 4, 4),
    32: (32, 64, 4, 4),
    64: (64, 32, 8, 3),
    128: (64, 32, 8, 3),
}
_MAX_FLOAT32_ROWS = 32
# Matrix instructions take 16 columns at least.
SMALLEST_DEPTH = 16
_DEPTHS = (128, 64, 32, SMALLEST_DEPTH)
# An e4m3 number read as the upper bits of a half has an exponent too small by 15 - 7.
_E4M3_IN_HALF = tl.constexpr(256.0)


def step_depth(in_features: int, group_size: int) -> int:
    """Inputs of a step: a power of two that divides half of them and every group; 0 for none."""
    return next(
        (d for d in _DEPTHS if in_features % (2 * d) == 0 and group_size % d == 0),
        0,
    )


def _tile_rows(x: Tensor) -> int:
    most = _MAX_FLOAT32_ROWS if x.dtype == torch.float32 else max(TUNED)
    return min(max(16, int(triton.next_power_of_2(x.shape[0]))), most)


def launch_int4_linear(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None
) -> Tensor:
    """Start the kernel: x [T, in], packed [out, in / 2] uint8, scales and zeros [out, G]."""
    rows, width = x.shape
    outputs, groups = scales.shape
    x = x.contiguous()
    output = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if rows == 0:
        return output
    block_t = _tile_rows(x)
    block_o, depth, warps, stages = TUNED[block_t]
    _int4_linear_kernel[(triton.cdiv(rows, block_t), triton.cdiv(outputs, block_o))](
        x,
        packed,
        scales,
        zeros,
        scales if bias is None else bias,
        output,
        rows,
        WIDTH=width,
        OUTPUTS=outputs,
        GROUPS=groups,
        HAS_BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_K=min(depth, step_depth(width, width // groups)),
        STAGES=stages,
        num_warps=warps,
        **LAUNCH,
    )
    return output


def launch_fp8_linear(
    x: Tensor, values: Tensor, scales: Tensor, block: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """Start the kernel: x [T, in], values [out, in] e4m3, scales [R, C] float32."""
    rows, width = x.shape
    outputs = values.shape[0]
    x = x.contiguous()
    output = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if rows == 0:
        return output
    block_t = _tile_rows(x)
    block_o, depth, warps, stages = TUNED[block_t]
    whole = block[1] >= width
    _fp8_linear_kernel[(triton.cdiv(rows, block_t), triton.cdiv(outputs, block_o))](
        x,
        values.contiguous().view(torch.uint8),
        scales,
        scales if bias is None else bias,
        output,
        rows,
        WIDTH=width,
        OUTPUTS=outputs,
        SCALE_ROWS=block[0],
        SCALE_COLUMNS=width if whole else block[1],
        GRID_COLUMNS=scales.shape[1],
        HAS_BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_K=depth if whole else min(depth, block[1] & -block[1]),
        STAGES=stages,
        num_warps=warps,
        **LAUNCH,
    )
    return output


@triton.jit(do_not_specialize=["num_rows"])
def _int4_linear_kernel(
    x_ptr,  # [T, in]
    packed_ptr,  # [out, in / 2] uint8
    scales_ptr,  # [out, G]
    zeros_ptr,  # [out, G] uint8
    bias_ptr,  # [out]
    output_ptr,  # [T, out]
    num_rows,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
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
    half: tl.constexpr = WIDTH // 2
    group_size: tl.constexpr = WIDTH // GROUPS
    x_starts = x_ptr + rows.to(tl.int64)[:, None] * WIDTH
    w_starts = packed_ptr + outputs.to(tl.int64)[:, None] * half
    group_starts = outputs.to(tl.int64) * GROUPS
    product = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    # BLOCK_K divides half of the inputs and every group, so only rows and outputs overrun.
    for start in tl.range(0, half, BLOCK_K, num_stages=STAGES):
        columns = start + depth
        w = tl.load(w_starts + columns[None, :], mask=output_mask[:, None], other=0)
        x = tl.load(x_starts + columns[None, :], mask=row_mask[:, None], other=0.0)
        group = group_starts + start // group_size
        zero = tl.load(zeros_ptr + group, mask=output_mask, other=0)
        low = ((w & 15).to(tl.int8) - zero.to(tl.int8)[:, None]).to(x.dtype)
        part = tl.dot(x, tl.trans(low), input_precision="ieee")
        scale = tl.load(scales_ptr + group, mask=output_mask, other=0.0).to(tl.float32)
        product += part * scale[None, :]

        x = tl.load(x_starts + half + columns[None, :], mask=row_mask[:, None], other=0.0)
        group = group_starts + (start + half) // group_size
        zero = tl.load(zeros_ptr + group, mask=output_mask, other=0)
        high = ((w >> 4).to(tl.int8) - zero.to(tl.int8)[:, None]).to(x.dtype)
        part = tl.dot(x, tl.trans(high), input_precision="ieee")
        scale = tl.load(scales_ptr + group, mask=output_mask, other=0.0).to(tl.float32)
        product += part * scale[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs, mask=output_mask, other=0.0).to(tl.float32)
        product += bias[None, :]
    offsets = rows.to(tl.int64)[:, None] * OUTPUTS + outputs[None, :]
    mask = row_mask[:, None] & output_mask[None, :]
    tl.store(output_ptr + offsets, product.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _fp8_linear_kernel(
    x_ptr,  # [T, in]
    values_ptr,  # [out, in] e4m3 as uint8: not every chip has the type
    scales_ptr,  # [R, C] float32
    bias_ptr,  # [out]
    output_ptr,  # [T, out]
    num_rows,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    GRID_COLUMNS: tl.constexpr,
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
    x_starts = x_ptr + rows.to(tl.int64)[:, None] * WIDTH
    w_starts = values_ptr + outputs.to(tl.int64)[:, None] * WIDTH
    grid_starts = (outputs // SCALE_ROWS).to(tl.int64) * GRID_COLUMNS
    product = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
        columns = start + depth
        column_mask = (columns < WIDTH)[None, :]
        x_mask = row_mask[:, None] & column_mask
        x = tl.load(x_starts + columns[None, :], mask=x_mask, other=0.0)
        w_mask = output_mask[:, None] & column_mask
        bits = tl.load(w_starts + columns[None, :], mask=w_mask, other=0).to(tl.int16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        part = tl.dot(x, tl.trans(half.to(x.dtype)), input_precision="ieee")
        scale = tl.load(
            scales_ptr + grid_starts + start // SCALE_COLUMNS, mask=output_mask, other=0.0
        )
        product += part * (scale * _E4M3_IN_HALF)[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + outputs, mask=output_mask, other=0.0).to(tl.float32)
        product += bias[None, :]
    offsets = rows.to(tl.int64)[:, None] * OUTPUTS + outputs[None, :]
    mask = row_mask[:, None] & output_mask[None, :]
    tl.store(output_ptr + offsets, product.to(output_ptr.dtype.element_ty), mask=mask)
