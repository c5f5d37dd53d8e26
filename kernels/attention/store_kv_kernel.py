"""Launch and kernel of `store_kv`: a program takes one row and a few of its heads."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.rotary import RotaryRows

_BLOCK_HEADS = 8


def launch_store_kv(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    slots: Tensor,
    num_heads: int,
    rotary: RotaryRows | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """Start the kernel; arguments as for `store_kv`. A row whose slot is -1 is not written."""
    rows, heads, head_dim = qkv.shape
    qkv = qkv.contiguous()
    q = torch.empty((rows, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if rows == 0:
        return q
    scale = None if rotary is None else rotary.query_scale
    # Arguments that a switch leaves unread still have to be tensors.
    _store_kv_kernel[(rows, triton.cdiv(heads, _BLOCK_HEADS))](
        qkv,
        keys,
        values,
        q,
        slots,
        qkv if rotary is None else rotary.cos,
        qkv if rotary is None else rotary.sin,
        qkv if scale is None else scale,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        norm_eps,
        Q_HEADS=num_heads,
        KV_HEADS=keys.shape[2],
        HEAD_DIM=head_dim,
        ROTARY_DIM=0 if rotary is None else rotary.rotary_dim,
        INTERLEAVED=rotary is not None and rotary.interleaved,
        HAS_SCALE=scale is not None,
        HAS_NORM=q_norm is not None,
        BLOCK_HEADS=_BLOCK_HEADS,
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=4,
        **LAUNCH,
    )
    return q


@triton.jit
def _store_kv_kernel(  # noqa: PLR0915
    qkv_ptr,  # [T, Hq + 2 Hkv, D]
    keys_ptr,  # [slots, Hkv, D]
    values_ptr,  # [slots, Hkv, D]
    q_ptr,  # [T, Hq, D]
    slots_ptr,  # [T] int64
    cos_ptr,  # [T, rotary_dim] float32
    sin_ptr,  # [T, rotary_dim] float32, with the sign of the rotation
    scale_ptr,  # [T] float32
    q_norm_ptr,  # [D]
    k_norm_ptr,  # [D]
    norm_eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_D)
    is_q = heads < Q_HEADS
    is_k = (heads >= Q_HEADS) & (heads < Q_HEADS + KV_HEADS)
    is_v = (heads >= Q_HEADS + KV_HEADS) & (heads < Q_HEADS + 2 * KV_HEADS)
    dim_mask = (dims < HEAD_DIM)[None, :]
    mask = (is_q | is_k | is_v)[:, None] & dim_mask
    head_ptr = qkv_ptr + row * (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM + heads[:, None] * HEAD_DIM
    x = tl.load(head_ptr + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    turned = x
    if HAS_NORM:
        inverse = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + norm_eps)[:, None]
        turned = x * inverse * _norm_weights(q_norm_ptr, k_norm_ptr, is_q, dims, dim_mask)
    if ROTARY_DIM > 0:
        half: tl.constexpr = ROTARY_DIM // 2
        halves = tl.where(dims < half, dims + half, dims - half)
        partners = dims ^ 1 if INTERLEAVED else halves
        partners = tl.where(dims < ROTARY_DIM, partners, dims)
        other = tl.load(head_ptr + partners[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            weights = _norm_weights(q_norm_ptr, k_norm_ptr, is_q, partners, dim_mask)
            other = other * inverse * weights
        turns = dims < ROTARY_DIM
        cos = tl.load(cos_ptr + row * ROTARY_DIM + dims, mask=turns, other=1.0)[None, :]
        sin = tl.load(sin_ptr + row * ROTARY_DIM + dims, mask=turns, other=0.0)[None, :]
        turned = turned * cos + other * sin
    scaled = turned
    if HAS_SCALE:
        scaled = turned * tl.load(scale_ptr + row)
    q_offsets = row * Q_HEADS * HEAD_DIM + heads[:, None] * HEAD_DIM + dims[None, :]
    tl.store(q_ptr + q_offsets, scaled.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & dim_mask)
    slot = tl.load(slots_ptr + row)
    is_real = slot + heads >= heads  # a padding row has a slot of -1
    slot_start = slot * KV_HEADS * HEAD_DIM
    k_offsets = slot_start + (heads - Q_HEADS)[:, None] * HEAD_DIM + dims[None, :]
    k_mask = (is_k & is_real)[:, None] & dim_mask
    tl.store(keys_ptr + k_offsets, turned.to(keys_ptr.dtype.element_ty), mask=k_mask)
    v_offsets = k_offsets - KV_HEADS * HEAD_DIM
    v_mask = (is_v & is_real)[:, None] & dim_mask
    tl.store(values_ptr + v_offsets, x.to(values_ptr.dtype.element_ty), mask=v_mask)


@triton.jit
def _norm_weights(q_norm_ptr, k_norm_ptr, is_q, dims, dim_mask):
    """Weights [heads, D] at the given entries: those of queries or those of keys."""
    q_weights = tl.load(q_norm_ptr + dims[None, :], mask=dim_mask, other=0.0).to(tl.float32)
    k_weights = tl.load(k_norm_ptr + dims[None, :], mask=dim_mask, other=0.0).to(tl.float32)
    return tl.where(is_q[:, None], q_weights, k_weights)
