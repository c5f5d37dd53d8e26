"""`Undo`: takes a planned step back whole.

Between `begin` and `keep_changes` whoever is changed by planning a step notes how to take it back:
the sequence table what stands in its columns, by its own methods; the pool and the prefix cache
pages and who shares them; the scheduler the queue, the random seeds and counters. `take_back` does
so, the latest change first; the engine is then as if the step had never been planned. Grammars and
latents are only looked at while a step is planned.

What an empty seat's arrays hold has no meaning, and neither has it where pages of a seat end: these
are not restored. Neither is what is remembered of texts (`Endings`), which they say again.
"""

from collections.abc import Callable, Sequence

import numpy as np


class Undo:
    """Notes of one step at a time; outside of a step nothing is noted."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], None]] = []
        self._is_noting = False

    @property
    def is_noting(self) -> bool:
        """Whether a step is being planned, so that changes must be noted."""
        return self._is_noting

    def begin(self) -> None:
        """A step is planned from here on; raises RuntimeError when one is already."""
        if self._is_noting:
            raise RuntimeError("the step before was neither kept nor taken back")
        self._is_noting = True

    def keep_changes(self) -> None:
        """The step has run: nothing of it will be taken back."""
        self._actions.clear()
        self._is_noting = False

    def take_back(self) -> None:
        """Undo every change since `begin`, the latest first."""
        self._is_noting = False
        while self._actions:
            self._actions.pop()()

    def note(self, action: Callable[[], None]) -> None:
        """How to take back the change that comes next."""
        if self._is_noting:
            self._actions.append(action)

    def note_values(self, owner: object, *names: str) -> None:
        """Attributes of `owner` that are about to be replaced by other values."""
        if self._is_noting:
            values = [(name, getattr(owner, name)) for name in names]
            self._actions.append(lambda: _replace(owner, values))

    def note_arrays(self, owner: object, *names: str) -> None:
        """Arrays of `owner` that are about to be written to, anywhere."""
        if self._is_noting:
            values = [(name, getattr(owner, name).copy()) for name in names]
            self._actions.append(lambda: _write(owner, values, ...))

    def note_part(self, owner: object, index: object, *names: str) -> None:
        """What arrays of `owner` hold at an index that is about to be written to."""
        if self._is_noting:
            # An index of ints and slices gives a view, which would change with the array.
            values = [(name, np.array(getattr(owner, name)[index])) for name in names]
            self._actions.append(lambda: _write(owner, values, index))


def _replace(owner: object, values: Sequence[tuple[str, object]]) -> None:
    for name, value in values:
        setattr(owner, name, value)


def _write(owner: object, values: Sequence[tuple[str, object]], index: object) -> None:
    # By name: an array that was widened meanwhile is another one.
    for name, value in values:
        getattr(owner, name)[index] = value
