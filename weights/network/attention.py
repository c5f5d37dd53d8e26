"""`Attention`: queries, keys and values of a layer, stored and attended in one call.

Shapes: T rows, Hq query heads, Hkv key heads, D head width, d hidden width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import (
    AttentionPlan,
    HeadLayout,
    PagedBatch,
    RotaryRows,
    paged_attention,
    store_kv,
)
from weights.network.config import NetworkConfig
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts
from weights.packed import Piece, take_linear


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What all layers of a step share."""

    batch: PagedBatch
    plan: AttentionPlan
    rotary: RotaryRows | None


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer without its output matrix.

    qkv:   d -> (Hq + 2 Hkv) * D: all query heads, then all keys, then all values
    heads: how many of what size, with their norms and scale
    """

    qkv: Linear
    heads: HeadLayout

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, step: AttentionStep) -> Tensor:
        """Attend with normed rows x [T, d]; writes keys and values; returns [T, Hq * D]."""
        heads = self.heads
        num_heads = heads.num_heads + 2 * heads.num_kv_heads
        qkv = self.qkv(x).view(-1, num_heads, heads.head_dim)  # [T, Hq + 2 Hkv, D]
        queries = store_kv(
            qkv,
            keys,
            values,
            slots=step.batch.slots,
            num_heads=heads.num_heads,
            rotary=step.rotary,
            q_norm=heads.q_norm,
            k_norm=heads.k_norm,
            norm_eps=heads.norm_eps,
        )
        attended = paged_attention(
            queries, keys, values, step.batch, step.plan, scale=heads.scale
        )  # [T, Hq, D]
        return attended.view(-1, heads.num_heads * heads.head_dim)


def build_attention(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> Attention:
    """Take a layer's tensors; separate q, k and v are fused into one matrix."""
    bias = None
    if config.qkv_bias:
        bias = take_rows(parts, config, layer, suffix="bias", trailing=())
    q_norm = k_norm = None
    if config.qk_norm:
        q_norm = placement.tensor(parts.take("q_norm.weight", (config.head_dim,), layer))
        k_norm = placement.tensor(parts.take("k_norm.weight", (config.head_dim,), layer))
    return Attention(
        qkv=take_linear(parts, placement, _qkv_pieces(parts, config, layer), layer, bias=bias),
        heads=HeadLayout(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=1.0 / math.sqrt(config.head_dim),
            q_norm=q_norm,
            k_norm=k_norm,
            norm_eps=config.norm_eps,
        ),
    )


def _qkv_pieces(parts: Parts, config: NetworkConfig, layer: int) -> list[Piece]:
    """The matrices that make up queries, keys and values, in that order."""
    hidden, kv_rows = config.hidden_size, config.num_kv_heads * config.head_dim
    if parts.has("qkv.weight", layer):
        return [Piece("qkv.weight", (config.qkv_size, hidden))]
    return [
        Piece("q.weight", (config.attended_size, hidden)),
        Piece("k.weight", (kv_rows, hidden)),
        Piece("v.weight", (kv_rows, hidden)),
    ]


def take_rows(
    parts: Parts, config: NetworkConfig, layer: int, *, suffix: str, trailing: tuple[int, ...]
) -> Tensor:
    """Take q, k and v [(Hq + 2 Hkv) * D, *trailing], stored as one tensor or as three."""
    if parts.has(f"qkv.{suffix}", layer):
        return parts.take(f"qkv.{suffix}", (config.qkv_size, *trailing), layer)
    q_rows, kv_rows = config.attended_size, config.num_kv_heads * config.head_dim
    return torch.cat(
        [
            parts.take(f"q.{suffix}", (q_rows, *trailing), layer),
            parts.take(f"k.{suffix}", (kv_rows, *trailing), layer),
            parts.take(f"v.{suffix}", (kv_rows, *trailing), layer),
        ]
    )
