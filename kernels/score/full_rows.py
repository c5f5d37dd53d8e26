"""Scores of rows whose logits exist: a bounded number of full rows at a time, on a CPU.

Shapes: r rows of a tile, V vocabulary entries.
"""

import torch
from torch import Tensor

from kernels.noise import log_exponential_from_keys, noise_keys
from kernels.score.partials import NEVER
from kernels.score.spec import AllowedTokens, RowScores, ScoreSpec, SparseAdjust

# Rows drawn at a time, so that their noise stays in the cache, and candidates that filters look at.
_DRAW_ROWS = 8
_CANDIDATES = 512


def score_logits(logits: Tensor, rows: slice, spec: ScoreSpec) -> RowScores:
    """Scores of a tile; the logits [r, V] are used up."""
    _adjust_(logits, rows, spec)
    peak, argmax = logits.max(dim=1, keepdim=True)
    token = _draw(logits, rows, spec, argmax)
    given = None if spec.given is None else spec.given[rows, None]
    token_logit = logits.gather(1, token)
    given_logit = None if given is None else logits.gather(1, given)
    top = logits.topk(spec.num_top, dim=1) if spec.num_top else None
    gaps = logits.sub_(peak)
    masses = gaps.exp()
    total = masses.sum(1)
    # Expected gap below the peak; disallowed tokens contribute -1e30 * 0.
    mean_gap = torch.linalg.vecdot(gaps, masses).div_(total)
    expected = None
    if spec.embedding is not None:
        expected = (masses @ spec.embedding.float()).div_(total[:, None])
    log_total = total.log()
    log_sum_exp = log_total + peak[:, 0]
    p2 = masses.scatter_(1, argmax, 0.0).amax(1).div_(total)
    return RowScores(
        token=token[:, 0],
        probability=(token_logit[:, 0] - log_sum_exp).exp_(),
        argmax=argmax[:, 0],
        p1=total.reciprocal(),
        p2=p2,
        log_sum_exp=log_sum_exp,
        entropy=log_total - mean_gap,
        given_logprob=None if given_logit is None else _logprobs(given_logit, log_sum_exp)[:, 0],
        top_ids=None if top is None else top.indices,
        top_logprobs=None if top is None else _logprobs(top.values, log_sum_exp),
        expected_embedding=expected,
    )


def _logprobs(logits: Tensor, log_sum_exp: Tensor) -> Tensor:
    logprobs = logits - log_sum_exp[:, None]
    return logprobs.masked_fill_(logits <= NEVER / 2, float("-inf"))


def _adjust_(logits: Tensor, rows: slice, spec: ScoreSpec) -> None:
    if spec.adjust is not None:
        _adjust_sparsely_(logits, rows, spec.adjust)
        # A bias of minus infinity must not meet a zero mass.
        logits.clamp_min_(NEVER)
    if spec.allowed is not None:
        _forbid_(logits, rows, spec.allowed)
    if spec.suppressed:
        logits[:, list(spec.suppressed)] = NEVER


def _adjust_sparsely_(logits: Tensor, rows: slice, adjust: SparseAdjust) -> None:
    starts = adjust.row_starts[rows.start : rows.stop + 1].long()
    first, stop = int(starts[0]), int(starts[-1])
    if first == stop:
        return
    row = torch.repeat_interleave(starts.diff())
    token = adjust.token_ids[first:stop].long()
    penalty = adjust.penalties[first:stop]
    old = logits[row, token]
    new = torch.where(old > 0, old / penalty, old * penalty) + adjust.values[first:stop]
    logits[row, token] = new


def _forbid_(logits: Tensor, rows: slice, allowed: AllowedTokens) -> None:
    masked = (allowed.rows[rows] >= 0).nonzero()[:, 0]
    if masked.numel() == 0:
        return
    words = allowed.bitmask[allowed.rows[rows][masked].long()]
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits[masked] = logits[masked].masked_fill_(forbidden, NEVER)


def _draw(logits: Tensor, rows: slice, spec: ScoreSpec, argmax: Tensor) -> Tensor:
    """Drawn tokens [r, 1]; rows of temperature 0 cost nothing."""
    temperature = spec.temperature[rows]
    sampled = temperature.nonzero()[:, 0]
    if sampled.numel() == 0:
        return argmax
    filtered = _asks_filter(spec, rows)[sampled] if spec.filters else None
    token = argmax.clone()
    free = sampled if filtered is None else sampled[~filtered]
    for block in free.split(_DRAW_ROWS):
        tempered = logits[block] / temperature[block, None]
        token[block] = draw_all(tempered, row_keys(spec, block + rows.start))
    if filtered is not None:
        for block in sampled[filtered].split(_DRAW_ROWS):
            tempered = logits[block] / temperature[block, None]
            token[block] = _draw_filtered(tempered, block + rows.start, spec)
    return token


