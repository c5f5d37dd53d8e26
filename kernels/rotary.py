"""Rotary position embedding as tables: scaled variants differ in the numbers only.

Shapes: P positions of the table, T rows, rotary_dim the leading part of a head that turns.
From: Su et al. 2021, RoFormer, section 3.2; arXiv 2104.09864.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Angles of every position.

    cos, sin:    [P, rotary_dim / 2] float32
    interleaved: pairs are (0, 1), (2, 3), ... instead of (i, i + rotary_dim / 2)
    query_scale: [P] float32, multiplies queries after the rotation, or None
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    query_scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RotaryRows:
    """Angles of a step's rows, gathered once and used by every layer.

    A head turns by `x * cos + partner(x) * sin`, where the partner of an entry is the other one
    of its pair and the sign of the rotation is already in `sin`.

    cos, sin:    [T, 1, rotary_dim] float32
    interleaved: as in `RotaryTable`
    query_scale: [T, 1, 1] float32 or None
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    query_scale: Tensor | None

    @property
    def rotary_dim(self) -> int:
        """How many leading entries of a head turn."""
        return self.cos.shape[2]


def rotary_rows(table: RotaryTable, positions: Tensor) -> RotaryRows:
    """Gather the angles of rows at positions [T] int64, each below P."""
    cos, sin = table.cos[positions], table.sin[positions]  # [T, rotary_dim / 2]
    if table.interleaved:
        cos = cos.repeat_interleave(2, dim=1)
        sin = torch.stack((-sin, sin), dim=2).flatten(1)
    else:
        cos = torch.cat((cos, cos), dim=1)
        sin = torch.cat((-sin, sin), dim=1)
    scale = None if table.query_scale is None else table.query_scale[positions][:, None, None]
    return RotaryRows(cos[:, None], sin[:, None], table.interleaved, scale)


def rotate_reference(x: Tensor, rotary: RotaryRows) -> Tensor:
    """Define the rotation of heads x [T, H, D], one pair at a time, in float32."""
    dim = rotary.rotary_dim
    turned = x.float().clone()
    for pair in range(dim // 2):
        first, second = (2 * pair, 2 * pair + 1) if rotary.interleaved else (pair, pair + dim // 2)
        cos, sin = rotary.cos[:, :, first], rotary.sin[:, :, second]
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned.to(x.dtype)


def rotate(x: Tensor, rotary: RotaryRows) -> Tensor:
    """Turned heads of x [T, H, D] float in as few PyTorch calls as it takes: the CPU path."""
    dim = rotary.rotary_dim
    turning = x if dim == x.shape[2] else x[..., :dim]
    if rotary.interleaved:
        partner = turning.unflatten(2, (-1, 2)).flip(3).flatten(2)
    else:
        partner = turning.roll(dim // 2, 2)
    turned = torch.addcmul(turning * rotary.cos, partner, rotary.sin).to(x.dtype)
    return turned if turning is x else torch.cat((turned, x[..., dim:]), dim=2)
