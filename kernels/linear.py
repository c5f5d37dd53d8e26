"""Products with weight matrices, floating or int8 with one scale per output.

Every row of x is scaled by its own largest magnitude, rounded to integers and multiplied exactly
(int32 sums), so that a row's result does not depend on the rows beside it, bit for bit. Weights
hold 8 bits, rows 8 or 7 (`int8_products.py`).

On a GPU rows stay floating and only weights are 8 bits wide.

Shapes: T rows, `in` and `out` features.
From: Dettmers et al. 2022, LLM.int8(), section 2.1 (vector-wise scales); arXiv 2208.07339. We
have no outlier columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu import NativeMatrix, native_kernels
from kernels.cpu.library import unpack
from kernels.int8_products import (
    NATIVE,
    SMALLEST_PEAK,
    LinearFormat,
    ProductChoice,
    chosen_products,
    default_format,
    quantized_rows,
)
from kernels.linear_kernel import launch_int8_linear

_WEIGHT_LEVELS = 127


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix [out, in] as integers times one scale per output.

    values:     on a GPU [out, in] int8; on a CPU None
    packed:     on a CPU one form of the values for every product of the choice
    scales:     [out] float32; values * scales is the matrix
    row_scales: [out] float32, scales divided by the levels of a row
    choice:     what multiplies on a CPU; None on a GPU
    native:     the first form as our own CPU kernels read it, where they multiply
    """

    values: Tensor | None
    packed: tuple[Tensor, ...]
    scales: Tensor
    row_scales: Tensor
    choice: ProductChoice | None
    in_features: int
    out_features: int
    native: NativeMatrix | None = None

    def dense(self) -> Tensor:
        """The matrix [out, in] in float32."""
        return self.integers().float() * self.scales[:, None]

    def integers(self) -> Tensor:
        """The values [out, in] int8."""
        if self.values is not None:
            return self.values
        packed = self.packed[0]
        if packed.is_mkldnn:
            dense: Tensor = packed.to_dense().t()
            return dense
        if packed.ndim == 2:
            return packed
        return unpack(packed, outputs=self.out_features, inputs=self.in_features)


def quantize_int8(weight: Tensor, number_format: LinearFormat | None = None) -> Int8Weight:
    """Round weight [out, in] float to 8 bits, symmetric per output, on its own device.

    number_format: how rows will be rounded on a CPU; None for what suits this one
    """
    out_features, in_features = weight.shape
    wide = weight.float()
    scales = wide.abs().amax(1).clamp_min_(SMALLEST_PEAK).div_(_WEIGHT_LEVELS)
    values = wide.div(scales[:, None]).round_().to(torch.int8)
    if weight.is_cuda:
        return Int8Weight(values, (), scales, scales, None, in_features, out_features)
    choice = chosen_products(number_format or default_format())
    packed = tuple(product.pack(values) for product in choice.products)
    levels = choice.format.levels
    row_scales = scales / levels
    native = None
    if choice.products[0] is NATIVE:
        native = NativeMatrix(packed[0], row_scales, inputs=in_features, levels=levels)
    return Int8Weight(
        values=None,
        packed=packed,
        scales=scales,
        row_scales=row_scales,
        choice=choice,
        in_features=in_features,
        out_features=out_features,
        native=native,
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
    if weight.values is not None:
        return launch_int8_linear(x, weight.values, weight.scales, bias)
    return _int8_linear_cpu(x, weight, bias)


def _int8_linear_cpu(x: Tensor, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    assert weight.choice is not None, "weights on a CPU have a choice of products"
    wide = x if x.dtype == torch.float32 else x.float()
    index = weight.choice.index(x.shape[0])
    product, packed = weight.choice.products[index], weight.packed[index]
    levels = weight.choice.format.levels
    kernels = native_kernels()
    if product is NATIVE and kernels is not None and weight.native is not None:
        wide_bias = None if bias is None else bias.float().contiguous()
        result = kernels.linear(wide.contiguous(), weight.native, wide_bias)
    else:
        result = product.multiply(wide, packed, weight.row_scales, levels)
        # Not fused with the product, so that all products give the same bits.
        result = result if bias is None else result.add_(bias)
    return result if x.dtype == torch.float32 else result.to(x.dtype)


def linear_reference(x: Tensor, weight: Tensor | Int8Weight, bias: Tensor | None = None) -> Tensor:
    """Define the operation: a float product, or the int8 scheme in exact integer arithmetic."""
    if isinstance(weight, Tensor):
        product = x.double() @ weight.double().t()
    elif weight.choice is None:
        product = x.double() @ weight.dense().double().t()
    else:
        levels = weight.choice.format.levels
        rows, peaks = quantized_rows(x.double(), levels)
        integers = weight.integers().double()
        product = (rows @ integers.t()) * peaks / levels * weight.scales
    return (product if bias is None else product + bias.double()).to(x.dtype)
