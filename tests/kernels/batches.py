"""Batches over a paged cache whose masks the tests build independently."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from kernels import PagedBatch

# The interpreter multiplies bfloat16 matrices wrongly.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_TYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Span:
    """One sequence's rows: what each may see, as (first, limit, window_start, window_stop)."""

    rows: tuple[tuple[int, int, int, int], ...]

    @property
    def num_entries(self):
        return max(max(limit, stop) for _, limit, _, stop in self.rows)


def causal(start, count):
    return Span(tuple((0, start + row + 1, 0, 0) for row in range(count)))


def canvas(start, count):
    return Span(tuple((0, start + count, 0, 0) for _ in range(count)))


def settle_and_canvas(start, settling, drafted):
    """A finished block that settles with the next canvas behind it, in one span."""
    first = tuple((0, start + settling, 0, 0) for _ in range(settling))
    second = tuple((0, start + settling + drafted, 0, 0) for _ in range(drafted))
    return Span(first + second)


def any_order(start, settling, drafted):
    """Clean tokens causal in rank, then masks that see settled entries and themselves."""
    clean = tuple((0, start + row + 1, 0, 0) for row in range(settling))
    known = start + settling
    return Span(clean + tuple((0, known, known + row, known + row + 1) for row in range(drafted)))


def branches(prefix, width):
    """Proposals, and behind each a branch of drafts that sees its own prefix and its branch."""
    rows = [(0, prefix + row + 1, 0, 0) for row in range(width)]
    entry = prefix + width
    for branch in range(width):
        seen = prefix + branch + 1
        rows.extend((0, seen, entry, entry + row + 1) for row in range(width))
        entry += width
    return Span(tuple(rows))


def sliding(start, count, window):
    rows = range(start, start + count)
    return Span(tuple((max(0, row + 1 - window), row + 1, 0, 0) for row in rows))


@dataclass(frozen=True)
class Case:
    """A batch with its cache: entries that nobody may see are NaN."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    batch: PagedBatch
    page_size: int
    num_heads: int
    num_kv_heads: int
    spans: tuple[Span, ...]


def seen_mask(span):
    """[rows, entries] bool."""
    mask = torch.zeros(len(span.rows), span.num_entries, dtype=torch.bool)
    for row, (first, limit, start, stop) in enumerate(span.rows):
        mask[row, first:limit] = True
        mask[row, start:stop] = True
    return mask


def make_case(
    spans,
    *,
    page_size=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype=torch.float32,
    device="cpu",
    scattered=True,
    windows=True,
):
    """A batch of spans; pages in random order when scattered, else side by side."""
    counts = [max(1, -(-span.num_entries // page_size)) for span in spans]
    total = sum(counts) + 2
    pages = torch.randperm(total) if scattered else torch.arange(total)
    table = torch.full((len(spans), max(counts)), 10**6, dtype=torch.int32)
    keys = torch.full((total, page_size, num_kv_heads, head_dim), float("nan"), dtype=dtype)
    values = keys.clone()
    taken = 0
    for index, (span, count) in enumerate(zip(spans, counts, strict=True)):
        own = pages[taken : taken + count]
        taken += count
        table[index, :count] = own
        seen = seen_mask(span).any(0).nonzero()[:, 0]
        where = (own[seen // page_size], seen % page_size)
        shape = (len(seen), num_kv_heads, head_dim)
        keys[where] = torch.randn(shape).to(dtype)
        values[where] = torch.randn(shape).to(dtype)
    rows = torch.tensor([row for span in spans for row in span.rows], dtype=torch.int32)
    lengths = torch.tensor([0] + [len(span.rows) for span in spans], dtype=torch.int32)
    has_windows = windows and bool((rows[:, 2] < rows[:, 3]).any())
    batch = PagedBatch(
        span_starts=lengths.cumsum(0, dtype=torch.int32).to(device),
        page_table=table.to(device),
        slots=torch.arange(len(rows), device=device),
        limits=rows[:, 1].contiguous().to(device),
        max_span=max(len(span.rows) for span in spans),
        max_limit=max(span.num_entries for span in spans),
        firsts=rows[:, 0].contiguous().to(device) if bool((rows[:, 0] > 0).any()) else None,
        window_starts=rows[:, 2].contiguous().to(device) if has_windows else None,
        window_stops=rows[:, 3].contiguous().to(device) if has_windows else None,
    )
    q = torch.randn(len(rows), num_heads, head_dim).to(dtype).to(device)
    cache = (keys.to(device), values.to(device))
    return Case(q, *cache, batch, page_size, num_heads, num_kv_heads, tuple(spans))


def far_cache(device, monkeypatch):
    """Keys or values [pages, 64, 8, 128] of one layer, zero, of more than 2^31 elements.

    On a CPU memory that nobody touches does not exist. The interpreter would touch all of it when
    it copies arguments back, which it need not: they are on the CPU already.
    """
    shape = (2**31 // (64 * 8 * 128) + 8, 64, 8, 128)
    if device.type == "cpu":
        monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        return torch.from_numpy(np.zeros(shape, dtype=np.float16))
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of GPU memory")
    return torch.zeros(shape, dtype=torch.float16, device=device)


def dense_attention(case, scale):
    """Softmax over a dense mask per span, in float64: independent of `paged_attention`."""
    outputs = []
    start = 0
    group = case.num_heads // case.num_kv_heads
    for index, span in enumerate(case.spans):
        mask = seen_mask(span).to(case.q.device)
        entries = torch.arange(span.num_entries, device=case.q.device)
        pages = case.batch.page_table[index, entries // case.page_size].long()
        k = case.keys[pages, entries % case.page_size].double().nan_to_num()
        v = case.values[pages, entries % case.page_size].double().nan_to_num()
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        q = case.q[start : start + len(span.rows)].double()
        scores = torch.einsum("rhd,ehd->hre", q, k) * scale
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1).nan_to_num()
        outputs.append(torch.einsum("hre,ehd->rhd", weights, v))
        start += len(span.rows)
    return torch.cat(outputs)
