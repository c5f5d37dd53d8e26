import os
import subprocess
import sys

import pytest
import torch

from kernels import linear, quantize_int8
from kernels.linear import linear_reference

SHAPES = [(576, 1536), (576, 960), (64, 48), (33, 7)]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_int8_agrees_with_exact_integers(inputs, outputs, rows, with_bias):
    x, weight = torch.randn(rows, inputs), quantize_int8(torch.randn(outputs, inputs))
    bias = torch.randn(outputs) if with_bias else None
    expected = linear_reference(x, weight, bias)
    # Integer sums are exact; a tie of the rounding may fall the other way.
    torch.testing.assert_close(linear(x, weight, bias), expected, atol=2e-2, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_row_of_int8_product_does_not_depend_on_its_neighbours(inputs, outputs):
    x, weight = torch.randn(64, inputs), quantize_int8(torch.randn(outputs, inputs))
    alone = torch.cat([linear(x[row : row + 1], weight) for row in range(64)])
    for rows in (2, 3, 8, 16, 17, 33, 64):
        assert torch.equal(linear(x[:rows], weight), alone[:rows])


def test_int8_is_close_to_the_float_product():
    x, weight = torch.randn(16, 576), torch.randn(1536, 576)
    exact, rounded = linear(x, weight), linear(x, quantize_int8(weight))
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_int8_weight_is_within_half_a_level():
    weight = torch.randn(32, 64)
    packed = quantize_int8(weight)
    half_level = weight.abs().amax(1, keepdim=True) / 127 / 2
    assert ((packed.dense() - weight).abs() <= half_level * 1.001).all()
    assert (packed.in_features, packed.out_features) == (64, 32)


def test_zero_rows_and_zero_weights_give_zeros():
    weight = torch.randn(8, 16)
    weight[3] = 0
    x = torch.randn(2, 16)
    x[0] = 0
    product = linear(x, quantize_int8(weight))
    assert product[0].eq(0).all()
    assert product[:, 3].eq(0).all()


def test_row_with_one_large_entry_scales_by_it():
    x = torch.zeros(1, 64)
    x[0, 5] = -1e6
    weight = torch.randn(8, 64)
    packed = quantize_int8(weight)
    torch.testing.assert_close(linear(x, packed)[0], -1e6 * packed.dense()[:, 5])


def test_half_precision_rows_keep_their_type():
    x, weight = torch.randn(3, 64, dtype=torch.bfloat16), quantize_int8(torch.randn(8, 64))
    product = linear(x, weight)
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product, linear(x.float(), weight).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_product(dtype):
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((3, 64), (8, 64), (8,)))
    expected = linear_reference(x, weight, bias)
    torch.testing.assert_close(linear(x, weight, bias), expected, atol=0.1, rtol=0.02)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"x must be \[rows, 64\]"):
        linear(torch.randn(2, 32), quantize_int8(torch.randn(8, 64)))


OTHER_CPU = """
import torch
from kernels import linear, quantize_int8
from kernels.linear import linear_reference
torch.manual_seed(0)
weight = torch.randn(96, 256)
weight[:48] = 1.0
x = torch.randn(17, 256)
x[:4] = 1.0
x[4:8] = -1.0
packed = quantize_int8(weight)
product, expected = linear(x, packed), linear_reference(x, packed)
assert (product - expected).abs().max() < 0.2, (product - expected).abs().max()
assert (product - x @ weight.t()).norm() / product.norm() < 0.03
assert torch.equal(linear(x[:1], packed), product[:1])
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_cpus_without_int8_instructions_do_not_saturate(instructions):
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", OTHER_CPU], env=environment, check=True)
