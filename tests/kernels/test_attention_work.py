import pytest
import torch

from kernels import paged_attention, plan_attention
from tests.bench.attention_work import Layout, Work, make_tensors, torch_attention

LAYOUT = Layout("small", 4, 2, 16)


@pytest.mark.parametrize(
    "work", [Work(2, 40, 1), Work(3, 20, 8, canvas=8), Work(1, 0, 40), Work(2, 30, 16, canvas=8)]
)
def test_both_sides_of_the_benchmark_do_the_same_work(work, device):
    tensors = make_tensors(work, LAYOUT, page_size=16, device=device)
    plan = plan_attention(
        tensors.batch, page_size=16, num_heads=4, num_kv_heads=2, dtype=torch.bfloat16
    )
    output = paged_attention(
        tensors.q, tensors.keys, tensors.values, tensors.batch, plan, scale=0.25
    )
    expected = torch_attention(tensors, work, 0.25)()
    expected = expected.transpose(1, 2).reshape_as(output)
    torch.testing.assert_close(output, expected, atol=3e-2, rtol=3e-2)


def test_work_is_counted_over_what_rows_see():
    work = Work(2, 10, 4, canvas=2)
    assert work.limits().tolist() == [12, 12, 14, 14]
    assert work.flops(LAYOUT) == 4 * 2 * 52 * 4 * 16
    assert work.bytes_moved(LAYOUT) == 2 * 16 * (2 * 2 * 14 * 2 + 2 * 2 * 4 * 4)
