"""`Bucket`: the shapes in which steps are captured as CUDA graphs."""

from bisect import bisect_left
from dataclasses import dataclass

from kernels import PagedBatch

# Up to about 256 rows a step takes as long as reading the weights, so rows added by padding cost
# little; beyond that it takes so long that launching its kernels one by one hides behind it.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Spans of at most so many rows take the smallest tiles; a step of longer spans has a few or many.
_NARROW_SPAN = 4
_FEW_SPANS = 2
# Limits decide how many programs share a prefix: a factor of eight between buckets is near enough.
_ENTRIES = (2048, 16_384, 131_072)


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """What a step may have at most. Sorted, the first that holds a step wastes the least.

    num_rows:  rows of the step, and scored rows
    num_pages: pages of a sequence
    max_span:  rows of a span
    num_spans: spans
    """

    num_rows: int
    num_pages: int
    max_span: int
    num_spans: int


def graph_buckets(
    *, max_sequences: int, max_rows: int, context_length: int, page_size: int
) -> tuple[Bucket, ...]:
    """The rising buckets that an engine of this size captures."""
    entries = sorted({min(limit, context_length) for limit in _ENTRIES} | {context_length})
    rows = ROWS[: bisect_left(ROWS, max_rows) + 1]
    buckets = set()
    for count in rows:
        most = min(count, max_sequences)
        shapes = {(_NARROW_SPAN, most)} if count < 2 * _NARROW_SPAN * max_sequences else set()
        if count > _NARROW_SPAN:
            shapes |= {(count, min(_FEW_SPANS, most)), (count, most)}
        for max_span, num_spans in shapes:
            for limit in entries:
                buckets.add(Bucket(count, -(-limit // page_size), max_span, num_spans))
    return tuple(sorted(buckets))


def bucket_of(batch: PagedBatch, buckets: tuple[Bucket, ...], *, page_size: int) -> Bucket | None:
    """The first of the rising buckets that holds a step, or None when none does."""
    # One tuple sorts before every bucket of as many rows.
    for bucket in buckets[bisect_left(buckets, Bucket(batch.num_rows, 0, 0, 0)) :]:
        if (
            batch.max_limit <= bucket.num_pages * page_size
            and batch.page_table.shape[1] <= bucket.num_pages
            and batch.max_span <= bucket.max_span
            and batch.num_spans <= bucket.num_spans
        ):
            return bucket
    return None
