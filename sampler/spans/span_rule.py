"""`SpanRule`: what a family runs next of a sequence; where its texts may be cut or shared."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request
from sampler.spans.plan import Plan
from sampler.state.sequence_table import IntArray, SequenceTable


class SpanRule(Protocol):
    """One of these per kind of attention; the scheduler knows no other difference.

    settled_speak_of_next: scores of settled rows and proposals speak of the next position
    drafts_speak_of_next:  scores of drafted rows do
    suppresses_mask:       the mask token counts in no probability
    decides_by_position:   acceptance looks at a canvas by position; otherwise by rank
    """

    decides_by_position: bool
    settled_speak_of_next: bool
    drafts_speak_of_next: bool
    suppresses_mask: bool

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:
        """Where the last canvas of a request may end, in ranks; at least its last token."""

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Set up the order and the canvas of a sequence that was just seated."""

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """What follows when everything up to `final` is final: the next canvas, or a settling."""

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Open the canvas whose first position, at `final`, has just got its token."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """The uncut spans that the sequences want to run next, in the given order of seats."""

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Where to cut what the seat settles, up to `settle_stop`, to at most `rows` entries."""

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:
        """How many entries settling rows [T] see."""

    def sharing_length(self, table: SequenceTable, seat: int) -> int:
        """A page may be shared when this grid is settled to the end of the last touching cell."""

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What of the seat's text need not be run when its pages are found: keys in rank order."""

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What of the seat's text is settled: keys in rank order."""


class CausalSpans:
    """Left to right: a settling row of rank r sees r + 1 entries, and speaks of the next position.

    Autoregressive decoding is this rule with no drafts: the newest token settles, and its row
    draws the next one.
    """

    decides_by_position = True
    settled_speak_of_next = True
    drafts_speak_of_next = False
    suppresses_mask = False

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """The answer's own limit."""
        return len(request.prompt) + request.params.max_tokens

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Nothing to do: the prompt is final and there is no canvas."""

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Nothing to do: the next token is drawn when this one settles."""

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Never called: there are no canvases."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Everything that is final and not settled yet, and behind it what is proposed."""
        final, stop = table.final[seats], table.canvas_stop[seats]
        yes = np.ones(seats.size, dtype=np.bool_)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=stop,
            draft_stop=stop,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=yes,
            causal_drafts=yes,
            draft_limit=stop,
            checks=np.zeros(seats.size, dtype=np.bool_),
        )

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Anywhere."""
        return min(int(table.settled[seat]) + rows, settle_stop)

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:  # noqa: ARG002
        """The entries up to the row's own."""
        return entries + 1

    def sharing_length(self, table: SequenceTable, seat: int) -> int:  # noqa: ARG002
        """An entry depends on nothing after it."""
        return 1

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """All but the last final token, whose row draws the next one."""
        return table.text(seat, int(table.final[seat]) - 1)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """The settled tokens."""
        return table.text(seat, int(table.settled[seat]))
