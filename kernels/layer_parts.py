"""The two halves of a gated layer: rows to what they attend to, and all that follows.

Each is a composition of operations of this package. On a CPU with our own kernels, int8 weights
and float32 rows each half is one call, which gives the same bits: between two operations there is
nothing but the time of a call, and at few rows that time is what a step costs.

Shapes: T rows, d hidden width, Hq query heads, D head size, I feed-forward width.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.attention_plan import AttentionPlan
from kernels.cpu import HeadLayout, NativeKernels, NativeMatrix, runs_native
from kernels.cpu.library import MAX_HEAD_DIM
from kernels.int8_products import NATIVE
from kernels.linear import Int8Weight, linear
from kernels.norms import add_rms_norm
from kernels.paged_attention import paged_attention
from kernels.paged_batch import PagedBatch
from kernels.rotary import RotaryRows
from kernels.store_kv import store_kv
from kernels.swiglu import swiglu


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in] and its bias [out] or None."""

    weight: Tensor | Int8Weight
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class FeedMatrices:
    """What follows attention in a layer.

    output:         [d, Hq * D]
    gate_up:        [2 I, d], gate first
    down:           [d, I]
    norm:           [d], after the output's residual sum
    following_norm: [d], after the feed-forward's
    """

    output: Matrix
    gate_up: Matrix
    down: Matrix
    norm: Tensor
    following_norm: Tensor
    norm_eps: float


def attend_rows(
    x: Tensor,
    qkv: Matrix,
    cache: tuple[Tensor, Tensor],
    batch: PagedBatch,
    plan: AttentionPlan,
    rotary: RotaryRows | None,
    heads: HeadLayout,
) -> Tensor:
    """Project normed rows x [T, d], store keys and values, attend: [T, Hq * D].

    cache: keys and values [pages, page_size, Hkv, D] of the layer; changed in place at the
           batch's slots

    Raises ValueError like `linear`, `store_kv` and `paged_attention`.
    """
    keys, values = cache
    kernels = runs_native(x, keys, values)
    matrix = native_matrix(qkv, x.shape[0])
    is_small = heads.head_dim <= MAX_HEAD_DIM
    if kernels is not None and matrix is not None and plan.native is not None and is_small:
        return kernels.attend_rows(x, matrix, qkv.bias, cache, plan.native, rotary, heads)
    num_heads = heads.num_heads + 2 * heads.num_kv_heads
    queries = store_kv(
        linear(x, qkv.weight, qkv.bias).view(-1, num_heads, heads.head_dim),
        keys,
        values,
        slots=batch.slots,
        num_heads=heads.num_heads,
        rotary=rotary,
        q_norm=heads.q_norm,
        k_norm=heads.k_norm,
        norm_eps=heads.norm_eps,
    )
    attended = paged_attention(queries, keys, values, batch, plan, scale=heads.scale)
    return attended.view(-1, heads.num_heads * heads.head_dim)


def feed_rows(attended: Tensor, residual: Tensor, matrices: FeedMatrices) -> tuple[Tensor, Tensor]:
    """Output matrix, norm, gated feed-forward, norm: what the next layer reads, and the residual.

    attended: [T, Hq * D]
    residual: [T, d]; may be changed in place, the one returned is to be used

    Raises ValueError like `linear`.
    """
    kernels = runs_native(attended, residual)
    parts = _native_feed(matrices, attended.shape[0]) if kernels is not None else None
    if kernels is not None and parts is not None:
        return _feed_native(kernels, attended, residual, matrices, parts), residual
    eps = matrices.norm_eps
    x = linear(attended, matrices.output.weight, matrices.output.bias)
    x, residual = add_rms_norm(x, residual, matrices.norm, eps)
    inner = swiglu(linear(x, matrices.gate_up.weight, matrices.gate_up.bias))
    x = linear(inner, matrices.down.weight, matrices.down.bias)
    return add_rms_norm(x, residual, matrices.following_norm, eps)


def native_matrix(matrix: Matrix, rows: int) -> NativeMatrix | None:
    """The matrix as our own kernels read it, if it is they that multiply so many rows."""
    weight = matrix.weight
    if not isinstance(weight, Int8Weight) or weight.choice is None:
        return None
    is_native = weight.choice.products[weight.choice.index(rows)] is NATIVE
    return weight.native if is_native else None


_Feed = tuple[NativeMatrix, NativeMatrix, NativeMatrix]


def _native_feed(matrices: FeedMatrices, rows: int) -> _Feed | None:
    output = native_matrix(matrices.output, rows)
    gate_up, down = native_matrix(matrices.gate_up, rows), native_matrix(matrices.down, rows)
    if output is None or gate_up is None or down is None:
        return None
    return output, gate_up, down


def _feed_native(
    kernels: NativeKernels, attended: Tensor, residual: Tensor, matrices: FeedMatrices, parts: _Feed
) -> Tensor:
    return kernels.feed_rows_(
        attended,
        residual,
        parts,
        (matrices.output.bias, matrices.gate_up.bias, matrices.down.bias),
        (matrices.norm, matrices.following_norm),
        matrices.norm_eps,
    )
