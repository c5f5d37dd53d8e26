import pytest
import torch

from kernels import quantize_int8
from kernels.linear_kernel import launch_int8_linear

pytestmark = pytest.mark.kernel
SIZES = [(0, 8, 8), (1, 127, 63), (17, 129, 65), (70, 64, 200)]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_agrees_with_a_product_of_rounded_weights(rows, inputs, outputs, dtype, with_bias, device):
    packed = quantize_int8(torch.randn(outputs, inputs))
    x = torch.randn(rows, inputs).to(dtype).to(device)
    bias = torch.randn(outputs).to(dtype).to(device) if with_bias else None
    dense = packed.dense().to(device)
    values = (dense / packed.scales.to(device)[:, None]).round().to(torch.int8)
    output = launch_int8_linear(x, values, packed.scales.to(device), bias)
    expected = x.float() @ dense.t() + (0 if bias is None else bias.float())
    # Float32: over a hundred roundings of partial sums of up to about 40, in whatever order.
    # Float16: one rounding of such a sum.
    tolerance = (512 if dtype == torch.float32 else 64) * torch.finfo(dtype).eps
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
