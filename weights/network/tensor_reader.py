"""The tensors of a checkpoint, asked for by the part they play in a network.

A network asks for parts ("q.weight" of layer 3); a family's `TensorNames` says what its
checkpoints call them. What is missing, has another shape or is left over is refused by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from weights.errors import CheckpointError
from weights.scaled_values import ScaledValues

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Enough left-over names to recognise the mistake, few enough for one line.
_NAMES_SHOWN = 3


class TensorStore(Protocol):
    """Named tensors somewhere on disk, read one at a time."""

    def names(self) -> Iterable[str]:
        """All names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; raises CheckpointError when the file is broken."""
        ...

    def scaled(self, name: str) -> ScaledValues | None:
        """Read the numbers and scales of a quantised tensor; None where it is not one."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves, as text by key."""
        ...


class Parts(Protocol):
    """Where a network takes its tensors from while it is built."""

    def has(self, part: str, layer: int | None = None, expert: int | None = None) -> bool:
        """Whether there is such a tensor."""
        ...

    def take(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> Tensor:
        """Read a tensor of this shape; raises CheckpointError when there is none."""
        ...

    def scaled(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> ScaledValues | None:
        """Read the numbers and scales of a quantised tensor; None where it is not one."""
        ...


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What checkpoints of a family call the parts of a network.

    table:      part -> name; "{layer}" and "{expert}" stand for their indices
    transposed: parts whose matrix is stored as [in, out]
    prefixes:   beginnings that some files have and others lack; left out of the table
    ignored:    regular expressions of names that carry nothing a network needs
    """

    table: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=(r".*rotary_emb\.inv_freq",))


class TensorReader:
    """Takes named tensors out of a store and remembers which were taken."""

    def __init__(self, store: TensorStore, names: TensorNames) -> None:
        self._store = store
        self._names = names
        self._stored = {_without_prefix(name, names.prefixes): name for name in store.names()}
        self._taken: set[str] = set()

    def has(self, part: str, layer: int | None = None, expert: int | None = None) -> bool:
        """Whether the family names this part and the checkpoint has it."""
        return part in self._names.table and self._name(part, layer, expert) in self._stored

    def take(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> Tensor:
        """Read a part as a float tensor of this shape.

        Raises CheckpointError when it is missing, has another shape, is not of float type or holds
        values that are no numbers.
        """
        name = self._found(part, shape, layer, expert)
        tensor = self._store.tensor(self._stored[name])
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"tensor {name} has type {tensor.dtype}, which is no supported float type",
                tensor=name,
            )
        _check_finite(tensor, name)
        self._taken.add(name)
        return tensor.T if part in self._names.transposed else tensor

    def scaled(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> ScaledValues | None:
        """Read the numbers and scales of a quantised part; None where it is not one.

        Raises CheckpointError when it is missing or has another shape.
        """
        name = self._found(part, shape, layer, expert)
        if part in self._names.transposed:
            return None
        found = self._store.scaled(self._stored[name])
        if found is not None:
            self._taken.add(name)
        return found

    def _found(
        self, part: str, shape: tuple[int, ...], layer: int | None, expert: int | None
    ) -> str:
        """The name of a part that is there and has this shape."""
        if part not in self._names.table:
            raise CheckpointError(f"this family's checkpoints have no {part}")
        name = self._name(part, layer, expert)
        if name not in self._stored:
            raise CheckpointError(f"tensor {name} is missing", tensor=name)
        stored_shape = self._store.shape(self._stored[name])
        wanted = tuple(reversed(shape)) if part in self._names.transposed else shape
        if stored_shape != wanted:
            raise CheckpointError(
                f"tensor {name} has shape {list(stored_shape)}, but the config asks for "
                f"{list(wanted)}",
                tensor=name,
            )
        return name

    def finish(self) -> None:
        """Raise CheckpointError when the checkpoint holds tensors that nobody took."""
        ignored = [re.compile(pattern) for pattern in self._names.ignored]
        left_over = sorted(
            name
            for name in self._stored
            if name not in self._taken and not any(pattern.fullmatch(name) for pattern in ignored)
        )
        if not left_over:
            return
        shown = ", ".join(left_over[:_NAMES_SHOWN])
        more = len(left_over) - _NAMES_SHOWN
        raise CheckpointError(
            f"the checkpoint holds tensors this network has no place for: {shown}"
            + (f" and {more} more" if more > 0 else ""),
            tensor=left_over[0],
        )

    def _name(self, part: str, layer: int | None, expert: int | None) -> str:
        return self._names.table[part].format(layer=layer, expert=expert)


def _check_finite(tensor: Tensor, name: str) -> None:
    # Of a tensor on the meta device only the shape is there.
    if tensor.numel() == 0 or tensor.is_meta:
        return
    # One pass that makes no copy; the extremes are no numbers when any entry is none.
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise CheckpointError(
            f"tensor {name} holds values that are infinite or no numbers", tensor=name
        )


def _without_prefix(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
