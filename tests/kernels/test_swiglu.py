import pytest
import torch

from kernels import swiglu
from kernels.swiglu import swiglu_reference


def tolerance(dtype):
    # A GPU's exponential and division in float32 are off by a few units in the last place. In half
    # precision the result is rounded once, and on a CPU silu(gate) before the product.
    eps = (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    return {"atol": eps, "rtol": eps}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (3, 3072), (65, 2046)])
def test_agrees_with_reference(shape, dtype, device):
    gate_up = (3 * torch.randn(shape)).to(dtype).to(device)
    torch.testing.assert_close(swiglu(gate_up), swiglu_reference(gate_up), **tolerance(dtype))


def test_by_hand():
    output = swiglu(torch.tensor([[0.0, 100.0, 5.0, 2.0]]))
    torch.testing.assert_close(output, torch.tensor([[0.0, 200.0]]))


def test_input_is_kept(device):
    gate_up = torch.randn(3, 8, device=device)
    kept = gate_up.clone()
    swiglu(gate_up)
    assert torch.equal(gate_up, kept)


def test_large_negative_gate_gives_zero(device):
    assert swiglu(torch.tensor([[-200.0, 3.0]], device=device)).item() == 0.0


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even last dimension, got 3"):
        swiglu(torch.zeros(1, 3))
