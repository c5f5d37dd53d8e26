import pytest
import torch

from kernels.norms import add_rms_norm_reference, rms_norm_reference
from kernels.norms_kernel import launch_rms_norm
from tests.kernels.test_norms import draw, tolerance

pytestmark = pytest.mark.kernel
SHAPES = [(0, 8), (1, 1), (3, 576), (5, 1023), (2, 1024), (2, 1025)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_agrees_with_reference(shape, dtype, device):
    x, weight = draw(shape, dtype, device)
    normed, total = launch_rms_norm(x, None, weight, 1e-5)
    torch.testing.assert_close(normed, rms_norm_reference(x, weight, 1e-5), **tolerance(dtype))
    assert total is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_of_a_sum_agrees_with_reference(shape, dtype, device):
    x, weight = draw(shape, dtype, device)
    residual = torch.randn(shape).to(dtype).to(device)
    normed, total = launch_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, expected, **tolerance(dtype))
    torch.testing.assert_close(total, expected_total, **tolerance(dtype))


def test_rows_of_a_strided_input(device):
    wide, weight = torch.randn(4, 64, device=device), torch.rand(32, device=device)
    normed, _ = launch_rms_norm(wide[:, ::2], wide[:, 1::2], weight, 1e-6)
    expected, _ = add_rms_norm_reference(wide[:, ::2], wide[:, 1::2], weight, 1e-6)
    torch.testing.assert_close(normed, expected)


def test_zeros_stay_zeros(device):
    zeros = torch.zeros(2, 8, device=device)
    normed, _ = launch_rms_norm(zeros, zeros, torch.ones(8, device=device), 1e-6)
    assert normed.eq(0).all()
