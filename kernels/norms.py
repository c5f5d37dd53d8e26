"""Norms over the last dimension: root mean square with and without a residual, and layer norm.

Shapes: T rows, d entries of the residual stream.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu import runs_native
from kernels.dispatch import runs_triton
from kernels.norms_kernel import launch_rms_norm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row of x [T, d] over its root mean square, times weight [d]; computed in float32.

    From: Zhang and Sennrich 2019, Root mean square layer normalization; arXiv 1910.07467.
    """
    if runs_triton(x):
        return launch_rms_norm(x, None, weight, eps)[0]
    if (native := runs_native(x, weight)) is not None and x.ndim == 2:
        return native.rms_norm(x, weight, eps)
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Define `rms_norm` in float32."""
    wide = x.float()
    mean_square = (wide * wide).sum(-1, keepdim=True) / x.shape[-1]
    return (wide / torch.sqrt(mean_square + eps) * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual [T, d], and the sum itself (the next residual)."""
    if runs_triton(x):
        return launch_rms_norm(x, residual, weight, eps)
    if (native := runs_native(x, residual, weight)) is not None and x.ndim == 2:
        return native.add_rms_norm(x, residual, weight, eps)
    total = x + residual
    return rms_norm(total, weight, eps), total


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Define `add_rms_norm`; the sum is rounded to x's type before the norm."""
    total = (x.float() + residual.float()).to(x.dtype)
    return rms_norm_reference(total, weight, eps), total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Rows of x [T, d] at mean 0 and variance 1, times weight [d], plus bias [d] if any.

    From: Ba, Kiros and Hinton 2016, Layer normalization; arXiv 1607.06450.
    """
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Define `layer_norm` in float32."""
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
    normed = normed * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)
