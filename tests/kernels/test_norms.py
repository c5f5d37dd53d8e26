import pytest
import torch

from kernels import add_rms_norm, layer_norm, rms_norm
from kernels.norms import add_rms_norm_reference, layer_norm_reference, rms_norm_reference
from tests.kernels.batches import HALF_TYPES

SHAPES = [(0, 8), (1, 1), (3, 576), (5, 1023), (2, 1024), (2, 1025)]


def tolerance(dtype):
    # One rounding of the result; float32 sums in another order, and a GPU's own inverse root.
    eps = (8 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    return {"atol": eps, "rtol": eps}


def draw(shape, dtype, device):
    return (3 * torch.randn(shape)).to(dtype).to(device), torch.rand(shape[1]).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_agrees_with_reference(shape, dtype, device):
    x, weight = draw(shape, dtype, device)
    expected = rms_norm_reference(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_agrees_with_reference(shape, dtype, device):
    x, weight = draw(shape, dtype, device)
    residual = torch.randn(shape).to(dtype).to(device)
    kept = residual.clone()
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, expected, **tolerance(dtype))
    torch.testing.assert_close(total, expected_total, **tolerance(dtype))
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_agrees_with_reference(shape, with_bias, dtype, device):
    x, weight = draw(shape, dtype, device)
    bias = torch.randn(shape[1]).to(dtype).to(device) if with_bias else None
    expected = layer_norm_reference(x, weight, bias, 1e-5)
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), expected, **tolerance(dtype))


def test_rms_norm_by_hand():
    normed = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(normed, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_rows_of_a_strided_input(device):
    wide = torch.randn(4, 64, device=device)
    weight = torch.rand(32, device=device)
    expected = rms_norm_reference(wide[:, ::2], weight, 1e-6)
    torch.testing.assert_close(rms_norm(wide[:, ::2], weight, 1e-6), expected)


def test_zeros_stay_zeros(device):
    normed = rms_norm(torch.zeros(2, 8, device=device), torch.ones(8, device=device), 1e-6)
    assert normed.eq(0).all()


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_weights_multiply_before_the_result_is_rounded(dtype, device):
    """Rounding in between, as some authors' code does, gives other numbers in half precision."""
    x, weight = draw((64, 576), dtype, device)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-5)
    once = (wide * weight.float()).to(dtype)
    twice = wide.to(dtype) * weight
    assert not torch.equal(once, twice)
    normed = rms_norm(x, weight, 1e-5)
    error = (normed.double() - (wide.double() * weight.double())).abs().mean()
    assert error < 1.01 * (once.double() - wide.double() * weight.double()).abs().mean()
    assert error < 0.9 * (twice.double() - wide.double() * weight.double()).abs().mean()
