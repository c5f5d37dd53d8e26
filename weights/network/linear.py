"""`Linear`, and `Placement`: in which form and where weights are kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Int8Weight, linear


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix product: x [T, in] -> [T, out].

    weight: [out, in] float, or packed int8
    bias:   [out] or None
    """

    weight: Tensor | Int8Weight
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Placement:
    """The form in which a network keeps its weights.

    dtype:  float32, bfloat16 or float16; also of activations and of the cache
    device: where they lie
    """

    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        """Raise ValueError for a type that has no kernels."""
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype}")

    def tensor(self, values: Tensor) -> Tensor:
        """Copy a tensor into memory of its own, in this type and place."""
        placed = torch.empty(values.shape, dtype=self.dtype, device=self.device)
        return placed.copy_(values)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Keep a matrix [out, in] and its bias."""
        return Linear(self.tensor(weight), None if bias is None else self.tensor(bias))
