"""Differentiable parts shared by the networks that are trained: norms, rotary, attention.

The serving networks run on pages and have no gradients; these compute the same on dense tensors.

Shapes: B texts, S rows of each, n of them settled, d hidden width, H heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROTARY_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class Visibility:
    """What rows see: the first `num_causal` those before them and themselves, the others `rest`.

    rest: [B, S - num_causal, S] bool, true where a row sees another; None when there is no other
    """

    num_causal: int
    rest: Tensor | None = None


class RmsNorm(nn.Module):
    """Root-mean-square norm, in float32 whatever the stream is."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows [..., d]."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class PlainLayerNorm(nn.Module):
    """Layer norm with a weight and no bias, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows [..., d]."""
        return functional.layer_norm(x.float(), self.weight.shape, self.weight, None, self.eps)


def rotary_table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, S, D] float32 of positions [B, S]; both halves alike."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * _ROTARY_THETA ** (-pairs / head_dim)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn heads [B, H, S, D] by their positions, halves against each other (NeoX's order)."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = (part.to(x.dtype) for part in table)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Visibility) -> Tensor:
    """Attention of q [B, H, S, D] over k, v [B, H_kv, S, D]: rows [B, S, H * D]."""
    k, v = (_for_every_query_head(x, q.shape[1]) for x in (k, v))
    n = sees.num_causal
    parts = []
    if n:
        causal = torch.ones(1, n, n, dtype=torch.bool, device=q.device).tril()
        parts.append(_attend_where(q[:, :, :n], k[:, :, :n], v[:, :, :n], causal))
    if sees.rest is not None:
        parts.append(_attend_where(q[:, :, n:], k, v, sees.rest))
    return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)


def _attend_where(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Attention of rows that see what `sees` [B or 1, Q, S] says.

    Short rows on a CPU: whole score matrices are several times faster than PyTorch's fused
    attention, whose backward pass goes block by block.
    """
    hidden = torch.where(sees, 0.0, -1e4).to(q.dtype).unsqueeze(1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + hidden
    attended: Tensor = scores.softmax(dim=-1, dtype=q.dtype) @ v
    return attended


def _for_every_query_head(x: Tensor, num_heads: int) -> Tensor:
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Rows [B, S, H * D] as heads [B, H, S, D]."""
    return x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probability in nats of targets [...] under logits [..., V], float32."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), reduction="none"
    )
    return flat.view(targets.shape)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, 0 when none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
