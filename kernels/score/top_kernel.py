"""Launch and kernels of top lists: the likeliest tokens of rows of logits in memory, in order.

One program per row finds the logit of the last listed token without sorting (`search.py`) and
gathers what is above it and, of equals, the lowest ids; a second one puts the few into order.

Shapes: R rows, V vocabulary entries, N listed tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.score.fold import NO_LOGIT, load_logits, row_of
from kernels.score.search import find_cutoff, key_of
from kernels.score.spec import MAX_NUM_TOP, RowScores

# Logits of a tile, thresholds of a pass and warps of a program. Not yet measured.
TUNED = (2048, 8, 16)
_MOST = tl.constexpr(MAX_NUM_TOP)


def launch_top_tokens(
    logits: Tensor, scores: RowScores, is_listed: Tensor, num_top: int
) -> tuple[Tensor, Tensor]:
    """Ids [R, N] int64 and log-probabilities [R, N] float32, best first, lowest id of equals.

    logits: [R, V] of `buffer_rows`
    is_listed: [R] int32; rows where it is 0 get zeros and minus infinity
    """
    rows, vocab = logits.shape
    found = torch.empty((rows, MAX_NUM_TOP), dtype=torch.int32, device=logits.device)
    ids = torch.empty((rows, num_top), dtype=torch.int64, device=logits.device)
    logprobs = torch.empty((rows, num_top), dtype=torch.float32, device=logits.device)
    block, ways, warps = TUNED
    _find_top_kernel[(rows,)](
        logits,
        scores.argmax,
        is_listed,
        found,
        logits.stride(0),
        vocab,
        num_top,
        BLOCK=block,
        WAYS=ways,
        num_warps=warps,
        **LAUNCH,
    )
    _order_top_kernel[(rows,)](
        logits,
        scores.log_sum_exp,
        is_listed,
        found,
        ids,
        logprobs,
        logits.stride(0),
        num_top,
        num_warps=4,
        **LAUNCH,
    )
    return ids, logprobs


@triton.jit(do_not_specialize=["row_stride", "num_columns", "num_top"])
def _find_top_kernel(
    logits_ptr,  # [R, row_stride] float32
    argmax_ptr,  # [R] int64
    is_listed_ptr,  # [R] int32
    found_ptr,  # [R, 64] int32
    row_stride,
    num_columns,
    num_top,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr = row_of(logits_ptr, row, row_stride)
    if tl.load(is_listed_ptr + row) == 0:
        return
    peak = tl.load(row_ptr + tl.load(argmax_ptr + row))
    lowest = key_of(tl.full((), NO_LOGIT, tl.float32))
    last, num_above = find_cutoff(
        row_ptr, num_columns, peak, 1.0, lowest, num_top, False, BLOCK, WAYS
    )  # fmt: skip
    # Larger ones fill the list from its start, equals of the last from the lowest id on.
    above = num_above * 0
    equal = num_above
    own_ptr = found_ptr + row * _MOST
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < num_columns
        keys = key_of(load_logits(row_ptr, columns, num_columns))
        is_above = ((keys > last) & mask).to(tl.int32)
        is_equal = ((keys == last) & mask).to(tl.int32)
        if tl.max(is_above | is_equal, axis=0) > 0:
            places = above + tl.cumsum(is_above, axis=0) - 1
            tl.store(own_ptr + places, columns, mask=(is_above != 0) & (places < num_top))
            places = equal + tl.cumsum(is_equal, axis=0) - 1
            tl.store(own_ptr + places, columns, mask=(is_equal != 0) & (places < num_top))
            above += tl.sum(is_above, axis=0)
            equal += tl.sum(is_equal, axis=0)


@triton.jit(do_not_specialize=["row_stride", "num_top"])
def _order_top_kernel(
    logits_ptr,  # [R, row_stride] float32
    log_sum_exp_ptr,  # [R] float32
    is_listed_ptr,  # [R] int32
    found_ptr,  # [R, 64] int32
    ids_ptr,  # [R, N] int64
    logprobs_ptr,  # [R, N] float32
    row_stride,
    num_top,
):
    row = tl.program_id(0)
    row_ptr = row_of(logits_ptr, row, row_stride)
    places = tl.arange(0, _MOST)
    is_listed = tl.load(is_listed_ptr + row + places * 0) != 0
    mask = (places < num_top) & is_listed
    ids = tl.load(found_ptr + row * _MOST + places, mask=mask, other=0)
    logits = tl.load(row_ptr + ids, mask=mask, other=NO_LOGIT)
    other_ids = tl.load(found_ptr + row * _MOST + places[:, None], mask=mask[:, None], other=0)
    others = tl.load(row_ptr + other_ids, mask=mask[:, None], other=NO_LOGIT)
    comes_first = (others > logits[None, :]) | (
        (others == logits[None, :]) & (other_ids < ids[None, :])
    )
    ranks = tl.sum((comes_first & mask[:, None]).to(tl.int32), axis=0)
    ranks = tl.where(is_listed, ranks, places)
    logprobs = logits - tl.load(log_sum_exp_ptr + row)
    logprobs = tl.where(mask & (logits > NO_LOGIT / 2), logprobs, float("-inf"))
    start = row.to(tl.int64) * num_top
    tl.store(ids_ptr + start + ranks, ids.to(tl.int64), mask=places < num_top)
    tl.store(logprobs_ptr + start + ranks, logprobs, mask=places < num_top)
