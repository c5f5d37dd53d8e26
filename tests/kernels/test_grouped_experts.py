import pytest
import torch

from kernels import grouped_experts
from kernels.grouped_experts import grouped_experts_reference
from tests.kernels.batches import HALF_TYPES


def draw(rows, experts, chosen, width=32, intermediate=24, dtype=torch.float32, device="cpu"):
    x = torch.randn(rows, width).to(dtype)
    gate_up = (torch.randn(experts, 2 * intermediate, width) / width**0.5).to(dtype)
    down = (torch.randn(experts, width, intermediate) / intermediate**0.5).to(dtype)
    ids = torch.rand(rows, experts).argsort(1)[:, :chosen].contiguous()
    weights = torch.rand(rows, chosen)
    return tuple(tensor.to(device) for tensor in (x, gate_up, down, ids, weights))


@pytest.mark.parametrize(
    ("rows", "experts", "chosen"), [(0, 4, 2), (1, 4, 1), (7, 4, 4), (33, 8, 2), (5, 64, 6)]
)
def test_agrees_with_reference(rows, experts, chosen, device):
    arguments = draw(rows, experts, chosen, device=device)
    expected = grouped_experts_reference(*arguments)
    torch.testing.assert_close(grouped_experts(*arguments), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision(dtype, device):
    arguments = draw(9, 4, 2, dtype=dtype, device=device)
    expected = grouped_experts_reference(*arguments)
    torch.testing.assert_close(grouped_experts(*arguments), expected, atol=0.05, rtol=0.05)


def test_all_rows_to_one_expert(device):
    x, gate_up, down, ids, weights = draw(6, 4, 1, device=device)
    ids.fill_(3)
    expected = grouped_experts_reference(x, gate_up, down, ids, weights)
    output = grouped_experts(x, gate_up, down, ids, weights)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_weight_of_zero_silences_an_expert(device):
    x, gate_up, down, ids, weights = draw(4, 4, 2, device=device)
    weights[:, 1] = 0
    alone = grouped_experts(x, gate_up, down, ids[:, :1].contiguous(), weights[:, :1].contiguous())
    output = grouped_experts(x, gate_up, down, ids, weights)
    torch.testing.assert_close(output, alone, atol=1e-6, rtol=1e-5)


def test_wrong_shapes_are_refused():
    x, gate_up, down, ids, weights = draw(4, 4, 2)
    with pytest.raises(ValueError, match="must be"):
        grouped_experts(x[:, :8], gate_up, down, ids, weights)
    with pytest.raises(ValueError, match=r"must both be \[4, k\]"):
        grouped_experts(x, gate_up, down, ids[:3], weights)
