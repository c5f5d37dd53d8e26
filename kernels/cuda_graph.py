"""Functions of tensors captured as CUDA graphs by bucket, and replayed with other data.

A graph fixes shapes and addresses. A step is therefore run in a bucket that holds it: its tensors
fill the leading part of the captured inputs, and what lies behind is padding as it was captured.
Padding rows form a span of their own, see nothing and are stored nowhere. Page tables, limits,
seeds and flags are data.

Shapes: T rows, S spans, P pages; the same letters with a star are a bucket's.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.paged_batch import PagedBatch

# Runs before a capture: kernels compile, and tables that are made once are made outside of it.
_WARM_UPS = 2

Inputs = Mapping[str, Tensor]
Outputs = tuple[Tensor, ...]
Work = Callable[[], Outputs]
Replay = Callable[[], object]
# Records work: what repeats it, and the outputs that every repetition overwrites.
Recorder = Callable[[Work], tuple[Replay, Outputs]]


def bucket_for(count: int, buckets: Sequence[int]) -> int | None:
    """The smallest of the rising buckets that holds count, or None when none does."""
    place = bisect_left(buckets, count)
    return buckets[place] if place < len(buckets) else None


def padding_batch(
    *,
    num_rows: int,
    num_spans: int,
    num_pages: int,
    max_span: int,
    max_limit: int,
    has_windows: bool,
    device: torch.device,
) -> PagedBatch:
    """A batch of T* rows that are all padding, in S* spans of P* pages, for captured steps.

    One span more than a step may have is needed: padding rows are a span of their own. max_span
    and max_limit are the largest of the bucket: they decide tile sizes, and how many programs
    share a long prefix.
    """
    starts = torch.full((num_spans + 1,), num_rows, dtype=torch.int32, device=device)
    starts[0] = 0
    rows = torch.zeros(num_rows, dtype=torch.int32, device=device)
    return PagedBatch(
        span_starts=starts,
        page_table=torch.zeros((num_spans, num_pages), dtype=torch.int32, device=device),
        slots=torch.full((num_rows,), -1, dtype=torch.int64, device=device),
        limits=rows,
        max_span=max_span,
        max_limit=max_limit,
        window_starts=rows.clone() if has_windows else None,
        window_stops=rows.clone() if has_windows else None,
    )


def record_graph(device: torch.device) -> Recorder:
    """A recorder of CUDA graphs, which share their working memory; never replay two at once.

    Raises ValueError when the device is not a CUDA device.
    """
    if device.type != "cuda":
        raise ValueError(f"graphs are captured on CUDA devices, got {device}")
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> tuple[Replay, Outputs]:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = work()
        return graph.replay, outputs

    return record


@dataclass(slots=True)
class _Captured:
    """One graph.

    inputs:  what the graph reads
    padding: the inputs as they were captured
    filled:  lines of each input that the last run replaced
    """

    inputs: dict[str, Tensor]
    padding: dict[str, Tensor]
    filled: dict[str, int]
    replay: Replay
    outputs: Outputs


class CapturedSteps:
    """Graphs of one function of named tensors, by key.

    Outputs belong to the graph: the next run of the same key overwrites them.
    """

    def __init__(self, function: Callable[[Inputs], Outputs], record: Recorder) -> None:
        self._function = function
        self._record = record
        self._captured: dict[Hashable, _Captured] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether a graph of this key was captured."""
        return key in self._captured

    @property
    def num_captured(self) -> int:
        """How many graphs there are."""
        return len(self._captured)

    def capture(self, key: Hashable, inputs: Inputs) -> None:
        """Capture the function at inputs of these shapes, whose content is the padding."""
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        padding = {name: tensor.clone() for name, tensor in inputs.items()}
        replay, outputs = self._record(lambda: self._function(held))
        filled = dict.fromkeys(held, 0)
        self._captured[key] = _Captured(held, padding, filled, replay, outputs)

    def run(self, key: Hashable, inputs: Inputs) -> Outputs:
        """Replay with the inputs in front of the padding; inputs not given are all padding.

        Of an input with two dimensions, only whole lines become padding again: behind the end of
        a shorter line an earlier run's numbers may remain.

        Raises KeyError when the key was not captured, ValueError when an input is too large.
        """
        captured = self._captured[key]
        for name, held in captured.inputs.items():
            self._fill(captured, name, held, inputs.get(name))
        captured.replay()
        return captured.outputs

    def _fill(self, captured: _Captured, name: str, held: Tensor, given: Tensor | None) -> None:
        count = 0
        if given is not None:
            count = given.shape[0]
            if any(size > room for size, room in zip(given.shape, held.shape, strict=True)):
                raise ValueError(
                    f"{name} {tuple(given.shape)} does not fit a bucket of {tuple(held.shape)}"
                )
            held[tuple(slice(size) for size in given.shape)].copy_(given, non_blocking=True)
        old = captured.filled[name]
        if count < old:
            held[count:old].copy_(captured.padding[name][count:old], non_blocking=True)
        captured.filled[name] = count
