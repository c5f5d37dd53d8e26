"""Launch and kernels that change logits in memory: penalties, bias, tokens that are not allowed.

Shapes: R rows, C columns of the head, B adjusted entries of all rows, W words of a bitmask row.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import LAUNCH
from kernels.score.fold import NO_LOGIT, row_of
from kernels.score.spec import ScoreSpec

_ENTRIES = 128
_COLUMNS = 4096
_RUN_TIME_SIZES = [
    "row_stride",
    "num_columns",
    "column_start",
    "num_suppressed",
    "has_bitmask",
    "num_words",
]


def launch_adjust_(
    logits: Tensor, spec: ScoreSpec, suppressed: Tensor, *, column_start: int
) -> None:
    """Change logits [R, C] (of `buffer_rows`) of the tokens from column_start on as the spec says.

    suppressed: the spec's suppressed ids on the device
    """
    rows, columns = logits.shape
    if spec.adjust is not None:
        _adjust_kernel[(rows,)](
            logits,
            spec.adjust.row_starts,
            spec.adjust.token_ids,
            spec.adjust.penalties,
            spec.adjust.values,
            logits.stride(0),
            columns,
            column_start,
            BLOCK=_ENTRIES,
            num_warps=4,
            **LAUNCH,
        )
    if spec.allowed is None and not spec.suppressed:
        return
    masks = spec.allowed
    _forbid_kernel[(rows, triton.cdiv(columns, _COLUMNS))](
        logits,
        suppressed if masks is None else masks.bitmask,
        suppressed if masks is None else masks.rows,
        suppressed,
        logits.stride(0),
        columns,
        column_start,
        len(spec.suppressed),
        int(masks is not None),
        0 if masks is None else masks.bitmask.shape[1],
        BLOCK=_COLUMNS,
        num_warps=4,
        **LAUNCH,
    )


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _adjust_kernel(
    logits_ptr,  # [R, row_stride] float32
    row_starts_ptr,  # [R + 1] int32
    token_ids_ptr,  # [B] int32
    penalties_ptr,  # [B] float32
    values_ptr,  # [B] float32
    row_stride,
    num_columns,
    column_start,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr = row_of(logits_ptr, row, row_stride)
    first = tl.load(row_starts_ptr + row)
    last = tl.load(row_starts_ptr + row + 1)
    for base in range(first, last, BLOCK):
        entries = base + tl.arange(0, BLOCK)
        columns = tl.load(token_ids_ptr + entries, mask=entries < last, other=-1) - column_start
        is_own = (entries < last) & (columns >= 0) & (columns < num_columns)
        penalties = tl.load(penalties_ptr + entries, mask=is_own, other=1.0)
        values = tl.load(values_ptr + entries, mask=is_own, other=0.0)
        logits = tl.load(row_ptr + columns, mask=is_own, other=0.0)
        logits = tl.where(logits > 0, logits / penalties, logits * penalties) + values
        tl.store(row_ptr + columns, tl.maximum(logits, NO_LOGIT), mask=is_own)


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _forbid_kernel(
    logits_ptr,  # [R, row_stride] float32
    bitmask_ptr,  # [M, W] int32
    bitmask_rows_ptr,  # [R] int32
    suppressed_ptr,  # [num_suppressed] int32
    row_stride,
    num_columns,
    column_start,
    num_suppressed,
    has_bitmask,
    num_words,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    token_ids = columns + column_start
    forbidden = columns < 0
    for index in range(num_suppressed):
        forbidden |= token_ids == tl.load(suppressed_ptr + index)
    if has_bitmask != 0:
        mask_rows = tl.load(bitmask_rows_ptr + row + columns * 0)
        word_ptr = bitmask_ptr + mask_rows.to(tl.int64) * num_words + token_ids // 32
        words = tl.load(word_ptr, mask=mask & (mask_rows >= 0), other=-1)
        forbidden |= ((words >> (token_ids % 32)) & 1) == 0
    row_ptr = row_of(logits_ptr, row, row_stride)
    nothing = tl.full((BLOCK,), NO_LOGIT, tl.float32)
    tl.store(row_ptr + columns, nothing, mask=mask & forbidden)
