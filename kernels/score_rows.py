"""The output head fused with all that decoding asks of its logits, which never reach memory whole.

Shapes: R rows, V vocabulary entries, d entries of the residual stream, r rows of a tile.
"""

import torch
from torch import Tensor

from kernels.linear import Int8Weight, linear
from kernels.noise import gumbel_noise, log_exponential_from_keys, noise_keys
from kernels.score_spec import AllowedTokens, RowScores, ScoreSpec, SparseAdjust, check_spec

# A tile of logits is at most this large, whatever the number of rows.
TILE_BYTES = 16 * 2**20
# Rows drawn at a time, so that their noise stays in the cache, and candidates that filters look at.
_DRAW_ROWS = 8
_CANDIDATES = 512
# Stands for minus infinity: its exponential is zero and its product with zero is not NaN.
_NEVER = -1e30


def score_rows(
    hidden: Tensor, head_weight: Tensor | Int8Weight, head_bias: Tensor | None, spec: ScoreSpec
) -> RowScores:
    """Score hidden [R, d] against the head [V, d] (and bias [V]) as the spec says.

    A token is kept by top-k when fewer than k are likelier; of those, by top-p when the likelier
    ones hold less than p of the mass; of those, by min-p when it has at least min_p times the
    probability of the best. Ties are kept together. All three see the tempered distribution.

    Raises ValueError when shapes do not fit or num_top is above 64.
    """
    vocab = _vocab(head_weight)
    check_spec(spec, hidden.shape[0], vocab)
    return _score_rows_cpu(hidden, head_weight, head_bias, spec)


def _vocab(head_weight: Tensor | Int8Weight) -> int:
    return head_weight.shape[0] if isinstance(head_weight, Tensor) else head_weight.out_features


def score_rows_reference(
    hidden: Tensor, head_weight: Tensor | Int8Weight, head_bias: Tensor | None, spec: ScoreSpec
) -> RowScores:
    """Define the operation with full logits in float32, one row at a time."""
    logits = linear(hidden, head_weight, head_bias).float()
    rows = [_score_row_reference(logits[row], row, spec) for row in range(logits.shape[0])]
    return _join(rows) if rows else _no_rows(spec, hidden.device)


def _score_row_reference(logits: Tensor, row: int, spec: ScoreSpec) -> RowScores:
    logits = _adjusted_reference(logits, row, spec)
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    best = logits.sort(descending=True, stable=True)
    token = _draw_reference(logits, row, spec)
    p2 = probs[best.indices[1]] if len(logits) > 1 else torch.zeros_like(probs[0])
    return RowScores(
        token=token[None],
        probability=probs[token][None],
        argmax=best.indices[:1],
        p1=probs[best.indices[:1]],
        p2=p2[None],
        log_sum_exp=logits.logsumexp(-1)[None],
        entropy=-torch.where(probs > 0, probs * logprobs, 0.0).sum()[None],
        given_logprob=None if spec.given is None else logprobs[spec.given[row]][None],
        top_ids=best.indices[None, : spec.num_top] if spec.num_top else None,
        top_logprobs=logprobs[best.indices[: spec.num_top]][None] if spec.num_top else None,
        expected_embedding=(
            None if spec.embedding is None else (probs @ spec.embedding.float())[None]
        ),
    )


