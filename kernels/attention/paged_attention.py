"""Attention of a step's rows to their sequences' cache pages; every mask is integers per row.

Shapes: T rows, Hq query heads, Hkv key-value heads, D head size.
From: Kwon et al. 2023, PagedAttention; arXiv 2309.06180. Per-row limits and windows are ours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.attention.paged_attention_kernel import launch_paged_attention
from kernels.attention.paged_batch import PagedBatch
from kernels.attention.plan import AttentionPlan, SpanGroup
from kernels.dispatch import runs_triton


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: PagedBatch,
    plan: AttentionPlan,
    *,
    scale: float,
) -> Tensor:
    """What every row of q [T, Hq, D] reads from the entries it sees: [T, Hq, D] in q's type.

    keys, values: [pages, page_size, Hkv, D] of one layer, contiguous, the batch's own entries
                  already written. Of one span, all entries from the smallest first to the
                  largest limit and from the smallest window start to the largest window stop
                  must be; others may hold anything
    plan:         of this batch, by `plan_attention`
    scale:        multiplies q . k before the softmax

    Raises ValueError when q's shape fits neither the batch nor the cache.
    """
    if q.shape[0] != batch.num_rows or q.shape[2] != keys.shape[3] or q.shape[1] % keys.shape[2]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit {batch.num_rows} rows and keys {tuple(keys.shape)}"
        )
    if runs_triton(q):
        return launch_paged_attention(
            q, keys, values, batch, num_splits=plan.num_splits, scale=scale
        )
    return _paged_attention_cpu(q, keys, values, plan, scale)


def paged_attention_reference(
    q: Tensor, keys: Tensor, values: Tensor, batch: PagedBatch, *, scale: float
) -> Tensor:
    """Define the operation row by row in float32."""
    output = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    page_size, group = keys.shape[1], q.shape[1] // keys.shape[2]
    starts = batch.span_starts.tolist()
    for span in range(batch.num_spans):
        for row in range(starts[span], starts[span + 1]):
            first = 0 if batch.firsts is None else int(batch.firsts[row])
            seen = set(range(first, int(batch.limits[row])))
            if batch.window_starts is not None and batch.window_stops is not None:
                seen |= set(range(int(batch.window_starts[row]), int(batch.window_stops[row])))
            if not seen:
                continue
            entries = torch.tensor(sorted(seen), device=q.device)
            pages = batch.page_table[span].long()[entries // page_size]
            k = keys[pages, entries % page_size].float().repeat_interleave(group, dim=1)
            v = values[pages, entries % page_size].float().repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,ehd->he", q[row].float(), k) * scale
            output[row] = torch.einsum("he,ehd->hd", scores.softmax(-1), v)
    return output.to(q.dtype)


def _paged_attention_cpu(
    q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """One fused attention per group of spans; keys are read in place wherever they can be."""
    q = q.contiguous()
    outputs = [_attend(q, keys, values, group, scale) for group in plan.groups]
    if not outputs:
        return torch.zeros_like(q)
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.row_order is not None:
        joined = joined[plan.row_order]
    if plan.blind_rows is not None:
        joined = joined.index_fill(0, plan.blind_rows, 0)
    return joined


def _attend(q: Tensor, keys: Tensor, values: Tensor, group: SpanGroup, scale: float) -> Tensor:
    """Output [n * m, Hq, D] of one group."""
    spans, rows, entries = group.num_spans, group.num_rows, group.num_entries
    heads, dim, kv_heads = q.shape[1], q.shape[2], keys.shape[2]
    if entries == 0:
        return torch.zeros((spans * rows, heads, dim), dtype=q.dtype)
    if group.row_index is not None:
        q = q.index_select(0, group.row_index)
    offset = int(q.storage_offset()) + (group.first_row or 0) * heads * dim
    k = _entries(keys, group)
    v = _entries(values, group)
    if rows == 1:
        # Query heads that share a key-value head become rows: each key is read once.
        folded = q.as_strided(
            (spans, kv_heads, heads // kv_heads, dim),
            (heads * dim, heads // kv_heads * dim, dim, 1),
            offset,
        )
        mask = group.mask
        if group.is_shared and spans * kv_heads == 1:
            # Work for one thread alone is split among all of them inside its products, and rounds
            # in another way than the same work beside other work.
            folded, k, v = (part.expand(2, -1, -1, -1) for part in (folded, k, v))
            mask = None if mask is None else mask.expand(2, -1, -1, -1)
        output = functional.scaled_dot_product_attention(folded, k, v, mask, scale=scale)
        return output[:spans].reshape(spans, heads, dim)
    q = q.as_strided((spans, heads, rows, dim), (rows * heads * dim, dim, heads * dim, 1), offset)
    output = functional.scaled_dot_product_attention(
        q, k, v, group.mask, scale=scale, enable_gqa=heads != kv_heads
    )
    return output.transpose(1, 2).reshape(spans * rows, heads, dim)


def _entries(cache: Tensor, group: SpanGroup) -> Tensor:
    """A group's keys or values [n, Hkv, L, D]: a view of the cache, or gathered."""
    _, _, heads, dim = cache.shape
    row = heads * dim
    if group.slot_index is not None:
        cache = cache.view(-1, row).index_select(0, group.slot_index)
    offset = int(cache.storage_offset()) + (group.first_slot or 0) * row
    between_spans = 0 if group.is_shared else group.num_entries * row
    return cache.as_strided(
        (group.num_spans, heads, group.num_entries, dim),
        (between_spans, dim, row, 1),
        offset,
    )
