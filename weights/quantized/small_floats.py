"""fp8 with a scale for every block or matrix (DeepSeek, Qwen), and what ModelOpt writes.

A module `m` has `m.weight` in fp8 with `m.weight_scale_inv` (one number a block, despite its name
a factor) or `m.weight_scale` (one number); ModelOpt's NVFP4 has two E2M1 numbers in a byte of
`m.weight`, `m.weight_scale` in fp8 for 16 columns and `m.weight_scale_2` for the whole matrix.
From: DeepSeek-V3 technical report, section 3.3, arXiv 2412.19437; the quantising code of
transformers 5.23, against which blocks are checked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.network.tensor_reader import TensorStore
from weights.quantized.layout import Found, QuantizedTensor, read_part, used_names
from weights.scaled_values import ScaledValues, power_of_two_scales, unpack_fp4

_BLOCK_SCALE = ".weight_scale_inv"
_SCALE = ".weight_scale"
_SECOND_SCALE = ".weight_scale_2"
_UNUSED = (".input_scale", ".activation_scale", ".k_scale", ".v_scale")
_FP4_GROUP = 16
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def find_fp8(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all fp8 matrices; raises CheckpointError when the size of a block is no size."""
    block = None
    sides = fields.numbers("weight_block_size")
    if sides:
        if len(sides) != 2 or min(sides) < 1:
            raise fields.refuse("weight_block_size", "but it must be two whole numbers above 0")
        block = (int(sides[0]), int(sides[1]))
    return _find(store, block, is_fp4=False)


def find_modelopt(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all matrices of a ModelOpt checkpoint; raises CheckpointError for other algorithms."""
    algorithm = fields.text("quant_algo")
    if algorithm not in ("FP8", "NVFP4"):
        raise fields.refuse("quant_algo", "but only FP8 and NVFP4 are known")
    if algorithm == "NVFP4" and fields.integer("group_size", _FP4_GROUP) != _FP4_GROUP:
        raise fields.refuse("group_size", f"but a group of NVFP4 has {_FP4_GROUP} columns")
    return _find(store, None, is_fp4=algorithm == "NVFP4")


def _find(store: TensorStore, block: tuple[int, int] | None, *, is_fp4: bool) -> Found:
    names = frozenset(store.names())
    tensors: dict[str, QuantizedTensor] = {}
    for name in sorted(names):
        for suffix in (_BLOCK_SCALE, _SCALE):
            if name.endswith(suffix):
                reader = _Module(store, names, name.removesuffix(suffix), suffix, block, is_fp4)
                tensors[reader.name] = QuantizedTensor(reader.shape, reader.read)
    used = used_names(store, (_BLOCK_SCALE, _SCALE, _SECOND_SCALE, *_UNUSED))
    return Found(tensors, frozenset(used | (tensors.keys() & names)))


@dataclass(frozen=True, slots=True)
class _Module:
    """The stored parts of one matrix; `block` is None where one scale is for all of it."""

    store: TensorStore
    names: frozenset[str]
    module: str
    scale_suffix: str
    block: tuple[int, int] | None
    is_fp4: bool

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    def shape(self) -> tuple[int, ...]:
        if self.name not in self.names:
            raise CheckpointError(f"tensor {self.name} is missing, though its scale is there")
        *leading, columns = self.store.shape(self.name)
        return (*leading, 2 * columns if self.is_fp4 else columns)

    def read(self) -> ScaledValues:
        shape = self.shape()
        scales = power_of_two_scales(self._part(self.scale_suffix))
        stored = self.store.tensor(self.name)
        if self.is_fp4:
            scales = scales * self._part(_SECOND_SCALE).float().reshape(-1)[0]
            found = ScaledValues(unpack_fp4(stored), scales, (1, _FP4_GROUP))
        else:
            found = ScaledValues(self._fp8(stored), *self._grid(scales, shape))
        found.check(self.name)
        return found

    def _fp8(self, stored: Tensor) -> Tensor:
        if stored.dtype not in _FP8:
            raise CheckpointError(
                f"tensor {self.name} has a scale, but type {stored.dtype} is no fp8",
                tensor=self.name,
            )
        return stored

    def _grid(self, scales: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
        """Scales [R, C] and the block that each is for."""
        if scales.numel() == 1:
            return scales.reshape(1, 1), (shape[-2], shape[-1])
        if self.block is not None:
            return scales, self.block
        return scales.reshape(-1, 1), (1, shape[-1])

    def _part(self, suffix: str) -> Tensor:
        return read_part(self.store, self.names, self.module + suffix, of=self.name)
