"""Whole steps captured as CUDA graphs and replayed with other data.

A graph fixes shapes and addresses, so a step is padded to a bucket: rows behind the last span form
a span of their own, see nothing and are stored nowhere. Page tables, limits, seeds and flags are
data: they are copied into the captured inputs before a replay.

Shapes: T rows, S spans, P pages; the same letters with a star are a bucket's.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from kernels.paged_batch import PagedBatch

# Runs before a capture: kernels compile, and tables that are made once are made outside of it.
_WARM_UPS = 2

Inputs = Mapping[str, Tensor]
Outputs = tuple[Tensor, ...]


def bucket_for(count: int, buckets: Sequence[int]) -> int | None:
    """The smallest of the rising buckets that holds count, or None when none does."""
    place = bisect_left(buckets, count)
    return buckets[place] if place < len(buckets) else None


def pad_batch(
    batch: PagedBatch, *, num_rows: int, num_spans: int, num_pages: int, max_limit: int
) -> PagedBatch:
    """The batch in the shape of a bucket: T*, S* and P* as given, for captured steps on a GPU.

    max_limit is the bucket's: it decides how many programs share a long prefix.

    Raises ValueError when the batch does not fit; one span is kept for padding rows.
    """
    rows, spans, pages = batch.num_rows, batch.num_spans, batch.page_table.shape[1]
    if rows > num_rows or spans >= num_spans or pages > num_pages or batch.max_limit > max_limit:
        raise ValueError(
            f"{rows} rows, {spans} spans, {pages} pages and limits up to {batch.max_limit} do not "
            f"fit a bucket of {num_rows}, {num_spans - 1}, {num_pages} and {max_limit}"
        )
    starts = batch.span_starts.new_full((num_spans + 1,), num_rows)
    starts[: spans + 1] = batch.span_starts
    table = batch.page_table.new_zeros((num_spans, num_pages))
    table[:spans, :pages] = batch.page_table
    return PagedBatch(
        span_starts=starts,
        page_table=table,
        slots=_pad(batch.slots, num_rows, -1),
        limits=_pad(batch.limits, num_rows, 0),
        max_span=max(batch.max_span, 1),
        max_limit=max_limit,
        firsts=None if batch.firsts is None else _pad(batch.firsts, num_rows, 0),
        window_starts=_pad_optional(batch.window_starts, num_rows),
        window_stops=_pad_optional(batch.window_stops, num_rows),
    )


def _pad(rows: Tensor, num_rows: int, value: int) -> Tensor:
    padded = rows.new_full((num_rows,), value)
    padded[: rows.shape[0]] = rows
    return padded


def _pad_optional(rows: Tensor | None, num_rows: int) -> Tensor | None:
    return None if rows is None else _pad(rows, num_rows, 0)


class CapturedSteps:
    """Graphs of one function of named tensors, by bucket.

    Invariant: all inputs of one key have the same shapes and types. Outputs belong to the graph:
    the next call of the same key overwrites them.
    """

    def __init__(self, function: Callable[[Inputs], Outputs], device: torch.device) -> None:
        """Capture function on a CUDA device; raises ValueError for another one."""
        if device.type != "cuda":
            raise ValueError(f"graphs are captured on CUDA devices, got {device}")
        self._function = function
        self._device = device
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Inputs, Outputs]] = {}

    @property
    def num_captured(self) -> int:
        """How many buckets have been captured."""
        return len(self._graphs)

    def run(self, key: Hashable, inputs: Inputs) -> Outputs:
        """Run the function on inputs: by replay, after a capture when the key is new."""
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
        graph, captured, outputs = self._graphs[key]
        for name, tensor in inputs.items():
            captured[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return outputs

    def _capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, Outputs]:
        own = {name: tensor.to(self._device, copy=True) for name, tensor in inputs.items()}
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function(own)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._function(own)
        return graph, own, outputs
