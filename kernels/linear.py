"""Products with weight matrices, floating or int8 with one scale per output.

Every row of x is scaled by its own largest magnitude, rounded to integers and multiplied exactly
(int32 sums), so that a row's result does not depend on the rows beside it, bit for bit. Weights
hold 8 bits. Rows hold 8 bits where the CPU multiplies int8 pairs exactly (VNNI, AMX). Older CPUs
add pairs of products in 16 bits and saturate; there a row is 7 bits wide, unsigned around 64,
which cannot overflow: 2 * 127 * 127 < 2**15.

On a GPU rows stay floating and only weights are 8 bits wide.

Shapes: T rows, `in` and `out` features.
From: Dettmers et al. 2022, LLM.int8(), section 2.1 (vector-wise scales); arXiv 2208.07339. We
have no outlier columns.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from kernels.linear_kernel import launch_int8_linear

_WEIGHT_LEVELS = 127
_SIGNED_LEVELS = 127
_UNSIGNED_LEVELS = 63
_UNSIGNED_ZERO = 64
# A row of zeros must not divide by zero; far below any magnitude that matters.
_SMALLEST_PEAK = 1e-30


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix [out, in] as integers times one scale per output.

    values: int8; on the CPU packed by oneDNN for its own use, else [out, in]
    scales: [out] float32; values * scales is the matrix
    packed_scales: [out] float32, scales divided by the levels of a row
    zero_points: [out] int64, all zero
    """

    values: Tensor
    scales: Tensor
    packed_scales: Tensor
    zero_points: Tensor
    in_features: int
    out_features: int

    def dense(self) -> Tensor:
        """The matrix [out, in] in float32."""
        values = self.values.to_dense().t() if self.values.is_mkldnn else self.values
        return values.float() * self.scales[:, None]


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Round weight [out, in] float to 8 bits, symmetric per output, on its own device."""
    out_features, in_features = weight.shape
    wide = weight.float()
    scales = wide.abs().amax(1).clamp_min_(_SMALLEST_PEAK).div_(_WEIGHT_LEVELS)
    values = wide.div(scales[:, None]).round_().to(torch.int8)
    if not weight.is_cuda:
        values = torch.ops.onednn.qlinear_prepack(values, None)
    levels = _SIGNED_LEVELS if weight.is_cuda or _multiplies_signed_exactly() else _UNSIGNED_LEVELS
    return Int8Weight(
        values=values,
        scales=scales,
        packed_scales=scales / levels,
        zero_points=torch.zeros(out_features, dtype=torch.int64, device=weight.device),
        in_features=in_features,
        out_features=out_features,
    )


def linear(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> Tensor:
    """Product [T, out] of x [T, in] and the transpose of weight [out, in], plus bias [out].

    In x's type.

    Raises ValueError when x does not have the weight's inputs.
    """
    if isinstance(weight, Tensor):
        return functional.linear(x, weight, bias)
    if x.ndim != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"x must be [rows, {weight.in_features}], got {tuple(x.shape)}")
    if x.is_cuda:
        return launch_int8_linear(x, weight.values, weight.scales, bias)
    return _int8_linear_cpu(x, weight, bias)


def _int8_linear_cpu(x: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    wide = x if x.dtype == torch.float32 else x.float()
    peaks = wide.abs().amax(1, True).clamp_min_(_SMALLEST_PEAK)  # [T, 1]
    if _multiplies_signed_exactly():
        rows = wide.div(peaks).mul_(_SIGNED_LEVELS).round_().to(torch.int8)
        zero = 0
    else:
        rows = wide.div(peaks).mul_(_UNSIGNED_LEVELS).round_().add_(_UNSIGNED_ZERO).to(torch.uint8)
        zero = _UNSIGNED_ZERO
    product = _multiply(rows, zero, weight.values, weight.packed_scales, weight.zero_points)
    product = product.mul_(peaks) if bias is None else torch.addcmul(bias, product, peaks)
    return product if x.dtype == torch.float32 else product.to(x.dtype)


def linear_reference(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> Tensor:
    """Define the operation: a float product, or the int8 scheme in exact integer arithmetic."""
    if isinstance(weight, Tensor):
        product = x.double() @ weight.double().t()
    else:
        levels = _SIGNED_LEVELS if _multiplies_signed_exactly() else _UNSIGNED_LEVELS
        peaks = x.double().abs().amax(1, keepdim=True).clamp_min(_SMALLEST_PEAK)
        rows = (x.double() / peaks * levels).round()
        integers = (weight.dense().double() / weight.scales[:, None]).round()
        product = (rows @ integers.t()) * peaks / levels * weight.scales
    return (product if bias is None else product + bias.double()).to(x.dtype)


def _multiply(
    rows: Tensor, zero: int, packed: Tensor, scales: Tensor, zero_points: Tensor
) -> Tensor:
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        rows, 1.0, zero, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@cache
def _multiplies_signed_exactly() -> bool:
    """Whether signed int8 products of this CPU are exact at the largest sums, tried once."""
    size = 64
    packed = torch.ops.onednn.qlinear_prepack(torch.full((size, size), 127, dtype=torch.int8), None)
    rows = torch.full((16, size), 127, dtype=torch.int8)
    ones, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)
    exact = float(size * 127 * 127)
    trials = (rows[:1], -rows[:1], rows, -rows)
    sums = [_multiply(trial, 0, packed, ones, zeros).abs() for trial in trials]
    return all(bool((total == exact).all()) for total in sums)
