"""torchao's tensors where they are plain numbers and scales: int8, fp8 and unpacked integers.

A matrix `m.weight` is spread over `m._weight_qdata`, `m._weight_scale` and sometimes
`m._weight_zero_point`; the file's metadata says of which kind it is and the block of a scale.
From: torchao 0.18, prototype/safetensors, checked against its own dequantisation.
"""

import json
from dataclasses import dataclass

from torch import Tensor

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.network.tensor_reader import TensorStore
from weights.quantized.layout import Found, QuantizedTensor, read_part
from weights.scaled_values import ScaledValues

_PLAIN = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
_UNQUANTISED = "Tensor"


def find_torchao(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all matrices of known kinds; raises CheckpointError for kinds that are packed."""
    names = frozenset(store.names())
    tensors: dict[str, QuantizedTensor] = {}
    used: set[str] = set()
    for name, described in store.metadata().items():
        kind = _kind(name, described)
        if kind is None or kind.text("_type") == _UNQUANTISED:
            continue
        if kind.text("_type") not in _PLAIN:
            raise kind.refuse("_type", f"but of torchao only {', '.join(_PLAIN)} are known")
        module, _, last = name.rpartition(".")
        reader = _Tensor(store, names, name, f"{module}._{last}_", _block(kind))
        tensors[name] = QuantizedTensor(reader.shape, reader.read)
        used.update(reader.prefix + part for part in kind.texts("_tensor_data_names"))
    if not tensors:
        raise CheckpointError(
            f"{fields.where}: the checkpoint is of torchao, but its safetensors say nothing of it"
        )
    return Found(tensors, frozenset(used))


def _kind(name: str, described: str) -> ConfigFields | None:
    """What the metadata says of a tensor; None where it speaks of something else."""
    try:
        values = json.loads(described)
    except ValueError:
        return None
    if not isinstance(values, dict) or "_type" not in values:
        return None
    return ConfigFields(values, f"the metadata of {name}")


def _block(kind: ConfigFields) -> tuple[int, int]:
    data = kind.section("_data")
    sides = () if data is None else data.numbers("block_size")
    if len(sides) != 2 or min(sides) < 1:
        raise kind.refuse("_data", "but block_size must be two whole numbers above 0")
    return int(sides[0]), int(sides[1])


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The stored parts of one matrix."""

    store: TensorStore
    names: frozenset[str]
    name: str
    prefix: str
    block: tuple[int, int]

    def shape(self) -> tuple[int, ...]:
        if f"{self.prefix}qdata" not in self.names:
            raise CheckpointError(f"tensor {self.name} has no values", tensor=self.name)
        return self.store.shape(f"{self.prefix}qdata")

    def read(self) -> ScaledValues:
        values, scales = self._part("qdata"), self._part("scale")
        zeros = None
        if f"{self.prefix}zero_point" in self.names:
            zeros = self._part("zero_point")
        found = ScaledValues(values, scales, self.block, zeros)
        found.check(self.name)
        return found

    def _part(self, part: str) -> Tensor:
        return read_part(self.store, self.names, self.prefix + part, of=self.name)
