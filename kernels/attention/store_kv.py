"""New keys and values into their slots: QK-norm and rotary embedding on the way.

Shapes: T rows, Hq query heads, Hkv key-value heads, D head size.
"""

import torch
from torch import Tensor

from kernels.attention.store_kv_kernel import launch_store_kv
from kernels.dispatch import runs_triton
from kernels.rotary import RotaryRows, rotate, rotate_reference


def store_kv(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    slots: Tensor,
    num_heads: int,
    rotary: RotaryRows | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """Write K and V of qkv [T, Hq + 2 Hkv, D] into the cache and return the queries [T, Hq, D].

    keys, values:   [pages, page_size, Hkv, D] of one layer, contiguous; changed in place at slots
    slots:          [T] int64, no two alike; on a GPU -1 marks a padding row, which is not written
    rotary:         angles of these rows; queries and keys turn after their norm, and queries are
                    scaled last
    q_norm, k_norm: [D] weights of a root-mean-square norm over each head, both or neither

    Raises ValueError when the number of heads does not fit the cache or only one norm is given.
    """
    _check(qkv, keys, num_heads, q_norm, k_norm)
    if runs_triton(qkv):
        return launch_store_kv(
            qkv,
            keys,
            values,
            slots=slots,
            num_heads=num_heads,
            rotary=rotary,
            q_norm=q_norm,
            k_norm=k_norm,
            norm_eps=norm_eps,
        )
    q, k = qkv[:, :num_heads], qkv[:, num_heads : num_heads + keys.shape[2]]
    if q_norm is not None and k_norm is not None:
        q, k = _head_norm(q, q_norm, norm_eps), _head_norm(k, k_norm, norm_eps)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
    elif rotary is not None:
        turned = rotate(qkv[:, : num_heads + keys.shape[2]], rotary)
        q, k = turned[:, :num_heads], turned[:, num_heads:]
    if rotary is not None and rotary.query_scale is not None:
        q = (q * rotary.query_scale).to(qkv.dtype)
    keys.flatten(0, 1).index_copy_(0, slots, k.to(keys.dtype))
    values.flatten(0, 1).index_copy_(0, slots, qkv[:, -keys.shape[2] :].to(values.dtype))
    return q


def _check(
    qkv: Tensor, keys: Tensor, num_heads: int, q_norm: Tensor | None, k_norm: Tensor | None
) -> None:
    if qkv.shape[1] != num_heads + 2 * keys.shape[2] or qkv.shape[2] != keys.shape[3]:
        raise ValueError(
            f"qkv must be [rows, {num_heads} + 2 * {keys.shape[2]}, {keys.shape[3]}], "
            f"got {tuple(qkv.shape)}"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm must be given together")


def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def store_kv_reference(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    slots: Tensor,
    num_heads: int,
    rotary: RotaryRows | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """Define the operation row by row in float32."""
    page_size, num_kv_heads = keys.shape[1], keys.shape[2]
    wide = qkv.float()
    q, k, v = (
        wide[:, :num_heads],
        wide[:, num_heads : num_heads + num_kv_heads],
        wide[:, num_heads + num_kv_heads :],
    )
    if q_norm is not None and k_norm is not None:
        q = q / (q.pow(2).mean(-1, keepdim=True) + norm_eps).sqrt() * q_norm.float()
        k = k / (k.pow(2).mean(-1, keepdim=True) + norm_eps).sqrt() * k_norm.float()
    if rotary is not None:
        q, k = rotate_reference(q, rotary), rotate_reference(k, rotary)
        if rotary.query_scale is not None:
            q = q * rotary.query_scale
    for row, slot in enumerate(slots.tolist()):
        keys[slot // page_size, slot % page_size] = k[row].to(keys.dtype)
        values[slot // page_size, slot % page_size] = v[row].to(values.dtype)
    return q.to(qkv.dtype)
