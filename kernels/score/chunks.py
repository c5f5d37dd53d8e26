"""Partial scores of many rows: products of column chunks in scratch that stays in the L2 cache.

From some rows on a program that multiplies and folds at once is short of registers: one of them
fills a multiprocessor, and its matrix instructions wait for its logarithms. So the product is
PyTorch's own, a chunk of the vocabulary at a time, and a fold reads each chunk while it is in L2.

Shapes: R rows, V vocabulary entries of this rank, d entries of the residual stream.
"""

import torch
from torch import Tensor

from kernels.linear import Int8Weight
from kernels.noise_kernel import launch_noise_keys
from kernels.score.adjust_kernel import launch_adjust_
from kernels.score.buffer import buffer_rows, write_logits
from kernels.score.filtered_rows import suppressed_ids
from kernels.score.logits_kernel import TUNED, launch_fold_logits, num_splits
from kernels.score.partials import ScorePartials, empty_partials, merge_partials
from kernels.score.spec import ScoreSpec, spec_rows

# A third of the L2 cache of an H100 or H200 (50 MB): the head's columns stream through the rest.
CHUNK_BYTES = 16 * 2**20
# More rows would make chunks narrower than a tile of the fold.
MAX_ROWS = CHUNK_BYTES // (4 * TUNED[0])


def launch_chunked_partials(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    vocab_start: int,
) -> ScorePartials:
    """Partials of hidden [R, d], R at least 1, without expected embeddings.

    The head holds tokens from vocab_start on.
    """
    tiles = []
    for start in range(0, hidden.shape[0], MAX_ROWS):
        stop = min(start + MAX_ROWS, hidden.shape[0])
        own = spec_rows(spec, start, stop)
        tiles.append(_tile_partials(hidden[start:stop], head_weight, head_bias, own, vocab_start))
    return tiles[0] if len(tiles) == 1 else _join_rows(tiles)


def column_chunks(rows: int, vocab: int) -> list[slice]:
    """Equal chunks of columns, the last one shorter, whose logits of R rows fit into scratch."""
    tile = TUNED[0]
    most = CHUNK_BYTES // (4 * rows * tile) * tile
    count = -(-vocab // most)
    width = -(-vocab // (count * tile)) * tile
    return [slice(start, min(start + width, vocab)) for start in range(0, vocab, width)]


def _tile_partials(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    vocab_start: int,
) -> ScorePartials:
    rows, device = hidden.shape[0], hidden.device
    vocab = head_weight.shape[0] if isinstance(head_weight, Tensor) else head_weight.out_features
    chunks = column_chunks(rows, vocab)
    counts = [num_splits(rows, chunk.stop - chunk.start) for chunk in chunks]
    partials = empty_partials(sum(counts), rows, 0, device)
    keys = launch_noise_keys(spec.seeds, spec.positions, spec.purposes, spec.attempts)
    suppressed = suppressed_ids(spec.suppressed, device)
    first_partial = 0
    for chunk, count in zip(chunks, counts, strict=True):
        place = {"column_start": vocab_start + chunk.start}
        logits = buffer_rows(device, CHUNK_BYTES, rows, chunk.stop - chunk.start)
        write_logits(hidden, head_weight, head_bias, chunk, logits)
        launch_adjust_(logits, spec, suppressed, **place)
        launch_fold_logits(logits, keys, spec, partials, **place, first_partial=first_partial)
        first_partial += count
    return partials


def _join_rows(tiles: list[ScorePartials]) -> ScorePartials:
    """Partials of tiles of rows side by side; tiles may differ in how many a row has."""
    merged = [merge_partials(tile) for tile in tiles]
    numbers = torch.cat([tile.numbers for tile in merged], dim=2)
    return ScorePartials(numbers, torch.cat([tile.tokens for tile in merged], dim=2), None)
