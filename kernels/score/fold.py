"""A tile of logits folded into a few numbers per row, for the kernels of `score_rows`.

Shapes: r rows and v vocabulary entries of a tile.
"""

import triton
import triton.language as tl

from kernels.noise import (
    HASH_MULTIPLIER_1,
    HASH_MULTIPLIER_2,
    UNIFORM_OFFSET,
    UNIFORM_SCALE,
)
from kernels.score.partials import NEVER

_HASH_1 = tl.constexpr(HASH_MULTIPLIER_1)
_HASH_2 = tl.constexpr(HASH_MULTIPLIER_2)
_SCALE = tl.constexpr(UNIFORM_SCALE)
_OFFSET = tl.constexpr(UNIFORM_OFFSET)
NO_LOGIT = tl.constexpr(NEVER)
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def suppress(logits, token_ids, suppressed_ptr, num_suppressed):  # noqa: ANN201
    """The logits [r, v] without those of tokens that are never drawn."""
    for index in range(num_suppressed):
        logits = tl.where(token_ids == tl.load(suppressed_ptr + index), NO_LOGIT, logits)
    return logits


@triton.jit
def fold(  # noqa: ANN201
    logits,  # [r, v]
    token_ids,  # [1, v]
    rows,
    row_mask,
    temperature_ptr,
    keys_ptr,
    given_ptr,
    peak,
    total,
    weighted,
    second,
    best,
    score,
    drawn,
    drawn_logit,
    given_logit,
    ASCENDING: tl.constexpr,
):
    """The statistics of all logits seen so far, [r] each, and this tile's masses [r, v]."""
    tile_peak, tile_best = _best(logits, token_ids, ASCENDING)
    others = tl.where(token_ids == tile_best[:, None], NO_LOGIT, logits)
    second = tl.maximum(second, tl.max(others, axis=1))
    second = tl.maximum(second, tl.minimum(peak, tile_peak))
    lower = tl.where(tile_peak == peak, tl.minimum(best, tile_best), best)
    best = tl.where(tile_peak > peak, tile_best, lower)
    new_peak = tl.maximum(peak, tile_peak)
    gaps = logits - new_peak[:, None]
    masses = tl.where(logits > NO_LOGIT / 2, tl.exp(gaps), 0.0)
    shift = peak - new_peak
    shrink = tl.exp(shift)
    weighted = (weighted + shift * total) * shrink + tl.sum(gaps * masses, axis=1)
    total = total * shrink + tl.sum(masses, axis=1)

    given = tl.load(given_ptr + rows, mask=row_mask, other=-1).to(tl.int32)
    found = tl.max(tl.where(token_ids == given[:, None], logits, NO_LOGIT), axis=1)
    given_logit = tl.maximum(given_logit, found)

    temperature = tl.load(temperature_ptr + rows, mask=row_mask, other=0.0)
    if tl.max(temperature, axis=0) > 0:
        tempered = logits / tl.where(temperature > 0, temperature, 1.0)[:, None]
        noisy = tempered - _log_exponential(keys_ptr, rows, row_mask, token_ids)
        noisy = tl.where(logits > NO_LOGIT / 2, noisy, NO_LOGIT)
        tile_score, tile_drawn = _best(noisy, token_ids, ASCENDING)
        is_drawn = token_ids == tile_drawn[:, None]
        tile_logit = tl.max(tl.where(is_drawn, logits, NO_LOGIT), axis=1)
        wins = tile_score > score
        wins |= (tile_score == score) & (tile_drawn < drawn)
        score = tl.where(wins, tile_score, score)
        drawn = tl.where(wins, tile_drawn, drawn)
        drawn_logit = tl.where(wins, tile_logit, drawn_logit)
    return new_peak, total, weighted, second, best, score, drawn, drawn_logit, given_logit, masses


@triton.jit
def _best(numbers, token_ids, ASCENDING: tl.constexpr):
    """The largest number [r] of each row and its token, the lowest id of equals."""
    if ASCENDING:
        # Token ids [1, v] count up from the first: one pass that keeps nothing in registers.
        best, place = tl.max(numbers, axis=1, return_indices=True)
        token = place.to(tl.int32) + tl.min(tl.min(token_ids, axis=1), axis=0)
    else:
        best = tl.max(numbers, axis=1)
        token = tl.min(tl.where(numbers == best[:, None], token_ids, NO_TOKEN), axis=1)
    return best, token


@triton.jit
def _log_exponential(keys_ptr, rows, row_mask, token_ids):
    """The same numbers as `noise.log_exponential_from_keys`, [r, v]."""
    low = tl.load(keys_ptr + 2 * rows, mask=row_mask, other=0)[:, None]
    high = tl.load(keys_ptr + 2 * rows + 1, mask=row_mask, other=0)[:, None]
    bits = token_ids ^ low
    bits = (bits ^ (bits >> 16)) * _HASH_1
    bits += high
    bits = (bits ^ (bits >> 15)) * _HASH_2
    bits = bits ^ (bits >> 16)
    uniform = bits.to(tl.float32) * _SCALE + _OFFSET
    # 1 - u would round away the digits of a small u; the next term of the series is below 4e-7.
    series = uniform + 0.5 * uniform * uniform
    exponential = tl.where(uniform < 1e-3, series, -tl.log(1.0 - uniform))
    return tl.log(exponential)


@triton.jit
def write_partial(  # noqa: ANN201
    rows,
    row_mask,
    partial,
    num_rows,
    num_partials,
    numbers_ptr,
    tokens_ptr,
    peak,
    total,
    weighted,
    second,
    best,
    score,
    drawn,
    drawn_logit,
    given_logit,
):
    """Store what a program has gathered as partial number `partial` of its rows."""
    plane = num_partials.to(tl.int64) * num_rows
    start = partial.to(tl.int64) * num_rows + rows
    tl.store(numbers_ptr + start, peak, mask=row_mask)
    tl.store(numbers_ptr + plane + start, total, mask=row_mask)
    tl.store(numbers_ptr + 2 * plane + start, weighted, mask=row_mask)
    tl.store(numbers_ptr + 3 * plane + start, second, mask=row_mask)
    tl.store(numbers_ptr + 4 * plane + start, score, mask=row_mask)
    tl.store(numbers_ptr + 5 * plane + start, drawn_logit, mask=row_mask)
    tl.store(numbers_ptr + 6 * plane + start, given_logit, mask=row_mask)
    tl.store(tokens_ptr + start, best, mask=row_mask)
    tl.store(tokens_ptr + plane + start, drawn, mask=row_mask)
