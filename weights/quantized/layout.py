"""`QuantizedTensor`: a matrix that lies in a checkpoint as several tensors, and who finds them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from weights.errors import CheckpointError
from weights.network.tensor_reader import TensorStore
from weights.scaled_values import ScaledValues


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix stored in parts.

    shape: of the matrix, read without its values
    read:  its values and scales; raises CheckpointError when a part is missing or misshapen
    """

    shape: Callable[[], tuple[int, ...]]
    read: Callable[[], ScaledValues]


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout makes of a checkpoint's names.

    tensors: by the name the unquantised matrix would have
    used:    stored names that are part of one of them, or say nothing that is needed here
    """

    tensors: dict[str, QuantizedTensor]
    used: frozenset[str]


def modules_with(store: TensorStore, suffix: str) -> Iterable[str]:
    """The beginnings of all names that end in a suffix."""
    return [name.removesuffix(suffix) for name in store.names() if name.endswith(suffix)]


def used_names(store: TensorStore, suffixes: tuple[str, ...]) -> frozenset[str]:
    """All names that end in one of some suffixes."""
    return frozenset(name for name in store.names() if name.endswith(suffixes))


def read_part(store: TensorStore, names: frozenset[str], name: str, *, of: str) -> Tensor:
    """Read a part of a quantised tensor; raises CheckpointError when it is not there."""
    if name not in names:
        raise CheckpointError(
            f"tensor {of} is quantised, but its part {name} is missing", tensor=of
        )
    return store.tensor(name)
