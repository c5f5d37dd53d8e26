from dataclasses import replace

import pytest
import torch

from kernels import paged_attention, plan_attention
from kernels.attention.paged_attention import paged_attention_reference
from tests.kernels.batches import (
    HALF_TYPES,
    Span,
    any_order,
    branches,
    canvas,
    causal,
    dense_attention,
    make_case,
    settle_and_canvas,
    sliding,
)

SCALE = 0.25
# Sums of up to a few thousand products in float32.
TOLERANCE = 2e-5

MIXED = (
    causal(0, 40),
    causal(57, 1),
    settle_and_canvas(24, 8, 8),
    any_order(19, 3, 5),
    branches(30, 3),
    causal(130, 1),
    canvas(0, 5),
)


def attend(case):
    plan = plan_attention(
        case.batch,
        page_size=case.page_size,
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        dtype=case.q.dtype,
    )
    return paged_attention(case.q, case.keys, case.values, case.batch, plan, scale=SCALE)


def assert_right(case, tolerance=TOLERANCE):
    expected = dense_attention(case, SCALE)
    torch.testing.assert_close(attend(case).double(), expected, atol=tolerance, rtol=tolerance)


def test_reference_agrees_with_dense_masks():
    case = make_case(MIXED)
    output = paged_attention_reference(case.q, case.keys, case.values, case.batch, scale=SCALE)
    torch.testing.assert_close(output.double(), dense_attention(case, SCALE), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("page_size", [16, 32])
def test_mixed_batch_agrees_with_dense_masks(page_size, scattered, device):
    assert_right(make_case(MIXED, page_size=page_size, scattered=scattered, device=device))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (9, 3), (8, 1)])
def test_heads_share_keys(num_heads, num_kv_heads, device):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    assert_right(make_case(MIXED, **heads, device=device))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_head_sizes(head_dim, device):
    assert_right(make_case(MIXED[:4], head_dim=head_dim, device=device))


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("span", [causal(0, 270), causal(211, 300), sliding(100, 280, 64)])
def test_long_spans_agree_with_dense_masks(span, scattered, device):
    assert_right(make_case((span, causal(9, 1)), scattered=scattered, device=device))


@pytest.mark.parametrize("limit", [15, 16, 17, 31, 33])
def test_limit_inside_at_the_edge_of_and_beyond_a_page(limit, device):
    ahead = Span(((0, limit, 0, 0), (0, limit + 20, 0, 0)))
    assert_right(make_case((ahead, causal(3, 1)), device=device))


def test_many_one_row_spans_of_different_lengths(device):
    spans = tuple(causal(length, 1) for length in [*range(0, 60, 2), 200, 301, 75])
    assert_right(make_case(spans, device=device))


def test_entry_in_first_interval_and_window_is_seen_once(device):
    assert_right(make_case((Span(((0, 20, 10, 30), (5, 12, 3, 9))),), device=device))


def test_row_that_sees_nothing_gets_zeros(device):
    blind = Span(((0, 0, 0, 0), (0, 5, 0, 0), (7, 7, 0, 0)))
    case = make_case((blind, Span(((0, 0, 0, 0),)), causal(300, 1)), device=device)
    output = attend(case)
    assert output[[0, 2, 3]].eq(0).all()
    torch.testing.assert_close(
        output.double(), dense_attention(case, SCALE), atol=TOLERANCE, rtol=0
    )


def test_blind_rows_of_a_long_span_get_zeros(device):
    rows = tuple((0, 0, 0, 0) if row < 260 else (0, 300, 0, 0) for row in range(290))
    assert_right(make_case((Span(rows),), device=device))


def test_empty_batch_gives_nothing(device):
    case = make_case((causal(0, 1),), device=device)
    empty = type(case.batch)(
        span_starts=case.batch.span_starts[:1],
        page_table=case.batch.page_table[:0],
        slots=case.batch.slots[:0],
        limits=case.batch.limits[:0],
        max_span=0,
        max_limit=0,
    )
    plan = plan_attention(empty, page_size=16, num_heads=4, num_kv_heads=2)
    output = paged_attention(case.q[:0], case.keys, case.values, empty, plan, scale=SCALE)
    assert output.shape == (0, 4, 16)


