import pytest
import torch

from kernels import PagedBatch
from kernels.attention.paged_attention_kernel import launch_paged_attention
from tests.kernels.batches import (
    Span,
    any_order,
    branches,
    canvas,
    causal,
    dense_attention,
    far_cache,
    make_case,
    settle_and_canvas,
    sliding,
)

pytestmark = pytest.mark.kernel
SCALE = 0.25
# Float32: sums in another order. Float16: probabilities are rounded before the second product.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}

MIXED = (
    causal(0, 21),
    causal(57, 1),
    settle_and_canvas(24, 4, 8),
    any_order(19, 3, 5),
    branches(30, 3),
    causal(130, 1),
    canvas(0, 5),
)


def assert_right(case, num_splits=1):
    output = launch_paged_attention(
        case.q, case.keys, case.values, case.batch, num_splits=num_splits, scale=SCALE
    )
    tolerance = TOLERANCE[case.q.dtype]
    expected = dense_attention(case, SCALE)
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_splits", [1, 2, 4])
@pytest.mark.parametrize("page_size", [16, 64, 256])
def test_mixed_batch_agrees_with_dense_masks(page_size, num_splits, dtype, device):
    assert_right(make_case(MIXED, page_size=page_size, dtype=dtype, device=device), num_splits)


@pytest.mark.parametrize("prefix", [14, 15, 16, 31, 32, 33, 127, 128, 129])
def test_entries_straddle_the_edge_of_a_tile(prefix, device):
    assert_right(make_case((causal(prefix, 1), canvas(prefix, 3)), device=device), 2)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 33])
def test_rows_straddle_the_edge_of_a_tile(rows, device):
    assert_right(make_case((causal(5, rows), causal(3, 1), causal(0, rows)), device=device))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (7, 1), (14, 2)])
def test_groups_that_do_not_fill_a_tile(num_heads, num_kv_heads, device):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    assert_right(make_case(MIXED[:5], **heads, device=device), 2)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_head_sizes(head_dim, device):
    case = make_case(MIXED[1:4], head_dim=head_dim, dtype=torch.float16, device=device)
    assert_right(case, 2)


@pytest.mark.parametrize("num_splits", [2, 8, 13])
def test_splits_merge_over_a_long_prefix(num_splits, device):
    assert_right(make_case((canvas(700, 4), causal(3, 1)), device=device), num_splits)


def test_adding_split_outputs_would_be_seen(device):
    case = make_case((canvas(700, 4),), device=device)
    halves = [
        launch_paged_attention(case.q, case.keys, case.values, half, num_splits=1, scale=SCALE)
        for half in (
            limited(case.batch, limits=torch.full((4,), 352, dtype=torch.int32, device=device)),
            limited(case.batch, firsts=torch.full((4,), 352, dtype=torch.int32, device=device)),
        )
    ]
    wrong = (halves[0] + halves[1]) / 2
    assert (wrong.double() - dense_attention(case, SCALE)).abs().max() > 100 * 2e-5


def limited(batch, *, limits=None, firsts=None):
    return PagedBatch(
        span_starts=batch.span_starts,
        page_table=batch.page_table,
        slots=batch.slots,
        limits=batch.limits if limits is None else limits,
        max_span=batch.max_span,
        max_limit=batch.max_limit,
        firsts=firsts,
    )


def test_window_before_between_and_after_the_first_interval(device):
    rows = ((40, 90, 0, 4), (40, 90, 30, 50), (40, 90, 88, 130), (40, 90, 4, 30))
    assert_right(make_case((Span(rows), Span(((0, 9, 0, 9),))), device=device), 2)


def test_sliding_windows_with_attention_sinks(device):
    rows = tuple((max(0, row - 30), row + 1, 0, 4) for row in range(60, 100))
    assert_right(make_case((Span(rows), sliding(90, 30, 40)), device=device), 2)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_row_that_sees_nothing_gets_zeros(num_splits, device):
    blind = Span(((0, 0, 0, 0), (0, 5, 0, 0), (7, 7, 0, 0)))
    case = make_case((blind, Span(((0, 0, 0, 0),)), causal(200, 1)), device=device)
    output = assert_right(case, num_splits)
    assert output[[0, 2, 3]].eq(0).all()


def test_error_is_flat_over_a_canvas(device):
    case = make_case((canvas(600, 32),), head_dim=64, device=device)
    output = launch_paged_attention(
        case.q, case.keys, case.values, case.batch, num_splits=2, scale=SCALE
    )
    error = (output.double() - dense_attention(case, SCALE)).abs().amax((1, 2))
    assert error[:16].max() < 8 * error[16:].max() + 1e-7
    assert error[16:].max() < 8 * error[:16].max() + 1e-7


