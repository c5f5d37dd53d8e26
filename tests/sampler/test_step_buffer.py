import numpy as np
import pytest
import torch

from sampler.step_buffer import StepBuffer
from tests.tiny import hash_engine, request, run_all

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.array([[1.5, -2.0], [0.25, 9.0]], dtype=np.float32),
    np.array([True, False, True]),
    np.zeros((0, 3), dtype=np.int32),
    np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
]


def same(placed, arrays):
    return all(
        np.array_equal(tensor.numpy(), array)
        and tensor.dtype == torch.from_numpy(array.copy()).dtype
        for tensor, array in zip(placed, arrays, strict=True)
    )


@pytest.mark.parametrize("is_staged", [True, False])
def test_what_is_placed_is_there_after_the_flush(is_staged):
    buffer = StepBuffer(torch.device("cpu"), is_staged=is_staged)
    for _ in range(2):
        buffer.reset()
        placed = [buffer.place(array) for array in ARRAYS]
        buffer.flush()
        assert same(placed, ARRAYS)


def test_a_step_larger_than_any_before_is_right_too():
    buffer = StepBuffer(torch.device("cpu"), is_staged=True)
    large = [np.arange(300_000, dtype=np.int64), np.arange(5, dtype=np.float32)]
    for _ in range(2):
        buffer.reset()
        placed = [buffer.place(array) for array in large]
        buffer.flush()
        assert same(placed, large)


def test_an_engine_with_a_staged_buffer_gives_the_same_answer():
    one = request("a", range(3, 20), max_tokens=9)
    plain = run_all(hash_engine(), one)["a"][0]
    engine = hash_engine()
    engine._buffer = StepBuffer(torch.device("cpu"), is_staged=True)
    assert run_all(engine, one)["a"][0] == plain
