"""Launch and kernels of `paged_attention`.

A program takes a tile of rows of one span, times the query heads that share one key-value head
(both folded into the rows of the matrix product), and walks over tiles of cache entries. Tiles
that every row sees in full need no mask and come first; then those at the edges of limits and
windows; tiles that no row sees are not visited. When rows are few the walk is cut into splits,
each a program of its own, and a second kernel merges their outputs by log-sum-exp.

Shapes: T rows, S spans, Hq query heads, Hkv key-value heads, D head size.
From: Dao 2023, FlashAttention-2, arXiv 2307.08691 (online softmax, tiles); Dao et al. 2023,
Flash-Decoding (splits). The walk over two intervals per row is ours.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.paged_batch import PagedBatch
from kernels.dispatch import LAUNCH, capability

# (entries of a tile, warps, stages) by head size up to the key and rows times group of a tile.
# Not yet measured: chosen so that each compiles without spills, with the most loads in flight.
_TUNED_AMPERE = {
    64: {16: (64, 4, 5), 32: (32, 4, 5), 64: (64, 4, 3), 128: (64, 8, 3)},
    128: {16: (32, 4, 5), 32: (64, 4, 5), 128: (32, 8, 4)},
    256: {16: (64, 4, 5), 32: (32, 4, 5)},
}
_TUNED_HOPPER = {
    64: {16: (64, 4, 5), 32: (32, 4, 5), 64: (64, 4, 3), 128: (128, 8, 3)},
    128: {16: (32, 4, 5), 32: (64, 4, 5), 64: (64, 4, 3), 128: (64, 8, 4)},
    256: {16: (32, 4, 5), 32: (32, 4, 5), 128: (32, 8, 4)},
}
_TUNED_BLACKWELL = _TUNED_HOPPER | {
    64: _TUNED_HOPPER[64] | {64: (64, 4, 4)},
    256: _TUNED_HOPPER[256] | {16: (32, 4, 4)},
}
# Float32 products run without tensor cores; small tiles keep them in registers.
_TUNED_FLOAT32 = {
    64: {16: (32, 4, 3), 32: (32, 8, 2)},
    128: {16: (16, 8, 2), 32: (16, 8, 1)},
    256: {16: (16, 4, 1)},
}
# Sizes that a request can change: Triton must not compile anew for lucky values of them.
_RUN_TIME_SIZES = [
    "num_rows",
    "num_spans",
    "table_stride",
    "num_splits",
    "num_firsts",
    "num_windows",
]
# A split below this many tiles costs more to merge than it saves.
MIN_SPLIT_TILES = 4
# From so many rows of a tile on, a page lookup beside the loads keeps them from being pipelined.
_LOOK_AHEAD_ROWS = 64
# Sums of wider heads leave no registers for it on sm_90.
_LOOK_AHEAD_DIM = 128
# Matrix instructions take at least this many columns; smaller heads are padded in registers.
_MIN_BLOCK_DIM = 16


@dataclass(frozen=True, slots=True)
class TileSize:
    """Rows times group and entries of a tile, warps of a program, stages of its loads."""

    rows: int
    entries: int
    warps: int
    stages: int


def tile_sizes(head_dim: int, dtype: torch.dtype, capability: int) -> tuple[TileSize, ...]:
    """All tuned sizes for a head size, smallest first; capability is 80, 90, 100, ..."""
    table = _TUNED_AMPERE
    if capability >= 90:
        table = _TUNED_HOPPER if capability < 100 else _TUNED_BLACKWELL
    if dtype == torch.float32:
        table = _TUNED_FLOAT32
    sizes = next((sizes for limit, sizes in table.items() if head_dim <= limit), None)
    if sizes is None:
        raise ValueError(f"heads of up to {max(table)} entries are supported, got {head_dim}")
    return tuple(TileSize(rows, *rest) for rows, rest in sizes.items())


def tile_size(
    max_span: int, group: int, head_dim: int, dtype: torch.dtype, capability: int
) -> TileSize:
    """The smallest tile that holds the longest span, or else the largest."""
    sizes = tile_sizes(head_dim, dtype, capability)
    if group > sizes[-1].rows:
        raise ValueError(
            f"at most {sizes[-1].rows} query heads may share a key-value head, got {group}"
        )
    return next((size for size in sizes if size.rows >= max_span * group), sizes[-1])


def looks_ahead(size: TileSize, head_dim: int) -> bool:
    """Whether a tile's pages are looked up while the tile before it is attended to."""
    return size.rows >= _LOOK_AHEAD_ROWS and head_dim <= _LOOK_AHEAD_DIM


def block_dim(head_dim: int) -> int:
    """Columns of a tile that holds heads of this size."""
    columns: int = triton.next_power_of_2(head_dim)
    return max(_MIN_BLOCK_DIM, columns)


