"""Launch and kernel of the noise keys of rows: some forty integer operations in one launch.

Shapes: R rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.noise import GOLDEN, MIX_1, MIX_2

_BLOCK = 128

_GOLDEN = tl.constexpr(GOLDEN)
_MIX_1 = tl.constexpr(MIX_1)
_MIX_2 = tl.constexpr(MIX_2)


def launch_noise_keys(
    seeds: Tensor, positions: Tensor, purposes: Tensor, attempts: Tensor
) -> Tensor:
    """Start the kernel: what `noise.noise_keys` gives, [R, 2] int32, R at least 1."""
    rows = seeds.shape[0]
    keys = torch.empty(rows, dtype=torch.int64, device=seeds.device)
    _noise_keys_kernel[(triton.cdiv(rows, _BLOCK),)](
        seeds, positions, purposes, attempts, keys, rows, BLOCK=_BLOCK, num_warps=4, **LAUNCH
    )
    return keys.view(torch.int32).view(-1, 2)


@triton.jit(do_not_specialize=["num_rows"])
def _noise_keys_kernel(
    seeds_ptr,  # [R] int64
    positions_ptr,  # [R] int64
    purposes_ptr,  # [R] int32
    attempts_ptr,  # [R] int32
    keys_ptr,  # [R] int64: both halves of a key
    num_rows,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_rows
    seeds = tl.load(seeds_ptr + rows, mask=mask, other=0).to(tl.int64)
    positions = tl.load(positions_ptr + rows, mask=mask, other=0).to(tl.int64)
    purposes = tl.load(purposes_ptr + rows, mask=mask, other=0).to(tl.int64)
    attempts = tl.load(attempts_ptr + rows, mask=mask, other=0).to(tl.int64)
    mixed = _mix(seeds + _GOLDEN)
    mixed = _mix(mixed ^ (positions * _MIX_2 + _GOLDEN))
    counters = (attempts << 8) | purposes
    tl.store(keys_ptr + rows, _mix(mixed + counters * _GOLDEN), mask=mask)


@triton.jit
def _mix(value):
    """The same as `noise._mix`: splitmix64's finaliser on int64."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _MIX_1
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