def row_keys(spec: ScoreSpec, index: Tensor) -> Tensor:
    """Noise keys [r, 2] of the rows at index [r] of the spec."""
    return noise_keys(
        spec.seeds[index], spec.positions[index], spec.purposes[index], spec.attempts[index]
    )


def _asks_filter(spec: ScoreSpec, rows: slice) -> Tensor:
    """[r] bool: whether top-k, top-p or min-p is on for the row."""
    asks = torch.zeros(rows.stop - rows.start, dtype=torch.bool)
    if spec.top_k is not None:
        asks |= spec.top_k[rows] > 0
    if spec.top_p is not None:
        asks |= spec.top_p[rows] < 1
    if spec.min_p is not None:
        asks |= spec.min_p[rows] > 0
    return asks


def draw_all(tempered: Tensor, keys: Tensor) -> Tensor:
    """Tokens [r, 1] drawn from tempered logits [r, V], which are used up."""
    tokens = torch.arange(tempered.shape[1], dtype=torch.int32, device=tempered.device)
    # `max` finds the index three times faster than `argmax`.
    return tempered.sub_(log_exponential_from_keys(keys, tokens)).max(1, True).indices


def _draw_filtered(tempered: Tensor, index: Tensor, spec: ScoreSpec) -> Tensor:
    """Tokens [r, 1] drawn from what the filters keep; `index` are the rows' places in the spec.

    The likeliest few hundred tokens nearly always hold all that is kept; other rows are sorted.
    """
    keys = row_keys(spec, index)
    best = tempered.topk(min(_CANDIDATES, tempered.shape[1]), dim=1)
    cutoff = cutoffs(best.values, tempered.logsumexp(1, True), index, spec)
    kept = best.values.masked_fill(best.values < cutoff, NEVER)
    place = kept.sub_(log_exponential_from_keys(keys, best.indices)).max(1, True).indices
    token = best.indices.gather(1, place)
    if best.values.shape[1] < tempered.shape[1]:
        # A cutoff at the last candidate, or below it, may keep tokens that are no candidates.
        short = (cutoff <= best.values[:, -1:]).nonzero()[:, 0]
        if short.numel():
            rows = tempered[short]
            ordered = rows.sort(dim=1, descending=True).values
            cutoff = cutoffs(ordered, rows.logsumexp(1, True), index[short], spec)
            token[short] = draw_all(rows.masked_fill_(rows < cutoff, NEVER), keys[short])
    return token


def cutoffs(ordered: Tensor, log_sum_exp: Tensor, index: Tensor, spec: ScoreSpec) -> Tensor:
    """Smallest logit [r, 1] that each row keeps, of its best [r, N] in falling order.

    A row that keeps more than N gets its N-th or a smaller one. log_sum_exp [r, 1] is over all.
    """
    cutoff = torch.full_like(log_sum_exp, NEVER / 2)
    number = ordered.shape[1]
    if spec.top_k is not None:
        top_k = spec.top_k[index].long()[:, None]
        kth = ordered.gather(1, top_k.clamp(1, number) - 1)
        cutoff = torch.where(top_k > 0, kth, cutoff)
        # What top-p sees is normalised over what top-k keeps, unless that is more than N.
        kept = ordered.masked_fill(ordered < cutoff, float("-inf")).logsumexp(1, True)
        log_sum_exp = torch.where((top_k > 0) & (top_k < number), kept, log_sum_exp)
    if spec.top_p is not None:
        top_p = spec.top_p[index, None]
        likelier = (ordered - log_sum_exp).exp_().cumsum(1).roll(1, 1)
        likelier[:, 0] = 0
        # Mass before a run of ties decides for the whole run: its first is kept or none is.
        last = (likelier < top_p).sum(1, keepdim=True) - 1
        cutoff = torch.where(top_p < 1, torch.maximum(cutoff, ordered.gather(1, last)), cutoff)
    if spec.min_p is not None:
        near = ordered[:, :1] + spec.min_p[index, None].log()
        cutoff = torch.maximum(cutoff, near)
    return cutoff
