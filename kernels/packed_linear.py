"""Products with matrices that stay packed in memory: 4-bit integers in groups, or fp8 in blocks.

Rows stay floating. Only what is stored is read, which is what a product of few rows waits for; the
matrix is widened in registers. Integers and fp8 are exact in every float type of the rows, so
scales act on sums in float32, never on rounded weights.

Shapes: T rows, `in` and `out` features, G groups of inputs, R x C blocks that share a scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import runs_triton
from kernels.packed_linear_kernel import (
    SMALLEST_DEPTH,
    launch_fp8_linear,
    launch_int4_linear,
    step_depth,
)

_MOST = 15


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A matrix [out, in] as 4-bit integers with a scale and a zero point for each group of inputs.

    packed:       [out, in / 2] uint8; the low half of byte j is input j, the high half input
                  j + in / 2
    scales:       [out, G] of a float type
    zeros:        [out, G] uint8 in 0..15; (integer - zero) * scale is the matrix
    column_order: [in] int64, which input each column of the matrix is for, or None where they are
                  in order (groups need not be neighbours in the rows, but are here)
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    column_order: Tensor | None = None

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.packed.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return 2 * self.packed.shape[1]

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scales.shape[1]

    def dense(self) -> Tensor:
        """The matrix [out, in] in float32, its columns in the order of the inputs."""
        codes = torch.cat((self.packed & 15, self.packed >> 4), dim=1).float()
        size = self.group_size
        codes -= self.zeros.float().repeat_interleave(size, 1)
        matrix = codes * self.scales.float().repeat_interleave(size, 1)
        if self.column_order is None:
            return matrix
        return torch.empty_like(matrix).index_copy_(1, self.column_order, matrix)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix [out, in] in fp8 (e4m3) with one scale for every block.

    values: [out, in] float8_e4m3fn, no nan
    scales: [R, C] float32
    block:  rows and columns of a block; the last of either may be cut
    """

    values: Tensor
    scales: Tensor
    block: tuple[int, int]

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return self.values.shape[1]

    def dense(self) -> Tensor:
        """The matrix [out, in] in float32."""
        out, width = self.values.shape
        spread = self.scales.repeat_interleave(self.block[0], 0)[:out]
        return self.values.float() * spread.repeat_interleave(self.block[1], 1)[:, :width]


PackedWeight = Int4Weight | Fp8Weight


def can_pack_int4(*, in_features: int, group_size: int) -> bool:
    """Whether groups of this size can be read in steps that no group ends inside."""
    return in_features % group_size == 0 and step_depth(in_features, group_size) >= SMALLEST_DEPTH


def pack_int4(
    codes: Tensor, scales: Tensor, zeros: Tensor, *, column_order: Tensor | None = None
) -> Int4Weight:
    """Pack integers [out, in] in 0..15; scales and zeros [out, G], zeros in 0..15.

    column_order: [in] int64, which input each column is for, or None

    Raises ValueError when the sizes cannot be packed or a number is outside its range.
    """
    out, width = codes.shape
    groups = scales.shape[1]
    if scales.shape != (out, groups) or zeros.shape != (out, groups) or width % groups:
        raise ValueError(
            f"scales {tuple(scales.shape)} and zeros {tuple(zeros.shape)} must both be "
            f"[{out}, groups], with groups that divide {width} inputs"
        )
    if not can_pack_int4(in_features=width, group_size=width // groups):
        raise ValueError(f"{width} inputs in groups of {width // groups} cannot be packed")
    for name, numbers in (("codes", codes), ("zeros", zeros)):
        if int(numbers.min()) < 0 or int(numbers.max()) > _MOST:
            raise ValueError(f"{name} must be within 0..{_MOST}")
    low, high = codes.to(torch.uint8).chunk(2, dim=1)
    return Int4Weight(
        (low | (high << 4)).contiguous(),
        scales.contiguous(),
        zeros.to(torch.uint8).contiguous(),
        column_order,
    )


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Product [T, out] of x [T, in] and the transpose of a packed matrix, plus bias [out].

    In x's type. Raises ValueError when x does not have the weight's inputs.
    """
    if x.ndim != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be [rows, {weight.in_features}], got {tuple(x.shape)}")
    if not runs_triton(x):
        return functional.linear(x, weight.dense().to(x.dtype), bias)
    if isinstance(weight, Fp8Weight):
        return launch_fp8_linear(x, weight.values, weight.scales, weight.block, bias)
    if weight.column_order is not None:
        x = x.index_select(1, weight.column_order)
    return launch_int4_linear(x, weight.packed, weight.scales, weight.zeros, bias)


def packed_linear_reference(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Define the operation in float64."""
    product = x.double() @ weight.dense().double().t()
    return (product if bias is None else product + bias.double()).to(x.dtype)