def test_row_alone_and_among_others_is_the_same(device):
    torch.manual_seed(1)
    together = make_case((causal(70, 1), causal(20, 1), canvas(40, 8)), device=device)
    mixed = attend(together)
    alone = make_case((causal(70, 1),), device=device)
    alone = type(alone)(
        together.q[:1],
        together.keys,
        together.values,
        type(alone.batch)(
            span_starts=together.batch.span_starts[:2],
            page_table=together.batch.page_table[:1],
            slots=together.batch.slots[:1],
            limits=together.batch.limits[:1],
            max_span=1,
            max_limit=71,
        ),
        together.page_size,
        together.num_heads,
        together.num_kv_heads,
        together.spans[:1],
    )
    torch.testing.assert_close(attend(alone), mixed[:1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_types_agree_within_their_rounding(dtype, device):
    # The output is rounded to dtype: half a unit in the last place of values up to about 4.
    case = make_case(MIXED, dtype=dtype, device=device)
    assert_right(case, tolerance=4 * torch.finfo(dtype).eps)


def test_error_is_flat_over_a_canvas(device):
    case = make_case((canvas(1500, 32),), device=device, head_dim=64)
    error = (attend(case).double() - dense_attention(case, SCALE)).abs().amax((1, 2))
    assert error[:16].max() < 8 * error[16:].max() + 1e-7
    assert error[16:].max() < 8 * error[:16].max() + 1e-7


def test_heads_that_do_not_divide_are_refused():
    case = make_case((causal(0, 2),))
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        plan_attention(case.batch, page_size=16, num_heads=3, num_kv_heads=2)


def test_queries_of_another_shape_are_refused():
    case = make_case((causal(0, 2),))
    plan = plan_attention(case.batch, page_size=16, num_heads=4, num_kv_heads=2)
    with pytest.raises(ValueError, match="does not fit 2 rows"):
        paged_attention(case.q[:1], case.keys, case.values, case.batch, plan, scale=1.0)


def exact(case):
    slots = case.keys.shape[0] * case.keys.shape[1]
    plan = plan_attention(
        case.batch,
        page_size=case.page_size,
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        dtype=case.q.dtype,
        exact_slots=slots,
    )
    # Masked entries are read: they must be numbers, whatever they are.
    keys, values = case.keys.nan_to_num(3.0), case.values.nan_to_num(-5.0)
    return paged_attention(case.q, keys, values, case.batch, plan, scale=SCALE)


@pytest.mark.parametrize("scattered", [True, False])
def test_exact_rows_agree_with_dense_masks(scattered):
    case = make_case(MIXED, scattered=scattered)
    torch.testing.assert_close(
        exact(case).double(), dense_attention(case, SCALE), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("num_heads", [1, 6])
@pytest.mark.parametrize("prefix", [1, 40, 63, 64, 70, 120, 250, 447, 500, 511, 600, 1100])
def test_exact_rows_are_the_same_bits_in_any_company(prefix, num_heads):
    """A row alone, among the rows of its span, with branches behind it, and beside other spans.

    The branches themselves, which only draft, are the same whatever other spans there are.
    """
    sizes = {"num_heads": num_heads, "num_kv_heads": 1 if num_heads == 1 else 2}
    company = (causal(33, 1), causal(prefix + 9, 2), causal(0, 200))
    whole = make_case((branches(prefix, 4), *company), **sizes)
    together = exact(whole)
    starts = whole.batch.span_starts.tolist()
    plain = int((whole.batch.window_stops[: starts[1]] == 0).sum())
    assert 1 < plain < starts[1]
    for row in range(plain):
        lone = _only_rows(whole, span=0, rows=slice(row, row + 1))
        assert torch.equal(exact(lone)[0], together[row]), row
    alone = exact(_only_rows(whole, span=0, rows=slice(0, starts[1])))
    assert torch.equal(alone, together[: starts[1]])
    for span in (1, 3):
        row = starts[span + 1] - 1
        lone = _only_rows(whole, span=span, rows=slice(row, row + 1))
        assert torch.equal(exact(lone)[0], together[row])


def _only_rows(case, *, span, rows):
    """The same case with some rows of one span."""
    batch = case.batch
    windows = batch.window_starts is not None
    limit = int(batch.limits[rows].max())
    stop = int(batch.window_stops[rows].max()) if windows else 0
    return replace(
        case,
        q=case.q[rows].contiguous(),
        batch=replace(
            batch,
            span_starts=torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            page_table=batch.page_table[span : span + 1],
            slots=batch.slots[rows],
            limits=batch.limits[rows],
            firsts=None if batch.firsts is None else batch.firsts[rows],
            window_starts=batch.window_starts[rows] if windows else None,
            window_stops=batch.window_stops[rows] if windows else None,
            max_span=rows.stop - rows.start,
            max_limit=max(limit, stop),
        ),
    )
