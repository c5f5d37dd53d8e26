import pytest
import torch

from kernels.grouped_experts import grouped_experts_reference
from kernels.grouped_experts_kernel import launch_grouped_experts
from tests.kernels.test_grouped_experts import draw

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "experts", "chosen"), [(0, 4, 2), (1, 4, 1), (15, 3, 3), (33, 8, 2), (70, 2, 1)]
)
def test_agrees_with_reference(rows, experts, chosen, dtype, device):
    arguments = draw(rows, experts, chosen, width=65, intermediate=66, dtype=dtype, device=device)
    # Float16: the hidden rows are rounded between the two products.
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    output, expected = launch_grouped_experts(*arguments), grouped_experts_reference(*arguments)
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


def test_experts_without_rows_are_passed_over(device):
    x, gate_up, down, ids, weights = draw(40, 6, 1, device=device)
    ids[:] = torch.tensor([1, 4], device=device).repeat(20)[:, None]
    output = launch_grouped_experts(x, gate_up, down, ids, weights)
    expected = grouped_experts_reference(x, gate_up, down, ids, weights)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
