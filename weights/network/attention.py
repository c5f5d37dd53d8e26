"""`Attention`: queries, keys and values of a layer, stored and attended in one call.

Shapes: T rows, Hq query heads, Hkv key heads, D head width, d hidden width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import AttentionPlan, PagedBatch, RotaryRows, paged_attention, store_kv
from weights.network.config import NetworkConfig
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What all layers of a step share."""

    batch: PagedBatch
    plan: AttentionPlan
    rotary: RotaryRows | None


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer without its output matrix.

    qkv:    d -> (Hq + 2 Hkv) * D: all query heads, then all keys, then all values
    q_norm, k_norm: [D] or None
    """

    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    scale: float

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, step: AttentionStep) -> Tensor:
        """Attend with normed rows x [T, d]; writes keys and values; returns [T, Hq * D]."""
        heads = self.num_heads + 2 * self.num_kv_heads
        qkv = self.qkv(x).view(-1, heads, self.head_dim)  # [T, Hq + 2 Hkv, D]
        queries = store_kv(
            qkv,
            keys,
            values,
            slots=step.batch.slots,
            num_heads=self.num_heads,
            rotary=step.rotary,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            norm_eps=self.norm_eps,
        )
        attended = paged_attention(
            queries, keys, values, step.batch, step.plan, scale=self.scale
        )  # [T, Hq, D]
        return attended.view(-1, self.num_heads * self.head_dim)


def build_attention(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> Attention:
    """Take a layer's tensors; separate q, k and v are fused into one matrix."""
    weight = take_rows(parts, config, layer, suffix="weight", trailing=(config.hidden_size,))
    bias = None
    if config.qkv_bias:
        bias = take_rows(parts, config, layer, suffix="bias", trailing=())
    q_norm = k_norm = None
    if config.qk_norm:
        q_norm = placement.tensor(parts.take("q_norm.weight", (config.head_dim,), layer))
        k_norm = placement.tensor(parts.take("k_norm.weight", (config.head_dim,), layer))
    return Attention(
        qkv=placement.linear(weight, bias),
        q_norm=q_norm,
        k_norm=k_norm,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        norm_eps=config.norm_eps,
        scale=1.0 / math.sqrt(config.head_dim),
    )


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
