"""GPTQ and AWQ: integers of a few bits in groups along the inputs, each with scale and zero.

A module `m` has `m.qweight`, `m.qzeros` and `m.scales` [groups, out]; GPTQ also `m.g_idx` [in],
the group of each input.
From: Frantar et al. 2022, GPTQ, arXiv 2210.17323; Lin et al. 2023, AWQ, arXiv 2306.00978; the
layouts as gptqmodel 7.7 writes them, checked against its own dequantisation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weights.config_fields import ConfigFields
from weights.network.tensor_reader import TensorStore
from weights.quantized.layout import Found, QuantizedTensor, modules_with, read_part, used_names
from weights.scaled_values import ScaledValues, unpack_bits

_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
_GPTQ_FORMATS = ("gptq", "gptq_v2")
_GPTQ_BITS = (2, 4, 8)
# The eight numbers of a word of AWQ lie in this order; its place in it is where number i lies.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_AWQ_BITS = 4


@dataclass(frozen=True, slots=True)
class _Groups:
    """What the config says of all modules.

    group_size:    inputs that share a scale, or None for all of them
    adds_one:      zero points are stored less one (GPTQ, version 1)
    needs_index:   groups need not be in the order of the inputs, so `g_idx` must be there
    """

    num_bits: int
    group_size: int | None
    adds_one: bool = False
    needs_index: bool = False


def find_gptq(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all matrices of a GPTQ checkpoint; raises CheckpointError for unknown variants."""
    num_bits = fields.integer("bits")
    if num_bits not in _GPTQ_BITS:
        raise fields.refuse("bits", f"but only {_GPTQ_BITS} are known of GPTQ")
    form = fields.text("checkpoint_format", fields.text("format", "gptq"))
    if form not in _GPTQ_FORMATS:
        name = "checkpoint_format" if fields.has("checkpoint_format") else "format"
        raise fields.refuse(name, f"but only {', '.join(_GPTQ_FORMATS)} are known")
    groups = _Groups(
        num_bits,
        _group_size(fields),
        adds_one=form == "gptq",
        needs_index=fields.flag("desc_act", False),
    )
    return _find(store, groups, _GptqModule)


def find_awq(store: TensorStore, fields: ConfigFields) -> Found:
    """Find all matrices of an AWQ checkpoint; raises CheckpointError for unknown variants."""
    bits_field = "bits" if fields.has("bits") else "w_bit"
    if fields.integer(bits_field, _AWQ_BITS) != _AWQ_BITS:
        raise fields.refuse(bits_field, "but only 4 is known of AWQ")
    name = "version" if fields.has("version") else "format"
    if fields.text(name, "gemm").lower() != "gemm":
        raise fields.refuse(name, "but only gemm is known of AWQ")
    return _find(store, _Groups(_AWQ_BITS, _group_size(fields)), _AwqModule)


def _group_size(fields: ConfigFields) -> int | None:
    name = "group_size" if fields.has("group_size") else "q_group_size"
    size = fields.integer(name, -1)
    if size == -1:
        return None
    if size < 1:
        raise fields.refuse(name, "but a group has at least one column (or -1 for all)")
    return size


def _find(
    store: TensorStore,
    groups: _Groups,
    module_type: Callable[[TensorStore, frozenset[str], str, _Groups], "_GptqModule | _AwqModule"],
) -> Found:
    names = frozenset(store.names())
    tensors = {}
    for module in modules_with(store, ".qweight"):
        reader = module_type(store, names, module, groups)
        tensors[f"{module}.weight"] = QuantizedTensor(reader.shape, reader.read)
    return Found(tensors, used_names(store, _PARTS))


@dataclass(frozen=True, slots=True)
class _GptqModule:
    """Numbers packed along the inputs; zero points along the outputs."""

    store: TensorStore
    names: frozenset[str]
    module: str
    groups: _Groups

    def shape(self) -> tuple[int, ...]:
        words, out = self.store.shape(f"{self.module}.qweight")
        return out, words * 32 // self.groups.num_bits

    def read(self) -> ScaledValues:
        out, width = self.shape()
        bits = self.groups.num_bits
        words = self._part("qzeros")
        if self.groups.adds_one:
            # On whole words, as the library does: a zero point of 0 borrowed from its neighbour.
            words = words + _ones_in_every(bits)
        found = ScaledValues(
            values=unpack_bits(self._part("qweight").T, bits, width).to(torch.uint8),
            scales=self._part("scales").float().T,
            block=(1, self.groups.group_size or width),
            zeros=unpack_bits(words, bits, out).T,
            column_block=self._index(width),
        )
        found.check(f"{self.module}.weight")
        return found

    def _index(self, width: int) -> Tensor | None:
        """The group of each input [in]; None where groups are in order, as they may be anyway."""
        if not self.groups.needs_index and f"{self.module}.g_idx" not in self.names:
            return None
        index = self._part("g_idx")
        in_order = torch.arange(width) // (self.groups.group_size or width)
        return None if torch.equal(index.long(), in_order) else index

    def _part(self, suffix: str) -> Tensor:
        return read_part(
            self.store, self.names, f"{self.module}.{suffix}", of=f"{self.module}.weight"
        )


@dataclass(frozen=True, slots=True)
class _AwqModule:
    """Numbers and zero points packed along the outputs, eight to a word, interleaved."""

    store: TensorStore
    names: frozenset[str]
    module: str
    groups: _Groups

    def shape(self) -> tuple[int, ...]:
        width, words = self.store.shape(f"{self.module}.qweight")
        return words * 32 // _AWQ_BITS, width

    def read(self) -> ScaledValues:
        out, width = self.shape()
        found = ScaledValues(
            values=self._unpacked("qweight", out).to(torch.uint8),
            scales=self._part("scales").float().T,
            block=(1, self.groups.group_size or width),
            zeros=self._unpacked("qzeros", out),
        )
        found.check(f"{self.module}.weight")
        return found

    def _unpacked(self, suffix: str, count: int) -> Tensor:
        """Numbers of a part [rows, out / 8], put in order and turned: [out, rows]."""
        numbers = unpack_bits(self._part(suffix), _AWQ_BITS, count)
        return numbers.view(-1, count // 8, 8)[..., list(_AWQ_ORDER)].flatten(-2).T

    def _part(self, suffix: str) -> Tensor:
        return read_part(
            self.store, self.names, f"{self.module}.{suffix}", of=f"{self.module}.weight"
        )


def _ones_in_every(num_bits: int) -> int:
    """A word of int32 that holds 1 in each of its numbers."""
    return sum(1 << place for place in range(0, 32, num_bits))
