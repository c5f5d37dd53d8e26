"""Launch and kernel of `finish_scores`: dozens of operations on a few numbers in one launch.

A program takes one row and all of its partials.

Shapes: R rows, P partials.
"""

import torch
import triton
import triton.language as tl

from kernels.dispatch import LAUNCH
from kernels.score.fold import NO_LOGIT, NO_TOKEN
from kernels.score.partials import ScorePartials
from kernels.score.spec import RowScores, ScoreSpec

_NUM_SCORES = 6


def launch_finish_scores(partials: ScorePartials, spec: ScoreSpec) -> RowScores:
    """Start the kernel for partials without expected embeddings, of at least one row."""
    numbers, tokens = partials.numbers, partials.tokens
    _, num_partials, rows = numbers.shape
    ids = torch.empty((2, rows), dtype=torch.int64, device=numbers.device)
    scores = torch.empty((_NUM_SCORES, rows), dtype=torch.float32, device=numbers.device)
    _finish_scores_kernel[(rows,)](
        numbers.contiguous(),
        tokens.contiguous(),
        spec.temperature,
        ids,
        scores,
        rows,
        num_partials,
        BLOCK_P=triton.next_power_of_2(num_partials),
        num_warps=4 if num_partials > 64 else 1,
        **LAUNCH,
    )
    probability, p1, p2, log_sum_exp, entropy, given_logprob = scores.unbind()
    return RowScores(
        token=ids[0],
        probability=probability,
        argmax=ids[1],
        p1=p1,
        p2=p2,
        log_sum_exp=log_sum_exp,
        entropy=entropy,
        given_logprob=None if spec.given is None else given_logprob,
    )


@triton.jit(do_not_specialize=["num_rows", "num_partials"])
def _finish_scores_kernel(  # noqa: PLR0915
    numbers_ptr,  # [7, P, R] float32, in the order of `score_partials`
    tokens_ptr,  # [2, P, R] int32
    temperature_ptr,  # [R] float32
    ids_ptr,  # [2, R] int64: drawn, likeliest
    scores_ptr,  # [6, R] float32: of the drawn token, p1, p2, log-sum-exp, entropy, of the given
    num_rows,
    num_partials,
    BLOCK_P: tl.constexpr,
):
    row = tl.program_id(0)
    parts = tl.arange(0, BLOCK_P)
    mask = parts < num_partials
    offsets = parts.to(tl.int64) * num_rows + row
    plane = num_partials.to(tl.int64) * num_rows
    peaks = tl.load(numbers_ptr + offsets, mask=mask, other=NO_LOGIT)
    totals = tl.load(numbers_ptr + plane + offsets, mask=mask, other=0.0)
    weighted = tl.load(numbers_ptr + 2 * plane + offsets, mask=mask, other=0.0)
    seconds = tl.load(numbers_ptr + 3 * plane + offsets, mask=mask, other=NO_LOGIT)
    noisy = tl.load(numbers_ptr + 4 * plane + offsets, mask=mask, other=NO_LOGIT)
    drawn_logits = tl.load(numbers_ptr + 5 * plane + offsets, mask=mask, other=NO_LOGIT)
    given_logits = tl.load(numbers_ptr + 6 * plane + offsets, mask=mask, other=NO_LOGIT)
    best = tl.load(tokens_ptr + offsets, mask=mask, other=NO_TOKEN)
    drawn = tl.load(tokens_ptr + plane + offsets, mask=mask, other=NO_TOKEN)

    peak = tl.max(peaks, axis=0)
    argmax = tl.min(tl.where(peaks == peak, best, NO_TOKEN), axis=0)
    is_best = (peaks == peak) & (best == argmax)
    second = tl.max(tl.maximum(seconds, tl.where(is_best, NO_LOGIT, peaks)), axis=0)
    shift = peaks - peak
    shrink = tl.exp(shift)
    total = tl.sum(totals * shrink, axis=0)
    mean_gap = tl.sum((weighted + shift * totals) * shrink, axis=0) / total
    highest = tl.max(noisy, axis=0)
    token = tl.min(tl.where(noisy == highest, drawn, NO_TOKEN), axis=0)
    is_drawn = (noisy == highest) & (drawn == token)
    drawn_logit = tl.max(tl.where(is_drawn, drawn_logits, NO_LOGIT), axis=0)
    given = tl.max(given_logits, axis=0)

    is_sampled = tl.load(temperature_ptr + row) > 0
    token = tl.where(is_sampled, token, argmax)
    logit = tl.where(is_sampled, drawn_logit, peak)
    log_total = tl.log(total)
    log_sum_exp = peak + log_total
    given_logprob = tl.where(given > NO_LOGIT / 2, given - log_sum_exp, float("-inf"))
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(ids_ptr + num_rows + row, argmax.to(tl.int64))
    tl.store(scores_ptr + row, tl.exp(logit - log_sum_exp))
    tl.store(scores_ptr + num_rows + row, 1.0 / total)
    tl.store(scores_ptr + 2 * num_rows + row, tl.exp(second - log_sum_exp))
    tl.store(scores_ptr + 3 * num_rows + row, log_sum_exp)
    tl.store(scores_ptr + 4 * num_rows + row, log_total - mean_gap)
    tl.store(scores_ptr + 5 * num_rows + row, given_logprob)
