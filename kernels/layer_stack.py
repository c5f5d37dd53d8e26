"""`LayerStack`: gated layers that run in one call, where our own CPU kernels run all of them.

What a layer computes is said once, by the operations it is composed of
(`weights/network/transformer.py`); a stack computes the same, bit for bit. Between two operations
there is nothing but the time of a call, and at few rows several hundred calls take longer than the
work.

Shapes: T rows, d hidden width, Hq query heads, D head size, I feed-forward width, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.plan import AttentionPlan
from kernels.cpu import HeadLayout, native_kernels
from kernels.cpu.library import (
    MAX_HEAD_DIM,
    NativeLayer,
    NativeLayers,
    NativeLowRank,
    NativeMatrix,
)
from kernels.int8_products import NATIVE, ProductChoice
from kernels.linear import Int8Weight
from kernels.packed_linear import Fp8Weight, Int4Weight
from kernels.rotary import RotaryRows


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in], float, int8, or packed as its checkpoint has it, and its bias or None."""

    weight: Tensor | Int8Weight | Int4Weight | Fp8Weight
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer consists of.

    qkv:            [(Hq + 2 Hkv) * D, d]
    output:         [d, Hq * D]
    gate_up:        [2 I, d], gate first
    down:           [d, I]
    feed_norm:      [d], after the output's residual sum
    following_norm: [d], after the feed-forward's
    low_output, low_down: weights [r, in] and [d, r] beside `output` and `down`, for some rows
    """

    qkv: Matrix
    output: Matrix
    gate_up: Matrix
    down: Matrix
    heads: HeadLayout
    feed_norm: Tensor
    following_norm: Tensor
    low_output: tuple[Tensor, Tensor] | None = None
    low_down: tuple[Tensor, Tensor] | None = None


class LayerStack:
    """Layers over the cache of their keys and values."""

    def __init__(self, layers: NativeLayers, choice: ProductChoice) -> None:
        """Made by `layer_stack`; choice: of the products, the same for all matrices."""
        self._layers = layers
        self._choice = choice

    def can_run(self, x: Tensor, plan: AttentionPlan) -> bool:
        """Whether it is our own kernels that run so many rows."""
        product = self._choice.products[self._choice.index(x.shape[0])]
        return plan.native is not None and product is NATIVE and not x.requires_grad

    def run_(
        self,
        x: Tensor,
        residual: Tensor,
        plan: AttentionPlan,
        rotary: RotaryRows | None,
        *,
        eps: float,
        low_rows: Tensor | None,
    ) -> None:
        """Run all layers, changing both [T, d]: x is what a layer reads, after its norm.

        low_rows: [L] int64, the rows to which low-rank weights apply, or None
        """
        kernels = native_kernels()
        assert kernels is not None, "a stack is made only where they are"
        assert plan.native is not None, "can_run has said so"
        kernels.run_layers_(self._layers, x, residual, plan.native, rotary, eps, low_rows)


def layer_stack(parts: Sequence[LayerParts], keys: Tensor, values: Tensor) -> LayerStack | None:
    """A stack of layers whose keys and values [layers, pages, page_size, Hkv, D] are these.

    None where our own CPU kernels cannot run all of it: other types than int8 weights and float32
    rows, or no compiler.
    """
    if native_kernels() is None or not parts or keys.dtype != torch.float32 or keys.is_cuda:
        return None
    first = parts[0]
    choice = first.qkv.weight.choice if isinstance(first.qkv.weight, Int8Weight) else None
    if choice is None or first.heads.head_dim > MAX_HEAD_DIM:
        return None
    layers = []
    for part, own_keys, own_values in zip(parts, keys.unbind(), values.unbind(), strict=False):
        layer = _native_layer(part, own_keys, own_values)
        if layer is None:
            return None
        layers.append(layer)
    return LayerStack(NativeLayers(layers), choice)


def _native_layer(parts: LayerParts, keys: Tensor, values: Tensor) -> NativeLayer | None:
    matrices = (parts.qkv, parts.output, parts.gate_up, parts.down)
    native = [_native(matrix) for matrix in matrices]
    found = [matrix for matrix in native if matrix is not None]
    biases = [matrix.bias for matrix in matrices]
    tensors = [
        parts.feed_norm,
        parts.following_norm,
        *(bias for bias in biases if bias is not None),
    ]
    if len(found) < len(matrices) or not all(_is_plain(tensor) for tensor in tensors):
        return None
    return NativeLayer(
        matrices=(found[0], found[1], found[2], found[3]),
        biases=(biases[0], biases[1], biases[2], biases[3]),
        heads=parts.heads,
        feed_norm=parts.feed_norm,
        following_norm=parts.following_norm,
        keys=keys,
        values=values,
        low_output=_native_low_rank(parts.low_output),
        low_down=_native_low_rank(parts.low_down),
    )


def _native_low_rank(low: tuple[Tensor, Tensor] | None) -> NativeLowRank | None:
    return None if low is None else NativeLowRank(low[0].contiguous(), low[1].t().contiguous())


def _native(matrix: Matrix) -> NativeMatrix | None:
    return matrix.weight.native if isinstance(matrix.weight, Int8Weight) else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()
