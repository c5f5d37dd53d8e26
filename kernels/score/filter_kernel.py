"""Launch and kernel of draws among the tokens that top-k, top-p and min-p keep.

A program takes one row of logits in memory, finds what is kept without sorting (`search.py`)
and draws in one more pass. Rows without a filter end at once: which rows have one is data.

Shapes: R rows, V vocabulary entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.score.fold import NO_LOGIT, NO_TOKEN, load_logits, log_exponential, row_of
from kernels.score.search import find_cutoff, first_tied, key_of, mass_from, value_of
from kernels.score.spec import RowScores, ScoreSpec

# Logits of a tile, thresholds of a pass and warps of a program. Not yet measured.
TUNED = (2048, 8, 16)


def launch_draw_filtered_(
    logits: Tensor, keys: Tensor, spec: ScoreSpec, scores: RowScores
) -> Tensor:
    """Replace token and probability in rows that filter, of logits [R, V] of `buffer_rows`.

    Returns [R] float32, the smallest tempered logit that a row keeps; minus infinity where a row
    keeps all or draws the likeliest.
    """
    rows, vocab = logits.shape
    cutoffs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block, ways, warps = TUNED
    _draw_filtered_kernel[(rows,)](
        logits,
        spec.temperature,
        spec.attempts if spec.top_k is None else spec.top_k,
        spec.temperature if spec.top_p is None else spec.top_p,
        spec.temperature if spec.min_p is None else spec.min_p,
        keys,
        scores.argmax,
        scores.log_sum_exp,
        scores.token,
        scores.probability,
        cutoffs,
        logits.stride(0),
        vocab,
        int(spec.top_k is not None),
        int(spec.top_p is not None),
        int(spec.min_p is not None),
        BLOCK=block,
        WAYS=ways,
        num_warps=warps,
        **LAUNCH,
    )
    return cutoffs


@triton.jit(do_not_specialize=["row_stride", "num_columns", "has_top_k", "has_top_p", "has_min_p"])
def _draw_filtered_kernel(
    logits_ptr,  # [R, row_stride] float32
    temperature_ptr,  # [R] float32
    top_k_ptr,  # [R] int32
    top_p_ptr,  # [R] float32
    min_p_ptr,  # [R] float32
    keys_ptr,  # [R, 2] int32
    argmax_ptr,  # [R] int64
    log_sum_exp_ptr,  # [R] float32
    token_ptr,  # [R] int64
    probability_ptr,  # [R] float32
    cutoffs_ptr,  # [R] float32
    row_stride,
    num_columns,
    has_top_k,
    has_top_p,
    has_min_p,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr = row_of(logits_ptr, row, row_stride)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row, mask=has_top_k != 0, other=0)
    top_p = tl.load(top_p_ptr + row, mask=has_top_p != 0, other=1.0)
    min_p = tl.load(min_p_ptr + row, mask=has_min_p != 0, other=0.0)
    by_count = (top_k > 0) & (top_k < num_columns)
    tl.store(cutoffs_ptr + row, float("-inf"))
    if (temperature <= 0) | ((by_count == 0) & (top_p >= 1) & (min_p <= 0)):
        return

    peak = tl.load(row_ptr + tl.load(argmax_ptr + row))
    # Nothing can be kept of a row of which no logit is a number.
    if (peak > NO_LOGIT / 2) == 0:
        return
    inverse = 1.0 / tl.maximum(temperature, 1e-30)
    # Tempering keeps the order, so cutoffs are found among the logits as they are; logits that
    # tempering makes equal are kept together.
    cutoff = key_of(tl.full((), NO_LOGIT, tl.float32))
    if by_count:
        kth, _ = find_cutoff(
            row_ptr, num_columns, peak, inverse, cutoff, top_k, False, BLOCK, WAYS
        )  # fmt: skip
        cutoff = first_tied(kth, temperature)
    if top_p < 1:
        # What top-p sees is normalised over what top-k keeps.
        wanted = top_p * mass_from(row_ptr, num_columns, cutoff, peak, inverse, BLOCK)
        last, _ = find_cutoff(
            row_ptr, num_columns, peak, inverse, cutoff, wanted, True, BLOCK, WAYS
        )  # fmt: skip
        cutoff = first_tied(last, temperature)
    near = tl.math.div_rn(peak, temperature) + tl.log(tl.where(min_p > 0, min_p, 1.0))
    near = tl.where(min_p > 0, near, float("-inf"))
    token = _draw_kept(row_ptr, num_columns, keys_ptr + 2 * row, temperature, cutoff, near, BLOCK)
    logit = tl.load(row_ptr + token)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(probability_ptr + row, tl.exp(logit - tl.load(log_sum_exp_ptr + row)))
    kept_from = tl.math.div_rn(value_of(cutoff), temperature)
    tl.store(cutoffs_ptr + row, tl.maximum(kept_from, near))


@triton.jit
def _draw_kept(row_ptr, num_columns, key_ptr, temperature, cutoff, near, BLOCK: tl.constexpr):
    """The token with the largest noisy logit of those kept."""
    low_key = tl.load(key_ptr)
    high_key = tl.load(key_ptr + 1)
    score = tl.full((), NO_LOGIT, tl.float32)
    token = tl.full((), 0, tl.int32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = load_logits(row_ptr, columns, num_columns)
        is_kept = (key_of(logits) >= cutoff) & (logits > NO_LOGIT / 2)
        if tl.max(is_kept.to(tl.int32), axis=0) > 0:
            tempered = tl.math.div_rn(logits, tl.full((BLOCK,), 0.0, tl.float32) + temperature)
            noisy = tempered - log_exponential(low_key, high_key, columns)
            noisy = tl.where(is_kept & (tempered >= near), noisy, NO_LOGIT)
            tile_score = tl.max(noisy, axis=0)
            if tile_score > score:
                token = tl.min(tl.where(noisy == tile_score, columns, NO_TOKEN), axis=0)
                score = tile_score
    return token
