import numpy as np
import pytest
import torch

from sampler.step.step_buffer import StepBuffer
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_that_is_not_waited_for_keeps_its_numbers():
    buffer = StepBuffer(torch.device("cuda"))
    busy = torch.randn(4096, 4096, device="cuda")
    kept = []
    for number in range(4):
        buffer.reset()
        placed = buffer.place(np.full(1000, number, dtype=np.int64))
        for _ in range(20):
            busy = busy @ busy
        buffer.flush()
        kept.append(placed.clone())
    assert [int(one.unique()) for one in kept] == [0, 1, 2, 3]


def test_the_memory_of_a_step_is_reused_when_its_copy_was_made():
    class Event:
        num_waits = 0

        def synchronize(self):
            self.num_waits += 1

    buffer = StepBuffer(torch.device("cpu"), is_staged=True)
    buffer.reset()
    buffer._copied = Event()
    buffer.place(np.arange(3))
    assert buffer._copied.num_waits == 0
    buffer.reset()
    assert buffer._copied.num_waits == 1