@pytest.mark.parametrize("limit", [15, 16, 17, 31, 33, 60])
def test_limit_inside_at_the_edge_of_and_beyond_a_page_and_the_span(limit, device):
    """Rows of one span that see less and more than the span's own entries."""
    rows = ((0, limit, 0, 0), (0, limit + 1, 0, 0), (0, 20, 0, 0), (3, limit + 40, 0, 0))
    assert_right(make_case((Span(rows), causal(7, 2)), device=device), 2)


@pytest.mark.parametrize("num_splits", [1, 4])
def test_large_scores_stay_finite(num_splits, device):
    """One entry takes all the mass; sums of exponentials of the others must not overflow."""
    case = make_case((canvas(300, 3), causal(90, 1)), device=device)
    case.q[:] *= 1e3
    output = assert_right(case, num_splits)
    assert output.isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_scores_of_minus_infinity_count_as_nothing(device):
    """Keys so large that their product with a query is minus infinity in float32."""
    case = make_case((causal(40, 1),), num_heads=1, num_kv_heads=1, device=device, scattered=False)
    case.q[:] = 1e30
    case.keys.nan_to_num_(0.0)
    case.keys.view(-1, 16)[5:9] = -1e30
    case.keys.view(-1, 16)[9:41] = 0.0
    case.keys.view(-1, 16)[:5] = 0.0
    output = launch_paged_attention(
        case.q, case.keys, case.values, case.batch, num_splits=1, scale=SCALE
    )
    values = case.values.view(-1, 16)
    seen = torch.cat((values[:5], values[9:41])).mean(0)
    torch.testing.assert_close(output[0, 0], seen, atol=2e-5, rtol=2e-5)


def test_no_rows(device):
    case = make_case((causal(20, 3),), device=device)
    output = launch_paged_attention(
        case.q[:0], case.keys, case.values, case.batch, num_splits=2, scale=SCALE
    )
    assert output.shape == (0, 4, 16)


def test_padding_spans_without_rows_are_passed_over(device):
    case = make_case((causal(20, 3), causal(9, 2)), device=device)
    starts = case.batch.span_starts
    padded = PagedBatch(
        span_starts=torch.cat((starts, starts[-1:], starts[-1:])),
        page_table=torch.cat((case.batch.page_table, case.batch.page_table)),
        slots=case.batch.slots,
        limits=case.batch.limits,
        max_span=8,
        max_limit=64,
    )
    output = launch_paged_attention(
        case.q, case.keys, case.values, padded, num_splits=1, scale=SCALE
    )
    torch.testing.assert_close(output.double(), dense_attention(case, SCALE), atol=2e-5, rtol=2e-5)


def test_heads_larger_than_any_tile_are_refused(device):
    case = make_case((causal(0, 1),), head_dim=257, device=device)
    with pytest.raises(ValueError, match="up to 256 entries are supported, got 257"):
        assert_right(case)


def test_groups_larger_than_any_tile_are_refused(device):
    case = make_case((causal(0, 1),), num_heads=64, num_kv_heads=1, device=device)
    with pytest.raises(ValueError, match="at most 32 query heads may share a key-value head"):
        assert_right(case)


def test_offsets_past_two_to_the_31(device, monkeypatch):
    keys, values = far_cache(device, monkeypatch), far_cache(device, monkeypatch)
    last = keys.shape[0] - 1
    keys[-1], values[-1] = torch.randn(2, *keys.shape[1:]).half().to(device)
    batch = PagedBatch(
        span_starts=torch.tensor([0, 1], dtype=torch.int32, device=device),
        page_table=torch.tensor([[last]], dtype=torch.int32, device=device),
        slots=torch.zeros(1, dtype=torch.int64, device=device),
        limits=torch.tensor([64], dtype=torch.int32, device=device),
        max_span=1,
        max_limit=64,
    )
    q = torch.randn(1, 32, 128).half().to(device)
    output = launch_paged_attention(q, keys, values, batch, num_splits=1, scale=SCALE)
    k = keys[-1].float().repeat_interleave(4, dim=1)
    v = values[-1].float().repeat_interleave(4, dim=1)
    weights = (torch.einsum("hd,ehd->he", q[0].float(), k) * SCALE).softmax(1)
    expected = torch.einsum("he,ehd->hd", weights, v)
    torch.testing.assert_close(output[0].float(), expected, atol=4e-3, rtol=4e-3)
