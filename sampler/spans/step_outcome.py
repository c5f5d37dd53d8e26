"""`StepOutcome`: what the scores of a step changed, as far as anybody but the table must know.

Shapes: n scored rows.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import TokenKind
from sampler.state.sequence_table import IntArray


class SeatedRequests(Protocol):
    """What a span rule may ask of seated requests: their grammars and what their texts repeat."""

    def take(self, seats: IntArray, positions: IntArray) -> None:
        """Let grammars know tokens [n] that are final, in text order."""

    def hold(
        self,
        seats: IntArray,
        positions: IntArray,
        tokens: NDArray[np.int64],
        wanted: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which of the drafts [n] grammars allow to be accepted, and take.

        From the first open position on, as far as drafts follow each other, are wanted and
        allowed. The first one was drawn from what is allowed, and is accepted in any case. Drafts
        of answers without a grammar are accepted as wanted.
        """

    def repeated(self, seat: int, *, count: int) -> NDArray[np.int32]:
        """At most `count` tokens that followed the text's ending where it stood before."""


class Fill(NamedTuple):
    """Positions that took the tokens of rows [n].

    is_draft: they were drafts that had to be accepted
    """

    rows: IntArray
    kind: TokenKind
    is_draft: bool


class Round(NamedTuple):
    """How the verification of one sequence's proposals ended.

    rows:       of the verification [n], in the order of the text
    is_drafted: a round of drafts made the proposals; others tell nothing about drafts
    """

    rows: IntArray
    offered: int
    confirmed: int
    is_drafted: bool


@dataclass(slots=True)
class StepOutcome:
    """Filled by a span rule; turned into metrics, notes, observations and deltas by `Advance`.

    appended:     seats [n] that got one token each, and nothing else
    moved:        seats that changed in any other way
    fills:        tokens that positions took
    rounds:       verifications that ended
    singles:      rows [n] whose tokens came one by one where drafts might have
    revised:      (seat, tokens) that were replaced or given up
    num_edited:   of the filled positions, those that had another token
    num_wasted:   drafts that were not accepted
    canvas_steps: drafting steps of each canvas that ended
    """

    appended: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    moved: list[int] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    singles: list[IntArray] = field(default_factory=list)
    revised: list[tuple[int, int]] = field(default_factory=list)
    num_edited: int = 0
    num_wasted: int = 0
    canvas_steps: list[int] = field(default_factory=list)
    num_opened: int = 0
    num_closed: int = 0
    num_handed_to_ar: int = 0
