"""`HeldRequests`: what span rules may ask of the requests that a scheduler has seated."""

import numpy as np
from numpy.typing import NDArray

from sampler.scheduler import Scheduler
from sampler.seats.constraint import Constraint
from sampler.state.sequence_table import IntArray


class HeldRequests:
    """Answers from the seats' records (`SeatedRequests`)."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table

    def take(self, seats: IntArray, positions: IntArray) -> None:
        """Let grammars know tokens [n] that are final, in text order."""
        special = self.table.is_special[seats]
        for seat, position in zip(
            seats[special].tolist(), positions[special].tolist(), strict=True
        ):
            constraint = self.scheduler.record(seat).constraint
            if constraint is not None:
                constraint.take([int(self.table.tokens[seat, position])])

    def hold(
        self,
        seats: IntArray,
        positions: IntArray,
        tokens: NDArray[np.int64],
        wanted: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which of the drafts [n] are accepted where grammars have a say."""
        accepted = wanted.copy()
        for seat in np.unique(seats[self.table.is_special[seats]]).tolist():
            constraint = self.scheduler.record(seat).constraint
            if constraint is None:
                continue
            own = np.flatnonzero(seats == seat)
            own = own[np.argsort(positions[own])]
            accepted[own] = _allowed_run(
                constraint,
                tokens=tokens[own].tolist(),
                wanted=wanted[own].tolist(),
                gaps=np.diff(positions[own], prepend=positions[own].min() - 1) != 1,
            )
        return accepted

    def repeated(self, seat: int, *, count: int) -> NDArray[np.int32]:
        """At most `count` tokens that followed the text's ending where it stood before."""
        endings = self.scheduler.record(seat).endings
        if endings is None:
            return np.zeros(0, dtype=np.int32)
        return endings.find(self.table.text(seat), count=count)


def _allowed_run(
    constraint: Constraint, *, tokens: list[int], wanted: list[bool], gaps: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the drafts, from the frontier on, are taken: a run from the left."""
    taken = np.zeros(len(tokens), dtype=np.bool_)
    for index, token in enumerate(tokens):
        stops = index > 0 and (gaps[index] or not wanted[index])
        if stops or constraint.take([token]) == 0:
            break
        taken[index] = True
    return taken
