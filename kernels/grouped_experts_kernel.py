"""Launch and kernels of `grouped_experts`: rows sorted by expert, one matrix product per run.

The first kernel computes gate and up and writes silu(gate) * up; the second multiplies by `down`
and by the row's weight for its expert. How many tiles an expert has is found on the device.

Shapes: T rows, k experts of a row, E experts, d entries of the stream, I intermediate size.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH

# (outputs, depth, warps, stages) by rows of a tile. Not yet measured.
TUNED = {16: (64, 64, 4, 4), 64: (64, 64, 4, 4), 128: (64, 64, 8, 3)}
_MAX_FLOAT32_ROWS = 16


@dataclass(frozen=True, slots=True)
class _Runs:
    """Choices sorted by expert: order [T k]; starts and tile_starts [E + 1] int32."""

    order: Tensor
    starts: Tensor
    tile_starts: Tensor


def launch_grouped_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> Tensor:
    """Start the kernels; arguments as for `grouped_experts`."""
    rows, width = x.shape
    num_experts, double, _ = gate_up.shape
    chosen = expert_ids.shape[1]
    choices = rows * chosen
    if choices == 0:
        return torch.zeros_like(x)
    x, gate_up, down = x.contiguous(), gate_up.contiguous(), down.contiguous()
    block_t = _tile_rows(choices, num_experts, x.dtype)
    runs = _sort_by_expert(expert_ids, num_experts, block_t)
    tiles = triton.cdiv(choices, block_t) + min(num_experts, choices)
    hidden = torch.empty((choices, double // 2), dtype=x.dtype, device=x.device)
    outputs = torch.empty((choices, width), dtype=torch.float32, device=x.device)
    block_o, block_k, warps, stages = TUNED[block_t]
    sizes = {"BLOCK_T": block_t, "BLOCK_O": block_o, "BLOCK_K": block_k, "STAGES": stages}
    _gate_up_kernel[(tiles, triton.cdiv(double // 2, block_o))](
        x,
        gate_up,
        hidden,
        runs.order,
        runs.starts,
        runs.tile_starts,
        CHOSEN=chosen,
        EXPERTS=num_experts,
        WIDTH=width,
        INTERMEDIATE=double // 2,
        **sizes,
        num_warps=warps,
        **LAUNCH,
    )
    _down_kernel[(tiles, triton.cdiv(width, block_o))](
        hidden,
        down,
        outputs,
        expert_weights.contiguous(),
        runs.order,
        runs.starts,
        runs.tile_starts,
        EXPERTS=num_experts,
        WIDTH=width,
        INTERMEDIATE=double // 2,
        **sizes,
        num_warps=warps,
        **LAUNCH,
    )
    return outputs.view(rows, chosen, width).sum(1).to(x.dtype)


def _tile_rows(choices: int, num_experts: int, dtype: torch.dtype) -> int:
    """Rows of a tile: about what an expert gets on average."""
    average = triton.next_power_of_2(max(1, choices // num_experts))
    most = _MAX_FLOAT32_ROWS if dtype == torch.float32 else max(TUNED)
    return next(rows for rows in TUNED if rows >= min(average, most))


def _sort_by_expert(expert_ids: Tensor, num_experts: int, block_t: int) -> _Runs:
    flat = expert_ids.flatten()
    counts = torch.zeros(num_experts, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    order = flat.argsort(stable=True)
    return _Runs(order, _starts(counts), _starts((counts + block_t - 1) // block_t))


def _starts(counts: Tensor) -> Tensor:
    """Exclusive sums [E + 1] int32 of counts [E]."""
    sums = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    sums[1:] = counts.cumsum(0)
    return sums


@triton.jit
def _gate_up_kernel(
    x_ptr,  # [T, d]
    gate_up_ptr,  # [E, 2 I, d]
    hidden_ptr,  # [T k, I], in sorted order
    order_ptr,  # [T k] int64
    starts_ptr,  # [E + 1] int32
    tile_starts_ptr,  # [E + 1] int32
    CHOSEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + EXPERTS):
        return
    expert = _expert_of(tile, tile_starts_ptr, EXPERTS)
    first = tl.load(starts_ptr + expert) + (tile - tl.load(tile_starts_ptr + expert)) * BLOCK_T
    places = first + tl.arange(0, BLOCK_T)
    place_mask = places < tl.load(starts_ptr + expert + 1)
    rows = tl.load(order_ptr + places, mask=place_mask, other=0) // CHOSEN
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    output_mask = outputs < INTERMEDIATE
    depth = tl.arange(0, BLOCK_K)
    w_starts = (expert.to(tl.int64) * 2 * INTERMEDIATE + outputs) * WIDTH
    gate = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    up = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
        columns = start + depth
        x_mask = place_mask[:, None] & (columns < WIDTH)[None, :]
        x = tl.load(x_ptr + rows[:, None] * WIDTH + columns[None, :], mask=x_mask, other=0.0)
        w_mask = output_mask[:, None] & (columns < WIDTH)[None, :]
        w_ptr = gate_up_ptr + w_starts[:, None] + columns[None, :]
        w = tl.load(w_ptr, mask=w_mask, other=0.0)
        gate = tl.dot(x, tl.trans(w), gate, input_precision="ieee")
        w = tl.load(w_ptr + INTERMEDIATE * WIDTH, mask=w_mask, other=0.0)
        up = tl.dot(x, tl.trans(w), up, input_precision="ieee")
    small = tl.exp(-tl.abs(gate))
    hidden = tl.where(gate >= 0, gate, gate * small) / (1.0 + small) * up
    offsets = places.to(tl.int64)[:, None] * INTERMEDIATE + outputs[None, :]
    mask = place_mask[:, None] & output_mask[None, :]
    tl.store(hidden_ptr + offsets, hidden.to(hidden_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _down_kernel(
    hidden_ptr,  # [T k, I], in sorted order
    down_ptr,  # [E, d, I]
    outputs_ptr,  # [T k, d] float32, in the order of choices
    weights_ptr,  # [T k] float32
    order_ptr,  # [T k] int64
    starts_ptr,  # [E + 1] int32
    tile_starts_ptr,  # [E + 1] int32
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.program_id(0)
    if tile >= tl.load(tile_starts_ptr + EXPERTS):
        return
    expert = _expert_of(tile, tile_starts_ptr, EXPERTS)
    first = tl.load(starts_ptr + expert) + (tile - tl.load(tile_starts_ptr + expert)) * BLOCK_T
    places = first + tl.arange(0, BLOCK_T)
    place_mask = places < tl.load(starts_ptr + expert + 1)
    outputs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    output_mask = outputs < WIDTH
    depth = tl.arange(0, BLOCK_K)
    h_starts = places.to(tl.int64) * INTERMEDIATE
    w_starts = (expert.to(tl.int64) * WIDTH + outputs) * INTERMEDIATE
    product = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for start in tl.range(0, INTERMEDIATE, BLOCK_K, num_stages=STAGES):
        columns = start + depth
        h_mask = place_mask[:, None] & (columns < INTERMEDIATE)[None, :]
        h = tl.load(hidden_ptr + h_starts[:, None] + columns[None, :], mask=h_mask, other=0.0)
        w_mask = output_mask[:, None] & (columns < INTERMEDIATE)[None, :]
        w = tl.load(down_ptr + w_starts[:, None] + columns[None, :], mask=w_mask, other=0.0)
        product = tl.dot(h, tl.trans(w), product, input_precision="ieee")
    choices = tl.load(order_ptr + places, mask=place_mask, other=0)
    weights = tl.load(weights_ptr + choices, mask=place_mask, other=0.0)
    offsets = choices[:, None] * WIDTH + outputs[None, :]
    mask = place_mask[:, None] & output_mask[None, :]
    tl.store(outputs_ptr + offsets, product * weights[:, None], mask=mask)


@triton.jit
def _expert_of(tile, tile_starts_ptr, EXPERTS: tl.constexpr):
    """The last expert whose tiles start at or before this one; experts without rows have none."""
    low = tile * 0
    high = low + EXPERTS
    while low + 1 < high:
        middle = (low + high) // 2
        if tl.load(tile_starts_ptr + middle) <= tile:
            low = middle
        else:
            high = middle
    return low
