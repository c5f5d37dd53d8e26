"""`Linear`, and `Placement`: in which form and where weights are kept."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from kernels import Int8Weight, linear, quantize_int8


class Quantize(StrEnum):
    """Forms of weights other than their float type."""

    INT8 = "int8"


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

    dtype:    float32, bfloat16 or float16; also of activations and of the cache
    device:   where they lie
    quantize: INT8 for the matrices of all linear layers and the head, on a CPU only; the token
              table, norms, routers and experts keep their float type
    """

    dtype: torch.dtype
    device: torch.device
    quantize: Quantize | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a type or a combination that has no kernels."""
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype}")
        if self.quantize is Quantize.INT8 and self.device.type != "cpu":
            raise ValueError(f"int8 weights run on a CPU only, got device {self.device}")

    def tensor(self, values: Tensor) -> Tensor:
        """Copy a tensor into memory of its own, in this type and place."""
        placed = torch.empty(values.shape, dtype=self.dtype, device=self.device)
        return placed.copy_(values)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Keep a matrix [out, in] and its bias."""
        placed_bias = None if bias is None else self.tensor(bias)
        if self.quantize is None:
            return Linear(self.tensor(weight), placed_bias)
        return Linear(quantize_int8(weight.float().contiguous()), placed_bias)
