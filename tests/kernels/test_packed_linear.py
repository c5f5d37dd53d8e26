"""Packed matrices: what they hold, and their products against the definition."""

import pytest
import torch

from kernels.packed_linear import (
    Fp8Weight,
    can_pack_int4,
    pack_int4,
    packed_linear,
    packed_linear_reference,
)


def random_int4(out, width, groups, *, ordered=True):
    codes = torch.randint(16, (out, width))
    scales = torch.rand(out, groups).half() + 0.5
    zeros = torch.randint(16, (out, groups))
    order = None if ordered else torch.randperm(width)
    return pack_int4(codes, scales, zeros, column_order=order), codes, scales, zeros, order


def random_fp8(out, width, block):
    grid = (-(-out // block[0]), -(-width // block[1]))
    values = (40 * torch.randn(out, width)).to(torch.float8_e4m3fn)
    return Fp8Weight(values, torch.rand(grid) + 0.5, block)


@pytest.mark.parametrize("ordered", [True, False])
def test_int4_holds_what_was_packed(ordered):
    weight, codes, scales, zeros, order = random_int4(6, 64, 2, ordered=ordered)
    dense = weight.dense()
    for row in range(6):
        for column in range(64):
            group = column // 32
            wanted = (codes[row, column] - zeros[row, group]) * scales[row, group].float()
            place = column if order is None else int(order[column])
            assert dense[row, place] == wanted
    assert (weight.in_features, weight.out_features, weight.group_size) == (64, 6, 32)


def test_fp8_blocks_may_be_cut():
    weight = random_fp8(5, 7, (2, 3))
    dense = weight.dense()
    for row in range(5):
        for column in range(7):
            scale = weight.scales[row // 2, column // 3]
            assert dense[row, column] == weight.values[row, column].float() * scale


@pytest.mark.parametrize("with_bias", [False, True])
def test_product_without_a_kernel(with_bias):
    bias = torch.randn(6) if with_bias else None
    for weight in (random_int4(6, 64, 2, ordered=False)[0], random_fp8(6, 64, (4, 32))):
        x = torch.randn(3, 64)
        torch.testing.assert_close(
            packed_linear(x, weight, bias),
            packed_linear_reference(x, weight, bias),
            atol=1e-2,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("width", "group_size", "can"),
    [
        (64, 32, True),
        (32, 16, True),
        (96, 32, True),
        (48, 16, False),
        (64, 8, False),
        (64, 48, False),
    ],
)
def test_groups_that_can_be_packed(width, group_size, can):
    assert can_pack_int4(in_features=width, group_size=group_size) is can


def test_what_cannot_be_packed_is_refused():
    codes, scales, zeros = torch.zeros(4, 64).int(), torch.ones(4, 2), torch.zeros(4, 2).int()
    with pytest.raises(ValueError, match="codes must be within"):
        pack_int4(codes + 16, scales, zeros)
    with pytest.raises(ValueError, match="zeros must be within"):
        pack_int4(codes, scales, zeros - 1)
    with pytest.raises(ValueError, match="must both be"):
        pack_int4(codes, scales, zeros[:, :1])
    with pytest.raises(ValueError, match="groups of 8 cannot"):
        pack_int4(codes, torch.ones(4, 8), torch.zeros(4, 8).int())
    with pytest.raises(ValueError, match=r"x must be \[rows, 64\]"):
        packed_linear(torch.ones(2, 63), pack_int4(codes, scales, zeros))


# Rows below, at and above a tile; outputs that no tile ends with; one group, many, and steps that
# are shorter than a tile's depth.
INT4_SIZES = [(0, 64, 2, 8), (1, 64, 1, 63), (17, 96, 3, 65), (70, 512, 4, 40)]
FP8_SIZES = [
    (0, 64, 8, (1, 64)),
    (1, 127, 63, (63, 127)),
    (17, 200, 65, (1, 200)),
    (70, 300, 200, (128, 128)),
    (3, 160, 70, (32, 32)),
]


def assert_near(got, wanted, dtype):
    # Partial sums of a few hundred products of up to about 30 (fp8: 200), added in any order; in
    # half precision one rounding of the sum.
    eps = torch.finfo(dtype).eps
    peak = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(got.float(), wanted.float(), atol=16 * eps * peak + 1e-6, rtol=0)


@pytest.mark.kernel
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width", "groups", "out"), INT4_SIZES)
def test_int4_kernel_agrees(rows, width, groups, out, dtype, with_bias, device):
    weight = random_int4(out, width, groups, ordered=rows != 17)[0]
    x = (torch.randn(rows, width) / 8).to(dtype)
    bias = torch.randn(out).to(dtype) if with_bias else None
    wanted = packed_linear_reference(x.float(), weight, None if bias is None else bias.float())
    moved = type(weight)(
        *(None if t is None else t.to(device) for t in (weight.packed, weight.scales)),
        weight.zeros.to(device),
        None if weight.column_order is None else weight.column_order.to(device),
    )
    got = packed_linear(x.to(device), moved, None if bias is None else bias.to(device))
    assert got.dtype == dtype
    assert_near(got.cpu(), wanted, dtype)


@pytest.mark.kernel
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "width", "out", "block"), FP8_SIZES)
def test_fp8_kernel_agrees(rows, width, out, block, dtype, with_bias, device):
    weight = random_fp8(out, width, block)
    x = (torch.randn(rows, width) / 64).to(dtype)
    bias = torch.randn(out).to(dtype) if with_bias else None
    wanted = packed_linear_reference(x.float(), weight, None if bias is None else bias.float())
    moved = Fp8Weight(weight.values.to(device), weight.scales.to(device), block)
    got = packed_linear(x.to(device), moved, None if bias is None else bias.to(device))
    assert_near(got.cpu(), wanted, dtype)


@pytest.mark.kernel
def test_every_fp8_number_is_read_as_it_is(device):
    """All 254 finite numbers of e4m3, subnormals and both zeros among them."""
    bits = torch.tensor([b for b in range(256) if b & 0x7F != 0x7F], dtype=torch.uint8)
    values = bits.view(torch.float8_e4m3fn)[:, None].repeat(1, 16)
    weight = Fp8Weight(values.to(device), torch.ones(1, 1, device=device), (254, 16))
    x = torch.zeros(1, 16, device=device)
    x[0, 0] = 1
    got = packed_linear(x, weight)
    assert torch.equal(got[0].cpu(), bits.view(torch.float8_e4m3fn).float())