def _adjusted_reference(logits: Tensor, row: int, spec: ScoreSpec) -> Tensor:
    logits = logits.clone()
    if spec.adjust is not None:
        starts = spec.adjust.row_starts.tolist()
        for entry in range(starts[row], starts[row + 1]):
            token, penalty = int(spec.adjust.token_ids[entry]), spec.adjust.penalties[entry]
            logit = logits[token]
            logit = logit / penalty if logit > 0 else logit * penalty
            logits[token] = logit + spec.adjust.values[entry]
    if spec.allowed is not None and spec.allowed.rows[row] >= 0:
        words = spec.allowed.bitmask[spec.allowed.rows[row].long()].tolist()
        for token in range(len(logits)):
            if not (words[token // 32] >> (token % 32)) & 1:
                logits[token] = float("-inf")
    logits[list(spec.suppressed)] = float("-inf")
    return logits


def _draw_reference(logits: Tensor, row: int, spec: ScoreSpec) -> Tensor:
    temperature = float(spec.temperature[row])
    if temperature == 0:
        return logits.argmax()
    tempered = logits / temperature
    if spec.top_k is not None and 0 < spec.top_k[row] < len(logits):
        kth = tempered.sort(descending=True).values[int(spec.top_k[row]) - 1]
        tempered = tempered.masked_fill(tempered < kth, float("-inf"))
    if spec.top_p is not None and spec.top_p[row] < 1:
        probs = tempered.softmax(-1)
        likelier = torch.stack([probs[probs > prob].sum() for prob in probs])
        tempered = tempered.masked_fill(likelier >= spec.top_p[row], float("-inf"))
    if spec.min_p is not None and spec.min_p[row] > 0:
        probs = tempered.softmax(-1)
        tempered = tempered.masked_fill(probs < spec.min_p[row] * probs.max(), float("-inf"))
    own = slice(row, row + 1)
    tokens = torch.arange(len(logits), device=logits.device)
    noise = gumbel_noise(
        spec.seeds[own], spec.positions[own], spec.purposes[own], spec.attempts[own], tokens
    )
    return (tempered + noise[0]).argmax()


def _score_rows_cpu(
    hidden: Tensor, head_weight: Tensor | Int8Weight, head_bias: Tensor | None, spec: ScoreSpec
) -> RowScores:
    """Full rows of a bounded number at a time: a CPU gains nothing from vocabulary tiles."""
    tile_rows = max(1, TILE_BYTES // (4 * _vocab(head_weight)))
    tiles = []
    for start in range(0, hidden.shape[0], tile_rows):
        rows = slice(start, min(start + tile_rows, hidden.shape[0]))
        logits = linear(hidden[rows], head_weight, head_bias).float()
        tiles.append(_score_logits(logits, rows, spec))
    if not tiles:
        return _no_rows(spec, hidden.device)
    return tiles[0] if len(tiles) == 1 else _join(tiles)


def _score_logits(logits: Tensor, rows: slice, spec: ScoreSpec) -> RowScores:
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
    return logprobs.masked_fill_(logits <= _NEVER / 2, float("-inf"))


def _adjust_(logits: Tensor, rows: slice, spec: ScoreSpec) -> None:
    if spec.adjust is not None:
        _adjust_sparsely_(logits, rows, spec.adjust)
    # A bias of minus infinity, or a head that says so, must not meet a zero mass.
    if spec.adjust is not None:
        logits.clamp_min_(_NEVER)
    if spec.allowed is not None:
        _forbid_(logits, rows, spec.allowed)
    if spec.suppressed:
        logits[:, list(spec.suppressed)] = _NEVER


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
    logits[masked] = logits[masked].masked_fill_(forbidden, _NEVER)


def _draw(logits: Tensor, rows: slice, spec: ScoreSpec, argmax: Tensor) -> Tensor:
    """Drawn tokens [r, 1]; rows of temperature 0 cost nothing."""
    temperature = spec.temperature[rows]
    sampled = temperature.nonzero()[:, 0]
    if sampled.numel() == 0:
        return argmax
    filtered = _asks_filter(spec, rows)[sampled] if spec.filters else None
    token = argmax.clone()
    for block in (
        sampled.split(_DRAW_ROWS) if filtered is None else sampled[~filtered].split(_DRAW_ROWS)
    ):
        tempered = logits[block] / temperature[block, None]
        token[block] = _draw_all(tempered, _keys(spec, block + rows.start))
    if filtered is not None:
        for block in sampled[filtered].split(_DRAW_ROWS):
            tempered = logits[block] / temperature[block, None]
            token[block] = _draw_filtered(tempered, block + rows.start, spec)
    return token


def _keys(spec: ScoreSpec, index: Tensor) -> Tensor:
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


def _draw_all(tempered: Tensor, keys: Tensor) -> Tensor:
    """Tokens [r, 1] drawn from tempered logits [r, V], which are used up."""
    tokens = torch.arange(tempered.shape[1], dtype=torch.int32)
    # `max` finds the index three times faster than `argmax`.
    return tempered.sub_(log_exponential_from_keys(keys, tokens)).max(1, True).indices


def _draw_filtered(tempered: Tensor, index: Tensor, spec: ScoreSpec) -> Tensor:
    """Tokens [r, 1] drawn from what the filters keep; `index` are the rows' places in the spec.

    The likeliest few hundred tokens nearly always hold all that is kept; other rows are sorted.
    """
    keys = _keys(spec, index)
    best = tempered.topk(min(_CANDIDATES, tempered.shape[1]), dim=1)
    cutoff = _cutoffs(best.values, tempered.logsumexp(1, True), index, spec)
    kept = best.values.masked_fill(best.values < cutoff, _NEVER)
    place = kept.sub_(log_exponential_from_keys(keys, best.indices)).max(1, True).indices
    token = best.indices.gather(1, place)
    if best.values.shape[1] < tempered.shape[1]:
        # A cutoff at the last candidate, or below it, may keep tokens that are no candidates.
        short = (cutoff <= best.values[:, -1:]).nonzero()[:, 0]
        if short.numel():
            rows = tempered[short]
            ordered = rows.sort(dim=1, descending=True).values
            cutoff = _cutoffs(ordered, rows.logsumexp(1, True), index[short], spec)
            token[short] = _draw_all(rows.masked_fill_(rows < cutoff, _NEVER), keys[short])
    return token


def _cutoffs(ordered: Tensor, log_sum_exp: Tensor, index: Tensor, spec: ScoreSpec) -> Tensor:
    """Smallest logit [r, 1] that each row keeps, of its best [r, N] in falling order.

    A row that keeps more than N gets its N-th or a smaller one. log_sum_exp [r, 1] is over all.
    """
    cutoff = torch.full_like(log_sum_exp, _NEVER / 2)
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


def _join(tiles: list[RowScores]) -> RowScores:
    return RowScores(
        token=torch.cat([tile.token for tile in tiles]),
        probability=torch.cat([tile.probability for tile in tiles]),
        argmax=torch.cat([tile.argmax for tile in tiles]),
        p1=torch.cat([tile.p1 for tile in tiles]),
        p2=torch.cat([tile.p2 for tile in tiles]),
        log_sum_exp=torch.cat([tile.log_sum_exp for tile in tiles]),
        entropy=torch.cat([tile.entropy for tile in tiles]),
        given_logprob=_join_optional([tile.given_logprob for tile in tiles]),
        top_ids=_join_optional([tile.top_ids for tile in tiles]),
        top_logprobs=_join_optional([tile.top_logprobs for tile in tiles]),
        expected_embedding=_join_optional([tile.expected_embedding for tile in tiles]),
    )


def _join_optional(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _no_rows(spec: ScoreSpec, device: torch.device) -> RowScores:
    numbers = torch.zeros(0, device=device)
    tokens = torch.zeros(0, dtype=torch.int64, device=device)
    width = None if spec.embedding is None else spec.embedding.shape[1]
    return RowScores(
        token=tokens,
        probability=numbers,
        argmax=tokens,
        p1=numbers,
        p2=numbers,
        log_sum_exp=numbers,
        entropy=numbers,
        given_logprob=None if spec.given is None else numbers,
        top_ids=tokens.view(0, spec.num_top) if spec.num_top else None,
        top_logprobs=numbers.view(0, spec.num_top) if spec.num_top else None,
        expected_embedding=None if width is None else numbers.view(0, width),
    )
