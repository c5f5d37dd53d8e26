"""Launch and kernel that fold logits in memory into partial scores.

The streaming kernel of `score_rows_kernel` folds logits while they are in registers, which suits
few rows. Here a product has written them; a program takes a run of columns of one row and keeps
nothing but a few numbers, so registers stay free for many programs at once.

Shapes: R rows, C columns of the head, P partials.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.score.fold import (
    NO_LOGIT,
    NO_TOKEN,
    inverse_temperature,
    load_logits,
    log_exponential,
    row_of,
)
from kernels.score.partials import ScorePartials
from kernels.score.spec import ScoreSpec

# Columns of a tile and warps of a program. Not yet measured.
TUNED = (2048, 4)
# Programs that fill a GPU: eight of four warps on each of 132 multiprocessors.
_PROGRAMS = 1056
_RUN_TIME_SIZES = [
    "row_stride",
    "num_columns",
    "column_start",
    "num_rows",
    "num_partials",
    "first_partial",
    "tiles_per_split",
    "has_given",
]


def num_splits(rows: int, columns: int) -> int:
    """Partials that a row's columns become: enough programs to fill a GPU."""
    tiles = -(-columns // TUNED[0])
    per_split = -(-tiles // min(tiles, -(-_PROGRAMS // rows)))
    return -(-tiles // per_split)


def launch_fold_logits(
    logits: Tensor,
    keys: Tensor,
    spec: ScoreSpec,
    partials: ScorePartials,
    *,
    column_start: int,
    first_partial: int,
) -> None:
    """Fold logits [R, C] of the tokens from column_start on into partials.

    logits: of `buffer_rows`; keys: [R, 2] int32, noise keys of the rows
    Fills `num_splits(R, C)` of the partials from first_partial on.
    """
    rows, columns = logits.shape
    block, warps = TUNED
    splits = num_splits(rows, columns)
    _fold_logits_kernel[(rows, splits)](
        logits,
        spec.temperature,
        keys,
        spec.seeds if spec.given is None else spec.given,
        partials.numbers,
        partials.tokens,
        logits.stride(0),
        columns,
        column_start,
        rows,
        partials.numbers.shape[1],
        first_partial,
        triton.cdiv(triton.cdiv(columns, block), splits),
        int(spec.given is not None),
        BLOCK=block,
        num_warps=warps,
        **LAUNCH,
    )


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _fold_logits_kernel(  # noqa: PLR0915
    logits_ptr,  # [R, row_stride] float32
    temperature_ptr,  # [R] float32
    keys_ptr,  # [R, 2] int32
    given_ptr,  # [R] int64
    numbers_ptr,  # [7, P, R] float32
    tokens_ptr,  # [2, P, R] int32
    row_stride,
    num_columns,
    column_start,
    num_rows,
    num_partials,
    first_partial,
    tiles_per_split,
    has_given,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    row_ptr = row_of(logits_ptr, row, row_stride)
    temperature = tl.load(temperature_ptr + row)
    inverse = inverse_temperature(temperature)
    low_key = tl.load(keys_ptr + 2 * row)
    high_key = tl.load(keys_ptr + 2 * row + 1)
    first = split * tiles_per_split * BLOCK
    stop = tl.minimum(first + tiles_per_split * BLOCK, num_columns)
    peak = tl.full((), NO_LOGIT, tl.float32)
    second = peak
    score = peak
    total = tl.full((), 0.0, tl.float32)
    weighted = total
    best = tl.full((), NO_TOKEN, tl.int32)
    drawn = best
    for start in range(first, stop, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = load_logits(row_ptr, columns, stop)
        # What is no number is no token either.
        logits = tl.where(logits > NO_LOGIT, logits, NO_LOGIT)
        token_ids = columns + column_start
        # Tiles come in the order of their ids: an equal logit of a later one changes no winner.
        tile_peak = tl.max(logits, axis=0)
        second = tl.maximum(second, tl.minimum(peak, tile_peak))
        if (tile_peak > peak) | (best == NO_TOKEN):
            best = tl.min(tl.where(logits == tile_peak, token_ids, NO_TOKEN), axis=0)
            others = tl.where(token_ids == best, NO_LOGIT, logits)
            second = tl.maximum(second, tl.max(others, axis=0))
        new_peak = tl.maximum(peak, tile_peak)
        gaps = logits - new_peak
        masses = tl.where(logits > NO_LOGIT / 2, tl.exp(gaps), 0.0)
        shift = peak - new_peak
        shrink = tl.exp(shift)
        weighted = (weighted + shift * total) * shrink + tl.sum(gaps * masses, axis=0)
        total = total * shrink + tl.sum(masses, axis=0)
        peak = new_peak
        if temperature > 0:
            noisy = logits * inverse - log_exponential(low_key, high_key, token_ids)
            noisy = tl.where(logits > NO_LOGIT / 2, noisy, NO_LOGIT)
            tile_score = tl.max(noisy, axis=0)
            if (tile_score > score) | (drawn == NO_TOKEN):
                drawn = tl.min(tl.where(noisy == tile_score, token_ids, NO_TOKEN), axis=0)
                score = tile_score
    is_drawn = drawn != NO_TOKEN
    drawn_logit = tl.load(row_ptr + (drawn - column_start), mask=is_drawn, other=NO_LOGIT)
    given = tl.load(given_ptr + row, mask=has_given != 0, other=-1).to(tl.int32) - column_start
    is_given = (given >= first) & (given < stop)
    given_logit = tl.load(row_ptr + given, mask=is_given, other=NO_LOGIT)

    plane = num_partials.to(tl.int64) * num_rows
    place = (first_partial + split).to(tl.int64) * num_rows + row
    tl.store(numbers_ptr + place, peak)
    tl.store(numbers_ptr + plane + place, total)
    tl.store(numbers_ptr + 2 * plane + place, weighted)
    tl.store(numbers_ptr + 3 * plane + place, second)
    tl.store(numbers_ptr + 4 * plane + place, score)
    tl.store(numbers_ptr + 5 * plane + place, tl.maximum(drawn_logit, NO_LOGIT))
    tl.store(numbers_ptr + 6 * plane + place, tl.maximum(given_logit, NO_LOGIT))
    tl.store(tokens_ptr + place, best)
    tl.store(tokens_ptr + plane + place, drawn)
