"""The layouts of compressed-tensors: int8, int4 and other integers, fp8, NVFP4.

A module `m` has `m.weight` (8 bits) or `m.weight_packed` with `m.weight_scale` beside it, and
sometimes `m.weight_zero_point`, `m.weight_g_idx`, `m.weight_global_scale`. What the activations
were rounded to (`m.input_scale`) is not imitated: rows stay floating.
From: the library of that name, version 0.20, checked against its own decompression.
"""

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.network.tensor_reader import TensorStore
from weights.quantized.layout import Found, QuantizedTensor, read_part, used_names
from weights.scaled_values import ScaledValues, unpack_bits, unpack_fp4

_FORMATS = (
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
    "dense",
)
_PACKED = ".weight_packed"
_SCALE = ".weight_scale"
_PARTS = (
    _PACKED,
    _SCALE,
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".weight_global_scale",
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".q_scale",
)
_FP4_GROUP = 16


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How the matrices of a group of modules are stored.

    strategy: tensor | channel | group | tensor_group | block
    block:    rows and columns that share a scale, for groups and blocks
    """

    num_bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    block: tuple[int, int]

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        out, width = shape[-2:]
        if self.strategy == "tensor":
            return out, width
        return (1, width) if self.strategy == "channel" else self.block


def find_compressed_tensors(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all quantised matrices; raises CheckpointError for a format that cannot be read."""
    schemes = _read_schemes(fields)
    names = frozenset(store.names())
    tensors: dict[str, QuantizedTensor] = {}
    for name in sorted(names):
        if not name.endswith(_SCALE):
            continue
        module = name.removesuffix(_SCALE)
        reader = _Module(store, names, module, _scheme_of(module, schemes, fields))
        tensors[f"{module}.weight"] = QuantizedTensor(reader.shape, reader.read)
    used = used_names(store, _PARTS) | (tensors.keys() & names)
    return Found(tensors, frozenset(used))


@dataclass(frozen=True, slots=True)
class _Module:
    """The stored parts of one matrix."""

    store: TensorStore
    names: frozenset[str]
    module: str
    scheme: _Scheme

    @property
    def _is_packed(self) -> bool:
        return self.module + _PACKED in self.names

    def shape(self) -> tuple[int, ...]:
        if not self._is_packed:
            name = f"{self.module}.weight"
            if name not in self.names:
                raise CheckpointError(f"tensor {name} is missing, though its scale is there")
            return self.store.shape(name)
        if self.scheme.is_float:
            *leading, columns = self.store.shape(self.module + _PACKED)
            return (*leading, 2 * columns)
        return tuple(int(size) for size in self._part(".weight_shape"))

    def read(self) -> ScaledValues:
        shape = self.shape()
        scales = self._part(_SCALE).float()
        if scales.ndim < len(shape):
            scales = scales.reshape(*shape[:-2], -1, 1)
        found = ScaledValues(
            values=self._values(shape),
            scales=self._globally_scaled(scales),
            block=self.scheme.block_of(shape),
            zeros=self._zeros(shape, scales),
            column_block=self._index(),
        )
        found.check(f"{self.module}.weight")
        return found

    def _values(self, shape: tuple[int, ...]) -> Tensor:
        if not self._is_packed:
            return self._part(".weight")
        packed = self._part(_PACKED)
        if self.scheme.is_float:
            return unpack_fp4(packed)
        return _signed(unpack_bits(packed, self.scheme.num_bits, shape[-1]), self.scheme.num_bits)

    def _zeros(self, shape: tuple[int, ...], scales: Tensor) -> Tensor | None:
        zeros = self._optional(".weight_zero_point")
        if zeros is None or self.scheme.is_symmetric:
            return None
        if not self._is_packed:
            return zeros.reshape(scales.shape)
        bits = self.scheme.num_bits  # packed along the outputs
        unpacked = unpack_bits(zeros.transpose(-1, -2), bits, shape[-2])
        return _signed(unpacked, bits).transpose(-1, -2)

    def _index(self) -> Tensor | None:
        """The group of each input [in]; all -1 says that they are in order."""
        index = self._optional(".weight_g_idx")
        return None if index is None or int(index.max()) < 0 else index

    def _globally_scaled(self, scales: Tensor) -> Tensor:
        if self.scheme.strategy != "tensor_group":
            return scales
        return scales / self._part(".weight_global_scale").float()

    def _optional(self, suffix: str) -> Tensor | None:
        name = self.module + suffix
        return self.store.tensor(name) if name in self.names else None

    def _part(self, suffix: str) -> Tensor:
        return read_part(self.store, self.names, self.module + suffix, of=f"{self.module}.weight")


