import pytest
import torch

from kernels import PagedBatch, plan_attention
from kernels.cuda_graph import CapturedSteps, bucket_for, pad_batch
from kernels.paged_attention_kernel import launch_paged_attention
from tests.kernels.batches import any_order, causal, dense_attention, make_case

BUCKET = {"num_rows": 32, "num_spans": 8, "num_pages": 12, "max_limit": 192}


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (17, None)])
def test_smallest_bucket_that_holds(count, bucket):
    assert bucket_for(count, (1, 4, 16)) == bucket


def test_padding_rows_form_one_span_that_sees_and_stores_nothing():
    case = make_case((causal(20, 3), any_order(9, 2, 2)))
    padded = pad_batch(case.batch, **BUCKET)
    assert padded.span_starts.tolist() == [0, 3, 7, 32, 32, 32, 32, 32, 32]
    assert padded.slots[7:].eq(-1).all()
    assert padded.limits[7:].eq(0).all()
    assert padded.window_stops[7:].eq(0).all()
    assert torch.equal(padded.page_table[:2, :2], case.batch.page_table)
    assert (padded.num_rows, padded.num_spans) == (32, 8)


@pytest.mark.parametrize(
    "change", [{"num_rows": 6}, {"num_spans": 2}, {"num_pages": 1}, {"max_limit": 22}]
)
def test_batch_larger_than_its_bucket_is_refused(change):
    case = make_case((causal(20, 3), any_order(9, 2, 2)))
    with pytest.raises(ValueError, match="do not fit a bucket"):
        pad_batch(case.batch, **(BUCKET | change))


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="captured on CUDA devices, got cpu"):
        CapturedSteps(lambda inputs: (inputs["x"],), torch.device("cpu"))


@pytest.mark.kernel
def test_padded_batch_gives_the_same_rows(device):
    case = make_case((causal(20, 3), any_order(9, 2, 2), causal(90, 1)), device=device)
    padded = pad_batch(case.batch, **BUCKET)
    q = torch.zeros(32, *case.q.shape[1:], device=device)
    q[: case.q.shape[0]] = case.q
    output = launch_paged_attention(q, case.keys, case.values, padded, num_splits=2, scale=0.25)
    rows = case.q.shape[0]
    expected = dense_attention(case, 0.25)
    torch.testing.assert_close(output[:rows].double(), expected, atol=2e-5, rtol=2e-5)
    assert output[rows:].eq(0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replay_with_other_data_gives_what_running_gives(device):
    cases = [make_case((causal(start, 3), causal(40, 1)), device=device) for start in (7, 60)]
    q = torch.zeros(32, 4, 16, device=device)
    captured = CapturedSteps(lambda inputs: (attend(inputs),), device)
    for case in cases:
        padded = pad_batch(case.batch, **BUCKET)
        q[:4] = case.q
        pages = torch.zeros(2, 64, 16, 2, 16, device=device)
        pages[0, : len(case.keys)], pages[1, : len(case.values)] = case.keys, case.values
        inputs = {
            "q": q,
            "pages": pages,
            "span_starts": padded.span_starts,
            "page_table": padded.page_table,
            "limits": padded.limits,
        }
        (output,) = captured.run("bucket", inputs)
        expected = dense_attention(case, 0.25)
        torch.testing.assert_close(output[:4].double(), expected, atol=2e-5, rtol=2e-5)
    assert captured.num_captured == 1


def attend(inputs):
    batch = PagedBatch(
        span_starts=inputs["span_starts"],
        page_table=inputs["page_table"],
        slots=inputs["limits"].long(),
        limits=inputs["limits"],
        max_span=3,
        max_limit=192,
    )
    plan = plan_attention(batch, page_size=16, num_heads=4, num_kv_heads=2)
    return launch_paged_attention(
        inputs["q"], *inputs["pages"], batch, num_splits=plan.num_splits, scale=0.25
    )
