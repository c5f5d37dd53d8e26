from dataclasses import replace

import pytest
import torch

from kernels import (
    FeedMatrices,
    HeadLayout,
    Matrix,
    attend_rows,
    feed_rows,
    plan_attention,
    quantize_int8,
    rotary_rows,
)
from kernels.rotary import RotaryTable
from tests.kernels.batches import any_order, causal, make_case, settle_and_canvas

HIDDEN, INNER = 48, 80
BATCHES = [(causal(20, 1),), (causal(0, 37), causal(9, 1), settle_and_canvas(24, 8, 8))]


def rotary_of(rows, head_dim):
    angles = torch.rand(64, head_dim // 2) * 6
    table = RotaryTable(angles.cos(), angles.sin())
    return rotary_rows(table, torch.randint(64, (rows,)))


def composed(monkeypatch):
    """Take the path of single operations, each by whatever runs it here."""
    monkeypatch.setattr("kernels.layer_parts.native_matrix", lambda *_: None)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("spans", [*BATCHES, (any_order(19, 3, 5), causal(130, 1))])
def test_attending_in_one_call_gives_the_same_bits(monkeypatch, spans, with_norms, with_bias):
    case = make_case(spans, num_heads=6, num_kv_heads=2, head_dim=32)
    layout = HeadLayout(6, 2, 32, 0.2)
    if with_norms:
        layout = replace(layout, q_norm=torch.randn(32), k_norm=torch.randn(32))
    weight = quantize_int8(torch.randn(10 * 32, HIDDEN))
    qkv = Matrix(weight, torch.randn(10 * 32) if with_bias else None)
    x = torch.randn(case.batch.num_rows, HIDDEN)
    rotary = rotary_of(case.batch.num_rows, 32)
    plan = plan_attention(case.batch, page_size=case.page_size, num_heads=6, num_kv_heads=2)
    cache = (case.keys.clone(), case.values.clone())
    together = attend_rows(x, qkv, cache, case.batch, plan, rotary, layout)
    composed(monkeypatch)
    other = (case.keys.clone(), case.values.clone())
    assert torch.equal(attend_rows(x, qkv, other, case.batch, plan, rotary, layout), together)
    assert torch.equal(cache[0].nan_to_num(), other[0].nan_to_num())
    assert torch.equal(cache[1].nan_to_num(), other[1].nan_to_num())


def feeding(with_bias):
    def matrix(outputs, inputs):
        bias = torch.randn(outputs) if with_bias else None
        return Matrix(quantize_int8(torch.randn(outputs, inputs)), bias)

    return FeedMatrices(
        matrix(HIDDEN, 64),
        matrix(2 * INNER, HIDDEN),
        matrix(HIDDEN, INNER),
        torch.randn(HIDDEN),
        torch.randn(HIDDEN),
        1e-5,
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_feeding_in_one_call_gives_the_same_bits(monkeypatch, rows, with_bias):
    matrices = feeding(with_bias)
    attended, residual = torch.randn(rows, 64), torch.randn(rows, HIDDEN)
    together = feed_rows(attended, residual.clone(), matrices)
    composed(monkeypatch)
    apart = feed_rows(attended, residual.clone(), matrices)
    assert torch.equal(together[0], apart[0])
    assert torch.equal(together[1], apart[1])


def test_rows_that_are_fed_do_not_depend_on_those_beside_them():
    matrices = feeding(with_bias=True)
    attended, residual = torch.randn(19, 64), torch.randn(19, HIDDEN)
    together = feed_rows(attended, residual.clone(), matrices)[0]
    alone = [
        feed_rows(attended[row : row + 1], residual[row : row + 1].clone(), matrices)[0]
        for row in range(19)
    ]
    assert torch.equal(torch.cat(alone), together)


def test_float_weights_are_fed_by_single_operations():
    matrices = replace(feeding(with_bias=False), down=Matrix(torch.randn(HIDDEN, INNER)))
    attended, residual = torch.randn(4, 64), torch.randn(4, HIDDEN)
    normed, total = feed_rows(attended, residual.clone(), matrices)
    assert normed.shape == total.shape == residual.shape
    assert not torch.equal(total, residual)
