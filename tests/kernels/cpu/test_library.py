import pytest
import torch

from kernels.cpu import NativeMatrix, native_kernels
from kernels.cpu.library import unpack
from kernels.norms import add_rms_norm_reference, rms_norm_reference
from kernels.swiglu import swiglu_reference
from tests.kernels.cpu.native_marks import needs_native

pytestmark = needs_native


@pytest.mark.parametrize("shape", [(1, 1), (32, 4), (33, 7), (70, 130)])
def test_packed_weights_come_back(shape):
    values = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed = native_kernels().pack(values)
    assert torch.equal(unpack(packed, outputs=shape[0], inputs=shape[1]), values)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 17, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 4), (33, 7), (96, 256), (1, 1)])
def test_products_are_exact(rows, outputs, inputs):
    values = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    # Whole numbers of which one is the largest: rounding changes nothing.
    x = torch.randint(-63, 64, (rows, inputs)).float()
    x[:, 0] = 63
    scales = torch.full((outputs,), 1 / 63)
    kernels = native_kernels()
    matrix = NativeMatrix(kernels.pack(values), scales, inputs=inputs, levels=63)
    product = kernels.linear(x, matrix, None)
    expected = (x.double() @ values.double().t()).float().mul_(scales).mul_(63)
    assert torch.equal(product, expected)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_no_number_stays_so_and_harms_no_other(fault):
    values = torch.randint(-127, 128, (40, 70), dtype=torch.int8)
    x = torch.randn(3, 70)
    kernels = native_kernels()
    matrix = NativeMatrix(kernels.pack(values), torch.ones(40), inputs=70, levels=63)
    expected = kernels.linear(x, matrix, None)
    x[1, 69] = fault
    product = kernels.linear(x, matrix, None)
    assert product[1].isnan().all()
    assert torch.equal(product[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("size", [1, 15, 16, 64, 577])
def test_norms_agree_with_their_definition(size):
    x, residual, weight = torch.randn(20, size), torch.randn(20, size), torch.randn(size)
    kernels = native_kernels()
    torch.testing.assert_close(
        kernels.rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)
    )
    normed, total = kernels.add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, expected)
    assert torch.equal(total, expected_total)


@pytest.mark.parametrize("size", [1, 16, 511, 513, 1536])
def test_gates_agree_with_their_definition(size):
    gate_up = 20 * torch.randn(3, 2 * size)
    gate_up[0, 0], gate_up[1, 0] = 200.0, -200.0
    activated = native_kernels().swiglu(gate_up)
    torch.testing.assert_close(activated, swiglu_reference(gate_up), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", [1, 2, 16, 33, 400])
def test_summaries_of_logits(vocab):
    logits = 5 * torch.randn(6, vocab)
    logits[1] = 2.0
    logits[2, vocab // 2] = -1e30
    numbers, argmax = native_kernels().summarize_logits(logits)
    best = logits.double().sort(dim=1, descending=True, stable=True)
    gaps = logits.double() - best.values[:, :1]
    assert torch.equal(argmax, best.indices[:, 0])
    assert torch.equal(numbers[:, 0], best.values[:, 0].float())
    torch.testing.assert_close(numbers[:, 1].double(), gaps.exp().sum(1), rtol=2e-6, atol=0)
    weighted = (gaps * gaps.exp()).sum(1)
    torch.testing.assert_close(numbers[:, 2].double(), weighted, rtol=1e-5, atol=1e-6)
    second = best.values[:, 1].float() if vocab > 1 else torch.full((6,), -torch.inf)
    assert torch.equal(numbers[:, 3], second)


def test_logits_that_are_no_numbers_are_told():
    logits = torch.randn(3, 100)
    logits[1, 99] = float("nan")
    numbers, _ = native_kernels().summarize_logits(logits)
    assert numbers[1].isnan().all()
    assert numbers[[0, 2]].isfinite().all()