def _signed(values: Tensor, num_bits: int) -> Tensor:
    """The library stores integers moved up by half their range."""
    return (values - (1 << (num_bits - 1))).to(torch.int8)


def _read_schemes(fields: ConfigFields) -> list[tuple[tuple[str, ...], _Scheme]]:
    """Targets and scheme of each group of the config."""
    _check_format(fields)
    groups = fields.section("config_groups")
    if groups is None:
        raise CheckpointError(f"{fields.where} has no field config_groups")
    schemes: list[tuple[tuple[str, ...], _Scheme]] = []
    for name in groups.values:
        group = groups.section(name)
        weights = None if group is None else group.section("weights")
        if group is None or weights is None:
            continue
        if group.has("format") and group.text("format") not in _FORMATS:
            raise group.refuse("format", f"but only {', '.join(_FORMATS)} are known")
        schemes.append((group.texts("targets"), _read_scheme(weights)))
    return schemes


def _check_format(fields: ConfigFields) -> None:
    if fields.text("format", "dense") not in _FORMATS:
        raise fields.refuse("format", f"but only {', '.join(_FORMATS)} are known")
    sparsity = fields.section("sparsity_config")
    if sparsity is not None and sparsity.text("format", "dense") != "dense":
        raise sparsity.refuse("format", "but sparse weights are not supported")
    transform = fields.section("transform_config")
    if transform is not None and transform.values.get("config_groups"):
        raise transform.refuse("config_groups", "but rotated weights are not supported")


def _read_scheme(weights: ConfigFields) -> _Scheme:
    num_bits, kind = weights.integer("num_bits", 8), weights.text("type", "int")
    is_float = kind == "float"
    if kind not in ("int", "float") or (is_float and num_bits not in (4, 8)):
        raise weights.refuse("num_bits", f"of type {kind}, which is not supported")
    if not 1 <= num_bits <= 8:
        raise weights.refuse("num_bits", "but only 1 to 8 are known")
    group_size = weights.integer("group_size", 0)
    strategy = weights.text("strategy", "group" if group_size > 0 else "tensor")
    block = (1, group_size)
    if strategy == "block":
        sides = weights.numbers("block_structure")
        block = (int(sides[0]), int(sides[1])) if len(sides) == 2 else (0, 0)
    elif strategy not in ("tensor", "channel", "group", "tensor_group"):
        raise weights.refuse("strategy", "which is not supported")
    if strategy in ("group", "tensor_group", "block") and min(block) < 1:
        raise weights.refuse("strategy", "but the size of its groups is missing")
    if is_float and num_bits == 4 and (strategy != "tensor_group" or group_size != _FP4_GROUP):
        raise weights.refuse("strategy", "but only NVFP4 is known of the 4-bit floats")
    return _Scheme(num_bits, is_float, weights.flag("symmetric", True), strategy, block)


def _scheme_of(
    module: str, schemes: list[tuple[tuple[str, ...], _Scheme]], fields: ConfigFields
) -> _Scheme:
    """The scheme whose targets name the module; class names come last, as in the library."""
    for is_match in (partial(_names_module, module), _names_class):
        for targets, scheme in schemes:
            if any(is_match(target) for target in targets):
                return scheme
    raise CheckpointError(f"{fields.where}: no group of config_groups is for {module}")


def _names_module(module: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module or module.endswith(f".{target}")


def _names_class(target: str) -> bool:
    return not target.startswith("re:") and "." not in target
