"""`SpanRule`: what a family runs next of a sequence; where its texts may be cut or shared."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.plan import Plan
from sampler.request import Request
from sampler.sequence_table import IntArray, SequenceTable


class SpanRule(Protocol):
    """One of these per kind of attention; the scheduler knows no other difference.

    page_sharing_length: a page may be shared when this grid of positions is settled to the end
                         of the last cell that touches the page; 1 for causal models
    """

    page_sharing_length: int

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Set up the order and the canvas of a sequence that was just seated."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """The uncut spans that the sequences want to run next, in the given order of seats."""

    def cut(self, first: int, settle_stop: int, rows: int) -> int:
        """Where to cut settling entries `first <= e < settle_stop` to at most `rows` of them."""

    def limits(
        self, entries: IntArray, *, is_settling: NDArray[np.bool_], causal: NDArray[np.bool_],
        draft_stop: IntArray,
    ) -> IntArray:  # fmt: skip
        """How many entries each row [T] sees; `draft_stop` is that of the row's span."""

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """The beginning of the seat's text that need not be run when its pages are found."""

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What of the seat's text is settled, in cache order."""


class CausalSpans:
    """Left to right: a settling row of rank r sees r + 1 entries, and speaks of the next position.

    Autoregressive decoding is this rule with no drafts: the newest token settles, and its row
    draws the next one.
    """

    page_sharing_length = 1

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Nothing to do: the prompt is final and there is no canvas."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Everything that is final and not settled yet."""
        final = table.final[seats]
        yes = np.ones(seats.size, dtype=np.bool_)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=final,
            draft_stop=final,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=yes,
            causal_drafts=yes,
        )

    def cut(self, first: int, settle_stop: int, rows: int) -> int:
        """Anywhere."""
        return min(first + rows, settle_stop)

    def limits(
        self, entries: IntArray, *, is_settling: NDArray[np.bool_], causal: NDArray[np.bool_],
        draft_stop: IntArray,
    ) -> IntArray:  # fmt: skip
        """Settling rows and proposals see the entries up to their own."""
        return np.where(is_settling | causal, entries + 1, draft_stop)

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """All but the last final token, whose row draws the next one."""
        return table.text(seat, int(table.final[seat]) - 1)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """The settled tokens."""
        return table.text(seat, int(table.settled[seat]))
