"""How long the last program of `paged_attention` runs after the others: a model of its launch.

Takes the real geometry (tile sizes, splits, order of programs) of a batch and fills the places of
a GPU with its programs in launch order. A program's time is that of its tiles, each the larger of
reading its entries and multiplying them, plus one tile to start. Nothing here is measured: a
program alone on a multiprocessor would run faster than the model says, so tails are overstated.

Run: python -m tests.bench.grid_simulator
"""

import heapq
from dataclasses import dataclass

import torch

from kernels import PagedBatch
from kernels.attention.paged_attention_kernel import MIN_SPLIT_TILES, tile_size
from kernels.attention.plan import plan_splits
from tests.bench.harness import print_table

# An H200: multiprocessors, bytes/s of memory, 16-bit operations/s.
MULTIPROCESSORS = 132
MEMORY_RATE = 4.3e12
MATMUL_RATE = 7.9e14
CAPABILITY = 90
# Programs that share a multiprocessor, by rows of a tile: registers of eight warps fill one.
RESIDENT = {16: 2, 32: 2, 64: 2, 128: 1}


@dataclass(frozen=True)
class Span:
    """Rows of a step in one sequence, the last of which sees so many entries."""

    rows: int
    entries: int


@dataclass(frozen=True)
class Heads:
    """Heads of a layer; 8B-sized by default."""

    query: int = 32
    key_value: int = 8
    dim: int = 128

    @property
    def group(self) -> int:
        return self.query // self.key_value


def tile_time(rows: int, entries: int, dim: int) -> float:
    """Seconds of one tile on a multiprocessor of its own."""
    read = 2 * 2 * entries * dim / (MEMORY_RATE / MULTIPROCESSORS)
    multiplied = 4 * rows * entries * dim / (MATMUL_RATE / MULTIPROCESSORS)
    return max(read, multiplied)


def programs(spans: list[Span], heads: Heads) -> tuple[list[float], int]:
    """Times of all programs in launch order, and how many share a multiprocessor; causal spans."""
    longest = max(span.rows for span in spans)
    size = tile_size(longest, heads.group, heads.dim, torch.bfloat16, CAPABILITY)
    splits = plan_splits(_batch(spans), heads.query, heads.key_value)
    rows_of_tile = size.rows // heads.group
    resident = RESIDENT[size.rows]
    one = resident * tile_time(size.rows, size.entries, heads.dim)
    row_tiles = []
    for span in spans:
        for start in range(0, span.rows, rows_of_tile):
            last = min(start + rows_of_tile, span.rows)
            row_tiles.append(-(-(span.entries - span.rows + last) // size.entries))
    times = []
    for split in range(splits):
        for _ in range(heads.key_value):
            for tiles in row_tiles:
                share = max(-(-tiles // splits), MIN_SPLIT_TILES)
                own = min(share, tiles - split * share)
                if own > 0:
                    times.append(one * (own + 1))
    return times, resident


def makespan(times: list[float], places: int) -> float:
    """When the last program ends if each starts, in order, where a place is free first."""
    ends = [0.0] * places
    for time in times:
        heapq.heappush(ends, heapq.heappop(ends) + time)
    return max(ends)


def ideal(spans: list[Span], heads: Heads) -> float:
    """All tiles that spans need, each in the tile size that suits it, spread evenly."""
    total = 0.0
    for span in spans:
        size = tile_size(span.rows, heads.group, heads.dim, torch.bfloat16, CAPABILITY)
        rows_of_tile = size.rows // heads.group
        for start in range(0, span.rows, rows_of_tile):
            last = min(start + rows_of_tile, span.rows)
            tiles = (span.entries - span.rows + last) / size.entries
            total += tiles * tile_time(size.rows, size.entries, heads.dim)
    return heads.key_value * total / MULTIPROCESSORS


def over_ideal(spans: list[Span], heads: Heads | None = None) -> float:
    """Makespan over ideal, 1 at best."""
    heads = heads or Heads()
    times, resident = programs(spans, heads)
    return makespan(times, resident * MULTIPROCESSORS) / ideal(spans, heads)


BATCHES = {
    "256 rows, 4k each": [Span(1, 4096)] * 256,
    "256 rows, 1k to 8k": [Span(1, 1024 + 28 * index) for index in range(256)],
    "1 row, 128k": [Span(1, 131_072)],
    "255 rows of 1k, one of 64k": [Span(1, 1024)] * 255 + [Span(1, 65_536)],
    "64 canvases of 32, 2k": [Span(32, 2048)] * 64,
    "prompt of 2048": [Span(2048, 2048)],
    "64 rows of 4k, prompt of 2048": [Span(1, 4096)] * 64 + [Span(2048, 2048)],
}


def _batch(spans: list[Span]) -> PagedBatch:
    count = sum(span.rows for span in spans)
    return PagedBatch(
        span_starts=torch.zeros(len(spans) + 1, dtype=torch.int32),
        page_table=torch.zeros((len(spans), 1), dtype=torch.int32),
        slots=torch.zeros(count, dtype=torch.int64),
        limits=torch.zeros(count, dtype=torch.int32),
        max_span=max(span.rows for span in spans),
        max_limit=max(span.entries for span in spans),
    )


def main() -> None:
    """Print the model's answer for every batch."""
    rows = [{"batch": name, "over ideal": over_ideal(spans)} for name, spans in BATCHES.items()]
    print_table(rows)


if __name__ == "__main__":
    main()
