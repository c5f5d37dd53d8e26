"""Penalties, bias and bans on full logits in PyTorch, without reading back from the device.

Shapes: r rows of a tile, V vocabulary entries.
"""

import torch
from torch import Tensor

from kernels.score.partials import NEVER
from kernels.score.spec import AllowedTokens, ScoreSpec, SparseAdjust


def adjust_rows(logits: Tensor, rows: Tensor, spec: ScoreSpec) -> None:
    """Change logits [r, V] of the rows [r] int64 of a spec in place: penalties, bias, bans."""
    if spec.adjust is not None:
        _adjust_sparsely_(logits, rows, spec.adjust)
        logits.clamp_(NEVER, -NEVER)
    if spec.allowed is not None:
        _forbid_(logits, rows, spec.allowed)
    for token_id in spec.suppressed:
        logits[:, token_id] = NEVER


def _adjust_sparsely_(logits: Tensor, rows: Tensor, adjust: SparseAdjust) -> None:
    """Entries of rows that are not in the tile go to a spare row behind it."""
    place = torch.full_like(adjust.row_starts[:-1], len(rows), dtype=torch.int64)
    place[rows] = torch.arange(len(rows), device=rows.device)
    row, token = place[adjusted_rows(adjust)], adjust.token_ids.long()
    spare = torch.cat((logits, torch.zeros_like(logits[:1])))
    old = spare[row, token]
    new = torch.where(old > 0, old / adjust.penalties, old * adjust.penalties) + adjust.values
    spare[row, token] = new
    logits.copy_(spare[:-1])


def adjusted_rows(adjust: SparseAdjust) -> Tensor:
    """The row [B] int64 of every adjusted entry."""
    entries = torch.arange(adjust.token_ids.shape[0], device=adjust.token_ids.device)
    starts = adjust.row_starts.to(entries.dtype)
    return torch.searchsorted(starts, entries, right=True) - 1


def _forbid_(logits: Tensor, rows: Tensor, allowed: AllowedTokens) -> None:
    index = allowed.rows[rows].long()
    words = allowed.bitmask[index.clamp_min(0)]  # [r, W]
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    bits = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_((bits == 0) & (index >= 0)[:, None], NEVER)
