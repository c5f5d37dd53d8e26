"""Runs networks of the tests over sequences: whole, in parts, in any order, with any limits."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kernels import Int8Weight, KVCache, PagedBatch, allocate_kv_cache
from weights import NetworkInput

PAGE_SIZE = 4


@dataclass(frozen=True)
class Golden:
    """A folder of tests/golden."""

    folder: Path
    cases: list
    tensors: dict

    def case(self, name):
        return next(case for case in self.cases if case["name"] == name)

    def __getitem__(self, name):
        return self.tensors[name]


def open_golden(folder):
    return Golden(folder, _cases(folder), load_file(folder / "cases.safetensors"))


def _cases(folder):
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    return list(cases) if isinstance(cases, list) else [{"name": k, **v} for k, v in cases.items()]


def new_cache(network, num_entries, num_sequences=1) -> KVCache:
    pages = -(-num_entries // PAGE_SIZE) * num_sequences
    return allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=pages,
        page_size=PAGE_SIZE,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=network.token_table.dtype,
        device=network.token_table.device,
        is_zeroed=network.is_row_exact,
    )


@dataclass(frozen=True)
class Span:
    """Rows of one sequence; entries first .. first + len(ids) of its cache are written.

    pages: the sequence's page numbers; limits: per row; positions: entries by default
    """

    ids: list
    first: int
    limits: list
    pages: list
    positions: list | None = None
    firsts: list | None = None
    windows: list | None = None


def run_step(network, cache, spans, *, draft_rows=None, score_rows=None):
    """Run one step; returns logits [R, V], of all rows unless told otherwise."""
    with torch.inference_mode():
        step = step_input(spans, draft_rows=draft_rows, score_rows=score_rows)
        hidden = network.forward(step, cache)
        return head_logits(network, hidden)


def step_input(spans, *, draft_rows=None, score_rows=None):
    lengths = [len(span.ids) for span in spans]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    width = max(len(span.pages) for span in spans)
    table = [list(span.pages) + [0] * (width - len(span.pages)) for span in spans]
    slots = [
        span.pages[entry // PAGE_SIZE] * PAGE_SIZE + entry % PAGE_SIZE
        for span in spans
        for entry in range(span.first, span.first + len(span.ids))
    ]
    limits = [limit for span in spans for limit in span.limits]
    positions = [
        position
        for span in spans
        for position in (span.positions or range(span.first, span.first + len(span.ids)))
    ]
    firsts = windows = None
    if any(span.firsts for span in spans):
        firsts = [f for span in spans for f in (span.firsts or [0] * len(span.ids))]
    if any(span.windows for span in spans):
        windows = [w for span in spans for w in (span.windows or [(0, 0)] * len(span.ids))]
    batch = PagedBatch(
        span_starts=torch.tensor(starts, dtype=torch.int32),
        page_table=torch.tensor(table, dtype=torch.int32),
        slots=torch.tensor(slots),
        limits=torch.tensor(limits, dtype=torch.int32),
        max_span=max(lengths),
        max_limit=max([*limits, *(stop for _, stop in windows or [])]),
        firsts=None if firsts is None else torch.tensor(firsts, dtype=torch.int32),
        window_starts=None
        if windows is None
        else torch.tensor([w[0] for w in windows], dtype=torch.int32),
        window_stops=None
        if windows is None
        else torch.tensor([w[1] for w in windows], dtype=torch.int32),
    )
    return NetworkInput(
        token_ids=torch.tensor([token for span in spans for token in span.ids]),
        positions=torch.tensor(positions),
        score_rows=torch.arange(starts[-1]) if score_rows is None else torch.tensor(score_rows),
        batch=batch,
        draft_rows=None if draft_rows is None else torch.tensor(draft_rows),
    )


def head_logits(network, hidden):
    """Logits of hidden rows through the head, in float."""
    head = network.head_weight
    logits = hidden @ (head.dense() if isinstance(head, Int8Weight) else head).T
    return logits if network.head_bias is None else logits + network.head_bias


def causal_limits(first, count):
    return [entry + 1 for entry in range(first, first + count)]


def block_limits(first, count, block_length, end):
    return [
        min((entry // block_length + 1) * block_length, end)
        for entry in range(first, first + count)
    ]


def all_pages(num_entries, sequence=0):
    count = -(-num_entries // PAGE_SIZE)
    return list(range(sequence * count, (sequence + 1) * count))


def whole_logits(network, ids, *, limits=None, positions=None, **of_span):
    """Logits [L, V] of one forward over a whole sequence, causal unless limits are given."""
    ids = list(ids)
    cache = new_cache(network, len(ids))
    span = Span(
        ids,
        0,
        causal_limits(0, len(ids)) if limits is None else limits,
        all_pages(len(ids)),
        positions=positions,
        **of_span,
    )
    return run_step(network, cache, [span])


def chunked_logits(network, ids, sizes, *, positions=None):
    """Causal logits [L, V] of a sequence run in parts of the given sizes."""
    cache = new_cache(network, len(ids))
    rows, start = [], 0
    for size in sizes:
        part = list(ids[start : start + size])
        at = None if positions is None else positions[start : start + size]
        span = Span(part, start, causal_limits(start, len(part)), all_pages(len(ids)), at)
        rows.append(run_step(network, cache, [span]))
        start += size
    return torch.cat(rows)


def greedy_ids(network, prompt, num_new, *, stop_id=None):
    """Prompt and greedily decoded tokens, with the logits [N, V] that chose them."""
    ids = list(prompt)
    cache = new_cache(network, len(ids) + num_new)
    pages = all_pages(len(ids) + num_new)
    fed, chosen = 0, []
    for _ in range(num_new):
        part = ids[fed:]
        span = Span(part, fed, causal_limits(fed, len(part)), pages)
        logits = run_step(network, cache, [span], score_rows=[len(part) - 1])
        fed = len(ids)
        chosen.append(logits[0])
        ids.append(int(logits[0].argmax()))
        if ids[-1] == stop_id:
            break
    return ids, torch.stack(chosen)