def launch_paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: PagedBatch,
    *,
    num_splits: int,
    scale: float,
) -> Tensor:
    """Start the kernels; arguments as for `paged_attention`, D a size that a tile can hold."""
    q = q.contiguous()
    rows, heads, head_dim = q.shape
    page_size, kv_heads = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    output = torch.empty_like(q)
    if rows == 0:
        return output
    size = tile_size(batch.max_span, group, head_dim, q.dtype, capability(q.device))
    row_tiles = rows // (size.rows // group) + batch.num_spans
    # Unused when there is one split, but a kernel's argument must be a tensor.
    partial_shape = (num_splits, rows, heads) if num_splits > 1 else (0, 0, 0)
    partial = torch.empty((*partial_shape, head_dim), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(partial_shape, dtype=torch.float32, device=q.device)
    has_windows = batch.window_starts is not None
    _paged_attention_kernel[(row_tiles, kv_heads, num_splits)](
        q,
        keys,
        values,
        output,
        partial,
        partial_lse,
        batch.span_starts,
        batch.page_table,
        batch.limits,
        batch.limits if batch.firsts is None else batch.firsts,
        batch.window_starts if has_windows else batch.limits,
        batch.window_stops if has_windows else batch.limits,
        rows,
        batch.num_spans,
        batch.page_table.stride(0),
        num_splits,
        0 if batch.firsts is None else rows,
        rows if has_windows else 0,
        scale * 1.4426950408889634,  # log2(e): the kernel counts in powers of two
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_M=size.rows,
        BLOCK_N=size.entries,
        BLOCK_D=block_dim(head_dim),
        MIN_SPLIT_TILES=MIN_SPLIT_TILES,
        STAGES=size.stages,
        LOOK_AHEAD=looks_ahead(size, head_dim),
        num_warps=size.warps,
        **LAUNCH,
    )
    if num_splits > 1:
        _merge_splits_kernel[(rows, heads)](
            partial,
            partial_lse,
            output,
            rows,
            num_splits,
            HEADS=heads,
            HEAD_DIM=head_dim,
            BLOCK_S=triton.next_power_of_2(num_splits),
            BLOCK_D=block_dim(head_dim),
            num_warps=4,
            **LAUNCH,
        )
    return output


@triton.jit(do_not_specialize=_RUN_TIME_SIZES)
def _paged_attention_kernel(  # noqa: PLR0915
    q_ptr,  # [T, Hq, D]
    keys_ptr,  # [pages, page_size, Hkv, D]
    values_ptr,  # [pages, page_size, Hkv, D]
    output_ptr,  # [T, Hq, D]
    partial_ptr,  # [splits, T, Hq, D] float32
    partial_lse_ptr,  # [splits, T, Hq] float32, in powers of two
    span_starts_ptr,  # [S + 1] int32
    page_table_ptr,  # [S, P] int32
    limits_ptr,  # [T] int32
    firsts_ptr,  # [T] int32
    window_starts_ptr,  # [T] int32
    window_stops_ptr,  # [T] int32
    num_rows,
    num_spans,
    table_stride,
    num_splits,
    num_firsts,
    num_windows,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MIN_SPLIT_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    LOOK_AHEAD: tl.constexpr,
):
    tile_rows: tl.constexpr = BLOCK_M // GROUP
    num_heads: tl.constexpr = KV_HEADS * GROUP
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)

    # Every span has one tile more than its rows need at most, so that the span of a tile can be
    # found without reading anything on the host: the last one that starts at or before it.
    span = block * 0
    above = span + num_spans
    while span + 1 < above:
        middle = (span + above) // 2
        if tl.load(span_starts_ptr + middle) // tile_rows + middle <= block:
            span = middle
        else:
            above = middle
    span_start = tl.load(span_starts_ptr + span)
    span_stop = tl.load(span_starts_ptr + span + 1)
    first_row = span_start + (block - span_start // tile_rows - span) * tile_rows
    if first_row >= span_stop:
        return

    lanes = tl.arange(0, BLOCK_M)
    rows = first_row + lanes // GROUP
    row_mask = (rows < span_stop) & (lanes < tile_rows * GROUP)
    limits = tl.load(limits_ptr + rows, mask=row_mask, other=0)
    firsts = tl.load(firsts_ptr + rows, mask=row_mask & (rows < num_firsts), other=0)
    window_mask = row_mask & (rows < num_windows)
    window_starts = tl.load(window_starts_ptr + rows, mask=window_mask, other=0)
    window_stops = tl.load(window_stops_ptr + rows, mask=window_mask, other=0)

    # Tiles [a0, a1) hold what any row sees before its limit, [f0, f1) of these what all rows see,
    # [left0, left1) and [right0, right1) what windows add on either side.
    far: tl.constexpr = 2147483647
    is_open = firsts < limits
    stop = tl.max(tl.where(is_open, limits, 0), axis=0)
    start = tl.min(tl.where(is_open, firsts, far), axis=0)
    a1 = tl.cdiv(stop, BLOCK_N)
    a0 = tl.minimum(start // BLOCK_N, a1)
    f0 = tl.cdiv(tl.max(tl.where(row_mask, firsts, 0), axis=0), BLOCK_N)
    f1 = tl.min(tl.where(row_mask, limits, far), axis=0) // BLOCK_N
    num_full = tl.maximum(f1 - f0, 0)
    f0 = tl.where(num_full > 0, f0, a1)
    f1 = tl.where(num_full > 0, f1, a1)
    is_open = window_starts < window_stops
    window_stop = tl.max(tl.where(is_open, window_stops, 0), axis=0)
    window_start = tl.min(tl.where(is_open, window_starts, far), axis=0)
    right1 = tl.cdiv(window_stop, BLOCK_N)
    left0 = tl.minimum(window_start // BLOCK_N, right1)
    num_before = f0 - a0
    num_after = a1 - f1
    num_left = tl.maximum(tl.minimum(right1, a0) - left0, 0)
    right0 = tl.maximum(left0, a1)
    num_right = tl.maximum(right1 - right0, 0)
    num_tiles = num_full + num_before + num_after + num_left + num_right

    # A split of few tiles is left to its neighbours.
    share = tl.maximum(tl.cdiv(num_tiles, num_splits), MIN_SPLIT_TILES)
    begin = split * share
    end = tl.minimum(begin + share, num_tiles)
    heads = kv_head * GROUP + lanes % GROUP
    out_rows = rows.to(tl.int64) * num_heads + heads
    if (begin >= end) & (num_splits > 1):
        lse_offsets = split.to(tl.int64) * num_rows * num_heads + out_rows
        empty = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        tl.store(partial_lse_ptr + lse_offsets, empty, mask=row_mask)
        return

    dims = tl.arange(0, BLOCK_D)
    row_offsets = out_rows[:, None] * HEAD_DIM + dims[None, :]
    row_dim_mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row_offsets, mask=row_dim_mask, other=0.0)
    table_ptr = page_table_ptr + span.to(tl.int64) * table_stride
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    full_end = tl.minimum(end, num_full)
    columns = tl.arange(0, BLOCK_N)
    # A tile's pages are looked up one tile ahead: loads of keys and values then depend on nothing
    # that is read in the same round, and stay in flight over several. With few rows registers are
    # free, and the lookup is pipelined with the loads.
    if LOOK_AHEAD:
        next_entries = (f0 + begin) * BLOCK_N + columns
        next_mask = next_entries < (f0 + full_end) * BLOCK_N
        pages = tl.load(table_ptr + next_entries // PAGE_SIZE, mask=next_mask, other=0)
    for index in tl.range(begin, full_end, num_stages=STAGES):
        entries = (f0 + index) * BLOCK_N + columns
        if LOOK_AHEAD:
            own_pages = pages
            next_entries = (f0 + tl.minimum(index + 1, full_end - 1)) * BLOCK_N + columns
            pages = tl.load(table_ptr + next_entries // PAGE_SIZE)
        else:
            own_pages = tl.load(table_ptr + entries // PAGE_SIZE)
        mean, total, peak = _attend_tile(
            q, mean, total, peak, entries, own_pages, table_ptr, keys_ptr, values_ptr, kv_head,
            scale_log2,
            rows, row_mask, limits_ptr, firsts_ptr, window_starts_ptr, window_stops_ptr,
            num_firsts, num_windows, start, stop, window_start, window_stop,
            KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_D, False,
        )  # fmt: skip
    # Edge tiles are few: overlapping their loads would only cost registers.
    for index in tl.range(tl.maximum(begin, num_full), end, num_stages=1):
        edge = index - num_full
        tile = a0 + edge
        tile = tl.where(edge >= num_before, f1 + edge - num_before, tile)
        edge -= num_before + num_after
        tile = tl.where(edge >= 0, left0 + edge, tile)
        tile = tl.where(edge >= num_left, right0 + edge - num_left, tile)
        entries = tile * BLOCK_N + columns
        mean, total, peak = _attend_tile(
            q, mean, total, peak, entries, entries, table_ptr, keys_ptr, values_ptr, kv_head,
            scale_log2,
            rows, row_mask, limits_ptr, firsts_ptr, window_starts_ptr, window_stops_ptr,
            num_firsts, num_windows, start, stop, window_start, window_stop,
            KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_D, True,
        )  # fmt: skip

    # A row that saw nothing has a total of zero and gets zeros.
    total = tl.where(total > 0, total, 1.0)
    mean = mean / total[:, None]
    if num_splits == 1:
        tl.store(output_ptr + row_offsets, mean.to(output_ptr.dtype.element_ty), mask=row_dim_mask)
    else:
        lse_offsets = split.to(tl.int64) * num_rows * num_heads + out_rows
        tl.store(partial_lse_ptr + lse_offsets, peak + tl.log2(total), mask=row_mask)
        offsets = lse_offsets[:, None] * HEAD_DIM + dims[None, :]
        tl.store(partial_ptr + offsets, mean, mask=row_dim_mask)


@triton.jit
def _attend_tile(
    q,  # [BLOCK_M, BLOCK_D]
    mean,  # [BLOCK_M, BLOCK_D] float32, sum of probabilities times values so far
    total,  # [BLOCK_M]
    peak,  # [BLOCK_M]
    entries,  # [BLOCK_N]
    pages,  # [BLOCK_N], where they lie; looked up here where some are masked
    table_ptr,
    keys_ptr,
    values_ptr,
    kv_head,
    scale_log2,
    rows,
    row_mask,
    limits_ptr,
    firsts_ptr,
    window_starts_ptr,
    window_stops_ptr,
    num_firsts,
    num_windows,
    start,
    stop,
    window_start,
    window_stop,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    dims = tl.arange(0, BLOCK_D)
    if MASKED:
        entry_mask = (entries >= start) & (entries < stop)
        entry_mask |= (entries >= window_start) & (entries < window_stop)
        # Beyond what the rows see, entries were perhaps never written and pages may not exist.
        pages = tl.load(table_ptr + entries // PAGE_SIZE, mask=entry_mask, other=0)
        slots = pages.to(tl.int64) * PAGE_SIZE + entries % PAGE_SIZE
        offsets = (slots * KV_HEADS + kv_head) * HEAD_DIM
        tile_offsets = offsets[:, None] + dims[None, :]
        mask = entry_mask[:, None] & (dims < HEAD_DIM)[None, :]
        k = tl.load(keys_ptr + tile_offsets, mask=mask, other=0.0)
        v = tl.load(values_ptr + tile_offsets, mask=mask, other=0.0)
    else:
        slots = pages.to(tl.int64) * PAGE_SIZE + entries % PAGE_SIZE
        offsets = (slots * KV_HEADS + kv_head) * HEAD_DIM
        tile_offsets = offsets[:, None] + dims[None, :]
        if HEAD_DIM == BLOCK_D:
            k = tl.load(keys_ptr + tile_offsets)
            v = tl.load(values_ptr + tile_offsets)
        else:
            mask = (dims < HEAD_DIM)[None, :]
            k = tl.load(keys_ptr + tile_offsets, mask=mask, other=0.0)
            v = tl.load(values_ptr + tile_offsets, mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        # Read here, not kept: four more integers per row would not fit beside the sums.
        limits = tl.load(limits_ptr + rows, mask=row_mask, other=0)[:, None]
        firsts = tl.load(firsts_ptr + rows, mask=row_mask & (rows < num_firsts), other=0)[:, None]
        column = entries[None, :]
        seen = (column >= firsts) & (column < limits)
        window_mask = row_mask & (rows < num_windows)
        window_starts = tl.load(window_starts_ptr + rows, mask=window_mask, other=0)[:, None]
        window_stops = tl.load(window_stops_ptr + rows, mask=window_mask, other=0)[:, None]
        seen |= (column >= window_starts) & (column < window_stops)
        scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    # A row that has seen nothing yet subtracts zero: -inf minus -inf would be nan.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    masses = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(masses, axis=1)
    mean = mean * shrink[:, None]
    mean = tl.dot(masses.to(v.dtype), v, mean, input_precision="ieee")
    return mean, total, new_peak


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def _merge_splits_kernel(
    partial_ptr,  # [splits, T, Hq, D] float32
    partial_lse_ptr,  # [splits, T, Hq] float32, in powers of two
    output_ptr,  # [T, Hq, D]
    num_rows,
    num_splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    out_row = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    splits = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    offsets = splits.to(tl.int64) * num_rows * HEADS + out_row
    lse = tl.load(partial_lse_ptr + offsets, mask=splits < num_splits, other=float("-inf"))
    peak = tl.max(lse, axis=0)
    weights = tl.exp2(lse - tl.where(peak == float("-inf"), 0.0, peak))
    # The output of an empty split was never written.
    mask = (lse > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
    partial = tl.load(
        partial_ptr + offsets[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0
    )
    total = tl.sum(weights, axis=0)
    mean = tl.sum(partial * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    output = mean.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + out_row * HEAD_DIM + dims, output, mask=dims < HEAD_DIM)
