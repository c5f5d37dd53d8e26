"""Proposals kept with probability min(1, p / q), and what is drawn where one is refused.

Both distributions are needed in full, so both heads' rows exist for a bounded number of rows at a
time; everything else of a row is scored by `score_rows`.

Shapes: R scored rows, C of them that verify, r of a tile, d entries of the stream, V vocabulary.
From: Leviathan et al. 2023, Fast inference from transformers via speculative decoding, algorithm 1;
arXiv 2211.17192.
"""

import torch
from torch import Tensor

from kernels.accept_rows import residual_draw, verify_ratio
from kernels.linear import Int8Weight, linear
from kernels.noise import PURPOSE_CHOICE, gumbel_from_keys, uniform_noise
from kernels.score.full_rows import cutoffs, row_keys
from kernels.score.partials import NEVER
from kernels.score.spec import ScoreSpec
from kernels.score.wide_rows import adjust_rows

# Of full rows that exist at the same time: two distributions, their filters and the noise.
TILE_BYTES = 16 * 2**20
_COPIES = 4


def ratio_rows(
    hidden: Tensor,
    drafted: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    rows: Tensor,
    proposed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Verify a proposal in each of the given rows: tokens [C] int64, probabilities [C] float32.

    hidden:   [R, d], what the spec's rows say
    drafted:  [C, d], the rows that the proposals were drawn from, by the same head, at the spec's
              temperature and with its top-k, top-p and min-p, and nothing else
    rows:     [C] int64, which of the R rows verify
    proposed: [C] int64

    A token is the proposal where it is kept, and else drawn from max(0, p - q), normalised, where
    p is the distribution that the spec's row draws from: whatever was proposed, it is distributed
    as p. A probability is the token's own in p before temperature and filters, as in `RowScores`.
    Whether a proposal is kept depends on noise of (seed, position) only, as what is drawn does.
    """
    vocab = head_weight.shape[0] if isinstance(head_weight, Tensor) else head_weight.out_features
    tile = max(1, TILE_BYTES // (4 * _COPIES * vocab))
    parts = [
        _ratio_tile(
            linear(hidden[rows[start : start + tile]], head_weight, head_bias).float(),
            linear(drafted[start : start + tile], head_weight, head_bias).float(),
            rows[start : start + tile],
            proposed[start : start + tile],
            spec,
        )
        for start in range(0, rows.shape[0], tile)
    ]
    if not parts:
        return proposed[:0], torch.zeros(0, device=hidden.device)
    return torch.cat([token for token, _ in parts]), torch.cat([prob for _, prob in parts])


def _ratio_tile(
    logits: Tensor, draft_logits: Tensor, rows: Tensor, proposed: Tensor, spec: ScoreSpec
) -> tuple[Tensor, Tensor]:
    """Tokens and probabilities [r] of a tile; both logits [r, V] are used up."""
    adjust_rows(logits, rows, spec)
    for token_id in spec.suppressed:
        draft_logits[:, token_id] = NEVER
    log_sum_exp = logits.logsumexp(1)
    target, draft = (_kept(one, rows, spec) for one in (logits, draft_logits))
    own = proposed[:, None]
    own_target = target.softmax(1).gather(1, own)
    # A proposal that cannot be drawn is refused even where its q has become zero by rounding.
    kept = verify_ratio(
        own_target, draft.softmax(1).gather(1, own), _choices(rows, spec), own_target > 0
    )[:, 0]
    ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    other = residual_draw(target, draft, gumbel_from_keys(row_keys(spec, rows), ids))
    token = torch.where(kept, proposed, other)
    # Greedy rows have one token each: the proposal is it, or is replaced by it.
    token = torch.where(spec.temperature[rows] > 0, token, logits.argmax(1))
    chosen = logits.gather(1, token[:, None])[:, 0]
    return token, (chosen - log_sum_exp).exp()


def _kept(logits: Tensor, rows: Tensor, spec: ScoreSpec) -> Tensor:
    """The tempered logits [r, V] that a row draws from: without what the filters drop."""
    temperature = spec.temperature[rows, None]
    tempered = logits / torch.where(temperature > 0, temperature, 1.0)
    if not spec.filters:
        return tempered
    ordered = tempered.sort(dim=1, descending=True).values
    cutoff = cutoffs(ordered, tempered.logsumexp(1, keepdim=True), rows, spec)
    return tempered.masked_fill(tempered < cutoff, NEVER)


def _choices(rows: Tensor, spec: ScoreSpec) -> Tensor:
    """Uniform numbers [r, 1], a function of seed and position."""
    zeros = torch.zeros_like(spec.attempts[rows])
    return uniform_noise(
        spec.seeds[rows],
        spec.positions[rows],
        torch.full_like(zeros, PURPOSE_CHOICE),
        zeros,
        torch.zeros(1, dtype=torch.int32, device=rows.device),
    )
