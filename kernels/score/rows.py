"""The output head fused with all that decoding asks of its logits, which never reach memory whole.

Shapes: R rows, V vocabulary entries, d entries of the residual stream, r rows of a tile.
"""

import torch
from torch import Tensor

from kernels.dispatch import runs_triton
from kernels.linear import Int8Weight, linear
from kernels.noise import gumbel_noise
from kernels.score.finish import finish_scores
from kernels.score.full_rows import score_logits
from kernels.score.partials import (
    BEST,
    DRAWN,
    DRAWN_LOGIT,
    GIVEN_LOGIT,
    NEVER,
    NUM_NUMBERS,
    NUM_TOKENS,
    PEAK,
    SCORE,
    SECOND,
    TOTAL,
    WEIGHTED,
    ScorePartials,
)
from kernels.score.rows_kernel import launch_score_partials
from kernels.score.spec import RowScores, ScoreSpec, check_spec
from kernels.score.wide_rows import with_wide_rows

# A tile of logits is at most this large, whatever the number of rows.
TILE_BYTES = 16 * 2**20


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
    if not runs_triton(hidden):
        return _score_rows_cpu(hidden, head_weight, head_bias, spec)
    if hidden.shape[0] == 0:
        return _no_rows(spec, hidden.device)
    return _score_rows_gpu(hidden, head_weight, head_bias, spec)


def score_partials(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    vocab_start: int,
    full_vocab: int,
) -> ScorePartials:
    """What one rank's part of the head, tokens from vocab_start on, says of hidden [R, d].

    The spec speaks of all full_vocab tokens, but for the embedding, which is this rank's part.
    Partials of all ranks, joined by `join_partials`, give scores by `finish_scores`. Top lists,
    top-k, top-p and min-p are not in partials.

    Raises ValueError when the spec asks for them, or vocab_start is no multiple of 32.
    """
    check_spec(spec, hidden.shape[0], full_vocab)
    if vocab_start % 32:
        raise ValueError(f"vocab_start must be a multiple of 32, got {vocab_start}")
    if spec.filters or spec.num_top:
        raise ValueError("top lists, top-k, top-p and min-p need a head that is not split")
    place = {"vocab_start": vocab_start, "full_vocab": full_vocab}
    if runs_triton(hidden):
        return launch_score_partials(hidden, head_weight, head_bias, spec, **place)
    return score_partials_reference(hidden, head_weight, head_bias, spec, **place)


def _score_rows_gpu(
    hidden: Tensor, head_weight: Tensor | Int8Weight, head_bias: Tensor | None, spec: ScoreSpec
) -> RowScores:
    vocab = _vocab(head_weight)
    partials = launch_score_partials(
        hidden, head_weight, head_bias, spec, vocab_start=0, full_vocab=vocab
    )
    scores = finish_scores(partials, spec)
    if not (spec.filters or spec.num_top):
        return scores
    tile_rows = max(1, TILE_BYTES // (4 * vocab))
    return with_wide_rows(scores, hidden, head_weight, head_bias, spec, tile_rows=tile_rows)


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
    return _noisy_reference(tempered, row, spec).argmax()


def _noisy_reference(tempered: Tensor, row: int, spec: ScoreSpec) -> Tensor:
    own = slice(row, row + 1)
    tokens = torch.arange(len(tempered), device=tempered.device)
    noise = gumbel_noise(
        spec.seeds[own], spec.positions[own], spec.purposes[own], spec.attempts[own], tokens
    )
    return tempered + noise[0]


def score_partials_reference(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    vocab_start: int,
    full_vocab: int,
) -> ScorePartials:
    """Define partials with full logits in float32, one partial, one row at a time."""
    own = linear(hidden, head_weight, head_bias).float()
    place = slice(vocab_start, vocab_start + own.shape[1])
    numbers = torch.full((NUM_NUMBERS, 1, hidden.shape[0]), NEVER, device=hidden.device)
    tokens = torch.zeros((NUM_TOKENS, 1, hidden.shape[0]), dtype=torch.int32, device=hidden.device)
    expected = []
    for row in range(hidden.shape[0]):
        # Tokens of other ranks are forbidden ones here.
        logits = torch.full((full_vocab,), float("-inf"), device=hidden.device)
        logits[place] = own[row]
        logits = _adjusted_reference(logits, row, spec).clamp_min(NEVER)
        ordered = logits.sort(descending=True, stable=True)
        masses = (logits - ordered.values[0]).exp() * (logits > NEVER / 2)
        noisy = _noisy_reference(logits / spec.temperature[row].clamp_min(1e-9), row, spec)
        drawn = noisy.masked_fill(logits <= NEVER / 2, NEVER).max(0)
        numbers[PEAK, 0, row] = ordered.values[0]
        numbers[TOTAL, 0, row] = masses.sum()
        numbers[WEIGHTED, 0, row] = (masses * (logits - ordered.values[0])).sum()
        numbers[SECOND, 0, row] = ordered.values[1] if full_vocab > 1 else NEVER
        numbers[SCORE, 0, row] = drawn.values
        numbers[DRAWN_LOGIT, 0, row] = logits[drawn.indices]
        if spec.given is not None:
            numbers[GIVEN_LOGIT, 0, row] = logits[spec.given[row]]
        tokens[BEST, 0, row], tokens[DRAWN, 0, row] = ordered.indices[0], drawn.indices
        if spec.embedding is not None:
            expected.append(masses[place] @ spec.embedding.float())
    return ScorePartials(numbers, tokens, torch.stack(expected)[None] if expected else None)


def _score_rows_cpu(
    hidden: Tensor, head_weight: Tensor | Int8Weight, head_bias: Tensor | None, spec: ScoreSpec
) -> RowScores:
    """Full rows of a bounded number at a time: a CPU gains nothing from vocabulary tiles."""
    tile_rows = max(1, TILE_BYTES // (4 * _vocab(head_weight)))
    tiles = []
    for start in range(0, hidden.shape[0], tile_rows):
        rows = slice(start, min(start + tile_rows, hidden.shape[0]))
        logits = linear(hidden[rows], head_weight, head_bias).float()
        tiles.append(score_logits(logits, rows, spec))
    if not tiles:
        return _no_rows(spec, hidden.device)
    return tiles[0] if len(tiles) == 1 else _join(tiles)


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
