"""Scores of many rows by chunks of columns in scratch."""

import pytest
import torch

from kernels import finish_scores, quantize_int8
from kernels.score import chunks
from kernels.score.chunks import CHUNK_BYTES, MAX_ROWS, column_chunks
from kernels.score.rows import score_rows_reference
from kernels.score.rows_kernel import launch_score_partials
from tests.kernels.score.test_rows import draw
from tests.kernels.score.test_rows_kernel import assert_same, full_spec


@pytest.mark.parametrize("vocab", [1, 2048, 2049, 49_152, 151_936, 262_144])
@pytest.mark.parametrize("rows", [33, 64, 256, 1000, MAX_ROWS])
def test_chunks_cover_the_vocabulary_within_scratch(rows, vocab):
    chunks = column_chunks(rows, vocab)
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, vocab)
    widths = [chunk.stop - chunk.start for chunk in chunks]
    assert 0 < max(widths) * rows * 4 <= CHUNK_BYTES
    # Starts of whole tiles: slices of scales and bitmask words are aligned.
    assert all(chunk.start % 2048 == 0 for chunk in chunks)


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_chunks_and_tiles_of_rows_give_the_scores_of_the_definition(kind, monkeypatch, device):
    """Three chunks, two tiles of rows, penalties and bans in every one."""
    rows, vocab = 34, 5000
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 20 * 2048)
    monkeypatch.setattr(chunks, "MAX_ROWS", 20)
    half = kind == "float16"
    hidden, head = draw(rows, vocab, device, dtype=torch.float16 if half else torch.float32)
    spec = full_spec(rows, vocab, device)
    packed = quantize_int8(head) if kind == "int8" else head
    place = {"vocab_start": 0, "full_vocab": vocab}
    scores = finish_scores(launch_score_partials(hidden, packed, None, spec, **place), spec)
    dense = packed.dense() if kind == "int8" else head.float()
    expected = score_rows_reference(hidden.float(), dense, None, spec)
    assert_same(scores, expected, {"atol": 1e-4, "rtol": 1e-4})
