"""`ProgressStore`: a store of tensors that says how much of it has been read."""

import math
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from weights.network.tensor_reader import TensorStore
from weights.scaled_values import ScaledValues

# Numbers read so far, and of how many.
Progress = Callable[[int, int], None]


class ProgressStore:
    """Hands tensors on and counts each name once, however often it is read."""

    def __init__(self, store: TensorStore, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self._total = sum(math.prod(store.shape(name)) for name in store.names())
        self._read: dict[str, int] = {}

    def names(self) -> Iterable[str]:
        """All names."""
        return self._store.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._store.shape(name)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        tensor = self._store.tensor(name)
        self._count(name)
        return tensor

    def scaled(self, name: str) -> ScaledValues | None:
        """Read the numbers and scales of a quantised tensor; None where it is not one."""
        found = self._store.scaled(name)
        if found is not None:
            self._count(name)
        return found

    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves."""
        return self._store.metadata()

    def _count(self, name: str) -> None:
        self._read[name] = math.prod(self._store.shape(name))
        self._progress(sum(self._read.values()), self._total)
