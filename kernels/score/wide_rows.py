"""Rows that need all their logits on a GPU: top tokens, top-k, top-p and min-p.

A bounded number of full rows at a time, and no reading back from the device.

Shapes: F wide rows, r rows of a tile, V vocabulary entries.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.linear import Int8Weight, linear
from kernels.score.full_rows import cutoffs, draw_all, row_keys
from kernels.score.partials import NEVER
from kernels.score.spec import AllowedTokens, RowScores, ScoreSpec, SparseAdjust


def with_wide_rows(
    scores: RowScores,
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    tile_rows: int,
) -> RowScores:
    """The scores with drawn tokens and top lists of wide rows, tile_rows of them at a time."""
    index = spec.wide_rows
    if index is None:
        index = torch.arange(hidden.shape[0], device=hidden.device)
    token, probability = scores.token.clone(), scores.probability.clone()
    top_shape = (hidden.shape[0], spec.num_top)
    top_ids = torch.zeros(top_shape, dtype=torch.int64, device=hidden.device)
    top_logprobs = torch.full(top_shape, float("-inf"), device=hidden.device)
    for rows in index.split(tile_rows):
        logits = linear(hidden[rows], head_weight, head_bias).float()
        adjust_rows(logits, rows, spec)
        log_sum_exp = scores.log_sum_exp[rows, None]
        if spec.num_top:
            top = logits.topk(spec.num_top, dim=1)
            top_ids[rows] = top.indices
            logprobs = top.values - log_sum_exp
            top_logprobs[rows] = logprobs.masked_fill(top.values <= NEVER / 2, float("-inf"))
        if spec.filters:
            drawn = _draw(logits, rows, spec, scores.argmax[rows])
            token[rows] = drawn[:, 0]
            probability[rows] = (logits.gather(1, drawn) - log_sum_exp).exp()[:, 0]
    return replace(
        scores,
        token=token,
        probability=probability,
        top_ids=top_ids if spec.num_top else None,
        top_logprobs=top_logprobs if spec.num_top else None,
    )


def _draw(logits: Tensor, rows: Tensor, spec: ScoreSpec, argmax: Tensor) -> Tensor:
    """Drawn tokens [r, 1]."""
    temperature = spec.temperature[rows, None]
    tempered = logits / torch.where(temperature > 0, temperature, 1.0)
    ordered = tempered.sort(dim=1, descending=True).values
    cutoff = cutoffs(ordered, tempered.logsumexp(1, keepdim=True), rows, spec)
    kept = tempered.masked_fill(tempered < cutoff, NEVER)
    return torch.where(temperature > 0, draw_all(kept, row_keys(spec, rows)), argmax[:, None])


def adjust_rows(logits: Tensor, rows: Tensor, spec: ScoreSpec) -> None:
    """Change logits [r, V] of the rows [r] int64 of a spec in place: penalties, bias, bans."""
    if spec.adjust is not None:
        _adjust_sparsely_(logits, rows, spec.adjust)
        logits.clamp_min_(NEVER)
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
