import pytest
import torch

from kernels.swiglu import swiglu_reference
from kernels.swiglu_kernel import launch_swiglu
from tests.kernels.test_swiglu import tolerance

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (2, 2046), (3, 2048), (2, 2050), (1, 6000)])
def test_agrees_with_reference(shape, dtype, device):
    gate_up = (3 * torch.randn(shape)).to(dtype).to(device)
    expected = swiglu_reference(gate_up)
    torch.testing.assert_close(launch_swiglu(gate_up), expected, **tolerance(dtype))


def test_large_gates_do_not_overflow(device):
    gate_up = torch.tensor([[-300.0, 300.0, 3.0, 2.0]], device=device)
    assert launch_swiglu(gate_up).tolist() == [[0.0, 600.0]]
