"""A GGUF file: its metadata, and its tensors dequantised on reading.

The container is parsed here because the library builds an object per string, which takes
seconds for a vocabulary; the library does the dequantising.
From: the GGUF specification, version 3 (little endian).
"""

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf.quants
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from weights.config_fields import Json
from weights.errors import CheckpointError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Value types of the container and how struct spells them.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TYPES = frozenset(
    {
        GGMLQuantizationType.F32,
        GGMLQuantizationType.F16,
        GGMLQuantizationType.BF16,
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q4_K,
        GGMLQuantizationType.Q6_K,
    }
)
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class _TensorPlace:
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size_bytes: int


class GgufFile:
    """An open GGUF file."""

    def __init__(self, path: Path) -> None:
        """Map the file and read its head; raises CheckpointError when it is broken."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self._places = _Head(self._memory).read()
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise CheckpointError(f"{path} is no readable GGUF file: {error}") from error

    def names(self) -> Iterable[str]:
        """All tensor names."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, in PyTorch's order (the container's is the reverse)."""
        return self._places[name].shape

    def tensor(self, name: str) -> Tensor:
        """Dequantise a tensor to float32; raises CheckpointError for an unsupported type."""
        place = self._places[name]
        if place.kind not in _TYPES:
            known = ", ".join(sorted(kind.name for kind in _TYPES))
            raise CheckpointError(
                f"tensor {name} has type {place.kind.name}; supported are {known}", tensor=name
            )
        stored = np.frombuffer(
            self._memory, dtype=np.uint8, count=place.size_bytes, offset=place.start
        )
        rows = stored.reshape(math.prod(place.shape[:-1]), -1)
        values = gguf.quants.dequantize(rows, place.kind)
        # A copy: what the library returns for unquantised types is the read-only file itself.
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(place.shape))


class _Head:
    """Reads the container's head from its beginning; ValueError or struct.error when broken."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._at = 0

    def read(self) -> tuple[dict[str, Json], dict[str, _TensorPlace]]:
        if self._memory[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = len(MAGIC)
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported")
        num_tensors, num_fields = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Json] = {}
        for _ in range(num_fields):
            name = self._string()
            metadata[name] = self._value(self._number("<I"))
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        data_start = -(-self._at // alignment) * alignment
        return metadata, {
            name: self._place(name, shape, kind, data_start + offset)
            for name, shape, kind, offset in infos
        }

    def _place(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, start: int
    ) -> _TensorPlace:
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or min(shape) < 1 or shape[-1] % block_values:
            raise ValueError(f"tensor {name} of type {kind.name} cannot have shape {list(shape)}")
        size_bytes = math.prod(shape) // block_values * block_bytes
        if start + size_bytes > len(self._memory):
            raise ValueError(f"it ends before the end of tensor {name}")
        return _TensorPlace(shape, kind, start, size_bytes)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        num_dimensions = self._number("<I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
        dimensions = [self._number("<Q") for _ in range(num_dimensions)]
        kind = GGMLQuantizationType(self._number("<I"))
        return name, tuple(reversed(dimensions)), kind, self._number("<Q")

    def _value(self, kind: int) -> Json:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item_kind, count = self._number("<I"), self._number("<Q")
            return self._array(item_kind, count)
        value: Json = self._unpack(_scalar(kind))
        return value

    def _array(self, kind: int, count: int) -> Json:
        if kind in (_STRING, _ARRAY):
            return [self._value(kind) for _ in range(count)]
        form = _scalar(kind)
        size_bytes = count * struct.calcsize(form)
        if self._at + size_bytes > len(self._memory):
            raise ValueError("it ends inside its metadata")
        values = struct.unpack_from(f"<{count}{form[1]}", self._memory, self._at)
        self._at += size_bytes
        return list(values)

    def _string(self) -> str:
        length = self._number("<Q")
        if self._at + length > len(self._memory):
            raise ValueError("it ends inside its metadata")
        text = self._memory[self._at : self._at + length]
        self._at += length
        return text.decode("utf-8")

    def _number(self, form: str) -> int:
        value = self._unpack(form)
        return int(value)

    def _unpack(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(form, self._memory, self._at)[0]
        self._at += struct.calcsize(form)
        return value


def _scalar(kind: int) -> str:
    form = _SCALARS.get(kind)
    if form is None:
        raise ValueError(f"its metadata has a value of unknown type {kind}")
    return form
