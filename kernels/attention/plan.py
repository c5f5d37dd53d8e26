"""What `paged_attention` decides once per step and uses in every layer.

On a CPU: which spans read their keys in place and which gather them, and their masks. On a GPU:
nothing is read back from the device; see `paged_attention_kernel.py`.

Shapes: T rows, S spans, n spans of a group, m rows of each, L entries.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.attention.paged_batch import PagedBatch
from kernels.dispatch import runs_triton

# Spans that see this many entries (times key-value heads) or fewer are gathered and run together:
# copying them costs less than the fixed 15 us of a call of their own.
_GATHER_BELOW = 192
# Rows of a long causal span are cut into tiles of this many, each over the entries it can see.
_TILE_ROWS = 256

# Row by row, where that has been asked for, run spans of so many rows or fewer, and longer ones as
# far as this many entries: beyond, prompts would take several times as long.
_EXACT_ROWS = 64
_EXACT_ENTRIES = 512
# What the fused attention does to a row does not depend on how many masked entries follow it, as
# long as the number of all entries is one of these or a multiple of the last (its tile of keys).
# Found by trying: other lengths, 448 for one, differ in the last bit.
_EXACT_LENGTHS = (64, 128, 256, 512)

# On a GPU: programs that fill it (two on each of 132 multiprocessors), rows times group of a large
# tile, entries below which a split is not worth merging and above which one program would be the
# last to finish, and a bound on the memory of partial outputs. Not yet measured.
_GPU_PROGRAMS = 264
_GPU_TILE_ROWS = 128
_SPLIT_AT_LEAST = 512
_SPLIT_AT_MOST = 16_384
_MAX_SPLITS = 64
_PARTIAL_BYTES = 256 * 2**20
_PARTIAL_HEAD_DIM = 128

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Rows of one span, or equally long spans run together.

    num_spans, num_rows: n and m
    first_row:           the group's n * m rows start here when they lie side by side
    row_index:           [n * m] int64 otherwise
    num_entries:         L
    first_slot:          the L entries lie side by side from this slot on
    slot_index:          [n * L] int64 otherwise
    mask:                [n, 1, m, L], 0 or -inf to add to the scores; None when all see all
    is_shared:           the n spans are rows of one span, which read the same L entries
    """

    num_spans: int
    num_rows: int
    num_entries: int
    first_row: int | None
    row_index: Tensor | None
    first_slot: int | None
    slot_index: Tensor | None
    mask: Tensor | None
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The step's groups in the order in which their outputs are joined.

    groups:     empty on a GPU
    row_order:  [T] int64, which joined row is row t; None when they are in order
    blind_rows: [B] int64, rows that see nothing; None when there are none
    num_splits: on a GPU, programs that share the keys of one span
    """

    groups: tuple[SpanGroup, ...]
    row_order: Tensor | None
    blind_rows: Tensor | None
    num_splits: int = 1


def plan_attention(
    batch: PagedBatch,
    *,
    page_size: int,
    num_heads: int,
    num_kv_heads: int,
    dtype: torch.dtype = torch.float32,
    exact_slots: int | None = None,
) -> AttentionPlan:
    """Plan the attention of a step; dtype is that of the queries.

    exact_slots: on a CPU, make rows the same bit for bit whatever runs beside them and however
                 many rows their span has, if they are 64 at most or see 512 entries at most, and
                 have no window beyond their own entry. It is the number of slots of the cache, all
                 of which must then hold numbers: masked ones are read

    Raises ValueError when the query heads are no multiple of the key-value heads.
    """
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key-value heads")
    if runs_triton(batch.limits):
        return AttentionPlan((), None, None, _num_splits(batch, num_heads, num_kv_heads))
    host = _HostBatch.read(batch, page_size)
    return _plan_cpu(host, num_kv_heads, dtype, exact_slots)


def _num_splits(batch: PagedBatch, num_heads: int, num_kv_heads: int) -> int:
    """Programs that share a span's entries: enough to fill the GPU, from host integers alone."""
    group = num_heads // num_kv_heads
    tile_rows = max(1, _GPU_TILE_ROWS // group)
    tiles = max(1, batch.num_spans * -(-batch.max_span // tile_rows) * num_kv_heads)
    wanted = max(_GPU_PROGRAMS // tiles, -(-batch.max_limit // _SPLIT_AT_MOST))
    wanted = min(wanted, -(-batch.max_limit // _SPLIT_AT_LEAST), _MAX_SPLITS)
    partial_bytes = 4 * batch.num_rows * num_heads * _PARTIAL_HEAD_DIM
    wanted = max(1, min(wanted, _PARTIAL_BYTES // max(1, partial_bytes)))
    # A power of two: few kernels to compile and graphs to capture.
    return 1 << (wanted.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class _HostBatch:
    """A batch as host arrays, with what each span sees.

    starts [S + 1]; table [S, P]; lows, limits, window_lows, window_stops [T];
    span_lows, span_stops [S]: first seen entry and one past the last (0, 0 for blind spans)
    contiguous [S]: all entries between are seen and lie in consecutive slots
    """

    page_size: int
    starts: _Ints
    table: _Ints
    lows: _Ints
    limits: _Ints
    window_lows: _Ints | None
    window_stops: _Ints | None
    span_lows: _Ints
    span_stops: _Ints
    contiguous: NDArray[np.bool_]

    @classmethod
    def read(cls, batch: PagedBatch, page_size: int) -> "_HostBatch":
        starts, table = _ints(batch.span_starts), _ints(batch.page_table)
        limits = _ints(batch.limits)
        lows = np.zeros_like(limits) if batch.firsts is None else _ints(batch.firsts)
        windows = None
        if batch.window_starts is not None and batch.window_stops is not None:
            windows = (_ints(batch.window_starts), _ints(batch.window_stops))
        span_lows, span_stops = _seen_ranges(starts, lows, limits, windows)
        contiguous = _lies_side_by_side(table, span_lows, span_stops, page_size)
        host = cls(
            page_size,
            starts,
            table,
            lows,
            limits,
            None if windows is None else windows[0],
            None if windows is None else windows[1],
            span_lows,
            span_stops,
            contiguous,
        )
        if batch.firsts is not None or windows is not None:
            for span in range(len(span_lows)):
                contiguous[span] &= bool(host.seen_entries(span).all())
        return host

    def rows(self, span: int) -> slice:
        return slice(int(self.starts[span]), int(self.starts[span + 1]))

    def visible(self, rows: slice, entries: _Ints) -> NDArray[np.bool_]:
        """[rows, entries]: which row sees which entry, straight from the contract."""
        seen = (entries >= self.lows[rows, None]) & (entries < self.limits[rows, None])
        if self.window_lows is not None and self.window_stops is not None:
            after = entries >= self.window_lows[rows, None]
            seen |= after & (entries < self.window_stops[rows, None])
        return np.asarray(seen)

    def seen_entries(self, span: int) -> NDArray[np.bool_]:
        """[span's range]: whether any row sees the entry, from counts of opened intervals."""
        low, stop = int(self.span_lows[span]), int(self.span_stops[span])
        edges = np.zeros(stop - low + 1, np.int64)
        rows = self.rows(span)
        intervals = [(self.lows[rows], self.limits[rows])]
        if self.window_lows is not None and self.window_stops is not None:
            intervals.append((self.window_lows[rows], self.window_stops[rows]))
        for starts, stops in intervals:
            kept = starts < stops
            np.add.at(edges, starts[kept] - low, 1)
            np.add.at(edges, stops[kept] - low, -1)
        return np.asarray(np.cumsum(edges)[:-1] > 0)

    def slots(self, span: int, entries: _Ints) -> _Ints:
        pages = self.table[span, entries // self.page_size]
        return np.asarray(pages * self.page_size + entries % self.page_size)


def _ints(tensor: Tensor) -> _Ints:
    return np.asarray(tensor.numpy().astype(np.int64))


def _seen_ranges(
    starts: _Ints, lows: _Ints, limits: _Ints, windows: tuple[_Ints, _Ints] | None
) -> tuple[_Ints, _Ints]:
    """First seen entry and one past the last of every span [S]; (0, 0) when it sees nothing."""
    if not len(limits):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    far = np.iinfo(np.int64).max
    first = np.where(lows < limits, lows, far)
    last = np.where(lows < limits, limits, 0)
    if windows is not None:
        is_open = windows[0] < windows[1]
        first = np.minimum(first, np.where(is_open, windows[0], far))
        last = np.maximum(last, np.where(is_open, windows[1], 0))
    span_stops = np.maximum.reduceat(last, starts[:-1])
    span_lows = np.minimum.reduceat(first, starts[:-1])
    return np.where(span_stops > 0, span_lows, 0), span_stops


def _lies_side_by_side(
    table: _Ints, lows: _Ints, stops: _Ints, page_size: int
) -> NDArray[np.bool_]:
    """[S]: whether the pages between the first and the last seen entry follow each other."""
    if table.shape[1] < 2:
        return np.ones(len(lows), np.bool_)
    columns = np.arange(1, table.shape[1])
    inside = (columns > (lows // page_size)[:, None]) & (columns * page_size < stops[:, None])
    return np.asarray(((np.diff(table, axis=1) == 1) | ~inside).all(axis=1))


def _plan_cpu(
    host: _HostBatch, num_kv_heads: int, dtype: torch.dtype, exact_slots: int | None
) -> AttentionPlan:
    together: dict[int, list[int]] = defaultdict(list)
    groups: list[SpanGroup] = []
    order: list[int] = []
    lengths = np.diff(host.starts)
    is_short = (host.span_stops - host.span_lows) * num_kv_heads <= _GATHER_BELOW
    is_exact = np.zeros(len(lengths), dtype=np.bool_)
    if exact_slots is not None:
        is_exact = (lengths <= _EXACT_ROWS) | (host.span_stops <= _EXACT_ENTRIES)
        is_exact &= (host.span_lows == 0) & (host.span_stops > 0)
        is_short &= lengths == 1
    for span in range(len(lengths)):
        if is_short[span] and host.span_stops[span] > 0:
            together[int(lengths[span])].append(span)
        else:
            if is_exact[span]:
                groups.extend(_exact_groups(host, span, dtype, exact_slots or 0))
            else:
                groups.extend(_single_groups(host, span, dtype))
            order.extend(range(host.starts[span], host.starts[span + 1]))
    for num_rows, spans in together.items():
        if len(spans) > 1:
            is_padded = bool(is_exact[spans].all())
            groups.append(_batched_group(host, spans, num_rows, dtype, is_padded=is_padded))
        elif is_exact[spans[0]]:
            groups.extend(_exact_groups(host, spans[0], dtype, exact_slots or 0))
        else:
            groups.extend(_single_groups(host, spans[0], dtype))
        order.extend(
            row for span in spans for row in range(host.starts[span], host.starts[span + 1])
        )
    return AttentionPlan(tuple(groups), _inverse(order), _blind_rows(host))


def _inverse(order: list[int]) -> Tensor | None:
    """Where each row lies in the joined output, or None when that is its own place."""
    joined = np.asarray(order, np.int64)
    if np.array_equal(joined, np.arange(len(joined))):
        return None
    return torch.from_numpy(np.argsort(joined))


def _blind_rows(host: _HostBatch) -> Tensor | None:
    sees = host.lows < host.limits
    if host.window_lows is not None and host.window_stops is not None:
        sees = sees | (host.window_lows < host.window_stops)
    return None if sees.all() else torch.from_numpy(np.flatnonzero(~sees))


def _single_groups(host: _HostBatch, span: int, dtype: torch.dtype) -> list[SpanGroup]:
    """A span by itself, in tiles of rows when it is long and causal."""
    rows = host.rows(span)
    low, stop = int(host.span_lows[span]), int(host.span_stops[span])
    if rows.stop - rows.start <= _TILE_ROWS or host.window_lows is not None:
        return [_single_group(host, span, rows, (low, stop), dtype)]
    tiles = []
    for start in range(rows.start, rows.stop, _TILE_ROWS):
        tile = slice(start, min(start + _TILE_ROWS, rows.stop))
        # A row that sees nothing may have any first entry and any limit.
        tile_low = min(max(low, int(host.lows[tile].min())), stop)
        tile_stop = min(stop, int(host.limits[tile].max()))
        tiles.append(_single_group(host, span, tile, (tile_low, tile_stop), dtype))
    return tiles


def _single_group(
    host: _HostBatch, span: int, rows: slice, seen: tuple[int, int], dtype: torch.dtype
) -> SpanGroup:
    entries = np.arange(*seen)
    first_slot = slot_index = None
    if host.contiguous[span] and len(entries):
        first_slot = int(host.slots(span, entries[:1])[0])
    elif len(entries):
        low = int(host.span_lows[span])
        entries = entries[host.seen_entries(span)[seen[0] - low : seen[1] - low]]
        slot_index = torch.from_numpy(host.slots(span, entries))
    # One row sees all that its span sees.
    is_single = rows.stop - rows.start == 1
    return SpanGroup(
        num_spans=1,
        num_rows=rows.stop - rows.start,
        num_entries=len(entries),
        first_row=rows.start,
        row_index=None,
        first_slot=first_slot,
        slot_index=slot_index,
        mask=None if is_single else _mask(host.visible(rows, entries)[None], dtype),
    )


def _exact_length(length: int) -> int:
    longest = _EXACT_LENGTHS[-1]
    if length > longest:
        return -(-length // longest) * longest
    return next(exact for exact in _EXACT_LENGTHS if length <= exact)


def _exact_groups(
    host: _HostBatch, span: int, dtype: torch.dtype, num_slots: int
) -> list[SpanGroup]:
    """The rows of a span one by one, in tiles over as many entries as make no difference.

    Rows with windows of several entries only draft what the rows before them verify: they run
    together, and whatever stands behind them in the span.
    """
    rows = host.rows(span)
    stop = rows.stop
    if host.window_lows is not None and host.window_stops is not None:
        widths = host.window_stops[rows] - host.window_lows[rows]
        if widths.max() > 1:
            stop = rows.start + int(np.argmax(widths > 0))
    starts = range(rows.start, stop, _EXACT_ROWS)
    tiles = [slice(start, min(start + _EXACT_ROWS, stop)) for start in starts]
    groups = [_exact_group(host, span, tile, dtype, num_slots) for tile in tiles]
    if stop < rows.stop:
        seen = (int(host.span_lows[span]), int(host.span_stops[span]))
        groups.append(_single_group(host, span, slice(stop, rows.stop), seen, dtype))
    return groups


def _exact_group(
    host: _HostBatch, span: int, rows: slice, dtype: torch.dtype, num_slots: int
) -> SpanGroup:
    stop = int(host.limits[rows].max())
    if host.window_stops is not None:
        stop = max(stop, int(host.window_stops[rows].max()))
    length = _exact_length(max(stop, 1))
    first_slot, slot_index = int(host.slots(span, np.zeros(1, np.int64))[0]), None
    if not host.contiguous[span] or first_slot + length > num_slots:
        slots = np.full(length, first_slot)
        slots[:stop] = host.slots(span, np.arange(stop))
        slot_index = torch.from_numpy(slots)
    visible = host.visible(rows, np.arange(length))[:, None]
    return SpanGroup(
        num_spans=rows.stop - rows.start,
        num_rows=1,
        num_entries=length,
        first_row=rows.start,
        row_index=None,
        first_slot=None if slot_index is not None else first_slot,
        slot_index=slot_index,
        mask=_mask(visible, dtype, is_kept=True),
        is_shared=True,
    )


def _batched_group(
    host: _HostBatch,
    spans: list[int],
    num_rows: int,
    dtype: torch.dtype,
    *,
    is_padded: bool = False,
) -> SpanGroup:
    """Short spans of one length; entries beyond a span's own repeat its first seen one."""
    seen = [host.span_lows[span] + np.flatnonzero(host.seen_entries(span)) for span in spans]
    num_entries = max(len(entries) for entries in seen)
    if is_padded:
        num_entries = _exact_length(num_entries)
    slots = np.empty((len(spans), num_entries), np.int64)
    visible = np.zeros((len(spans), num_rows, num_entries), np.bool_)
    for index, (span, entries) in enumerate(zip(spans, seen, strict=True)):
        own = host.slots(span, entries)
        slots[index, : len(own)], slots[index, len(own) :] = own, own[0]
        visible[index, :, : len(own)] = host.visible(host.rows(span), entries)
    rows = (host.starts[spans][:, None] + np.arange(num_rows)).ravel()
    adjacent = bool((np.diff(rows) == 1).all())
    return SpanGroup(
        num_spans=len(spans),
        num_rows=num_rows,
        num_entries=num_entries,
        first_row=int(rows[0]) if adjacent else None,
        row_index=None if adjacent else torch.from_numpy(rows),
        first_slot=None,
        slot_index=torch.from_numpy(slots.ravel()),
        mask=_mask(visible, dtype, is_kept=is_padded),
    )


def _mask(
    visible: NDArray[np.bool_], dtype: torch.dtype, *, is_kept: bool = False
) -> Tensor | None:
    """[n, m, L] as numbers to add; a row that sees nothing sees all, and is zeroed afterwards.

    is_kept: also where every row sees everything
    """
    blind = ~visible.any(axis=2, keepdims=True)
    visible = visible | blind
    if visible.all() and not is_kept:
        return None
    hidden = torch.from_numpy(~visible)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))[:, None]
