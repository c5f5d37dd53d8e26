"""`SpanRule`: all that a family does differently in a step, before it is run and after.

A rule has two halves. The first says what a sequence wants to run next, and where its texts may be
cut or shared; the second, what follows from the scores that came back. It keeps no state of
sequences: that is in the table, which is written by the table's own methods.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.balance.balance import RoundCosts
from sampler.border.request import DecodingParams, Request
from sampler.spans.drawn_tokens import append, draw_singles, verify
from sampler.spans.plan import Plan
from sampler.spans.scored import RowKind, StepScores
from sampler.spans.step_outcome import SeatedRequests, StepOutcome
from sampler.state.decoding import Decoding, Mode
from sampler.state.latent_table import LatentTable
from sampler.state.sequence_table import IntArray, SequenceTable, Stage


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What a step and the cache can hold.

    max_rows:    rows of a step
    max_entries: of all pages together
    """

    max_rows: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class WarmUpShape:
    """Requests that run together when an engine warms up.

    count, length: how many there are, and tokens of each prompt
    max_tokens:    of each answer; None for the usual number
    """

    count: int
    length: int
    decoding: DecodingParams
    max_tokens: int | None = None


class SpanRule(Protocol):
    """One of these per kind of attention; the engine knows no other difference.

    A rule names this class as its base and says what it does otherwise.

    settled_speak_of_next: scores of settled rows and proposals speak of the next position
    drafts_speak_of_next:  scores of drafted rows do
    suppresses_mask:       the mask token counts in no probability
    has_order:             entries lie in an order of their own (`SequenceTable.order`)
    round_costs:           rows of a round of drafts; None where drafts are not verified
    """

    settled_speak_of_next: bool = False
    drafts_speak_of_next: bool = False
    suppresses_mask: bool = False
    has_order: bool = False
    round_costs: RoundCosts | None = None

    # What a sequence wants to run.

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """The uncut spans that the sequences want to run next, in the given order of seats."""
        ...

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """Where the last canvas of a request may end, in ranks; at least its last token."""
        return len(request.prompt) + request.params.max_tokens

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:  # noqa: ARG002
        """Set up the order and the canvas of a sequence that was just seated."""
        return

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Where to cut what the seat settles, up to `settle_stop`, to at most `rows` entries."""
        return min(int(table.settled[seat]) + rows, settle_stop)

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:  # noqa: ARG002
        """How many entries settling rows [T] see: those up to their own, and it."""
        return entries + 1

    def sharing_length(self, table: SequenceTable, seat: int) -> int:  # noqa: ARG002
        """A page may be shared when this grid is settled to the end of the last touching cell.

        One where an entry depends on nothing behind it.
        """
        return 1

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What of the seat's text need not be run when its pages are found: keys in rank order."""
        return table.text(seat)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What of the seat's text is settled: keys in rank order."""
        return table.text(seat, int(table.settled[seat]))

    def starts_round(self, table: SequenceTable, seats: IntArray) -> NDArray[np.bool_]:  # noqa: ARG002
        """Which of the seats [n] are about to draft what will be verified."""
        return np.zeros(seats.size, dtype=np.bool_)

    def begin_rounds(self, table: SequenceTable, seats: IntArray, widths: IntArray) -> None:  # noqa: ARG002
        """Let seats [n] draft so many rows each; width 0 decodes by AR."""
        return

    # What follows from the scores.

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Apply what was drawn: tokens, what is final, the next canvases.

        rows: scored rows [n] of the step, without those whose tokens were given
        """
        ...

    def past_pinned(self, table: SequenceTable, seat: int, outcome: StepOutcome) -> None:  # noqa: ARG002
        """Go on, in a canvas of diffusion whose first open positions a grammar has filled."""
        return

    # What an engine over such a family needs.

    def new_latents(self, num_seats: int) -> LatentTable | None:  # noqa: ARG002
        """What the table keeps of latents, in a family that has them."""
        return None

    def check(self, request: Request, decoding: Decoding, limits: StepLimits) -> None:  # noqa: ARG002
        """Raise PromptTooLong when the request fits the context and can still never run."""
        return

    def warm_up(self, modes: tuple[str, ...]) -> Iterator[WarmUpShape]:  # noqa: ARG002
        """Shapes that warming up runs before the usual ones, for a model with these modes."""
        return iter(())


class CausalSpans(SpanRule):
    """Left to right: a settling row of rank r sees r + 1 entries, and speaks of the next position.

    Autoregressive decoding is this rule with no drafts: the newest token settles, and its row
    draws the next one.
    """

    settled_speak_of_next = True

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

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """All but the last final token, whose row draws the next one."""
        return table.text(seat, int(table.final[seat]) - 1)

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Draw the next tokens, and verify what was proposed."""
        outcome = StepOutcome()
        follow_causal(rows, step, table, requests, outcome)
        return outcome


def follow_causal(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    requests: SeatedRequests,
    outcome: StepOutcome,
) -> None:
    """What causal rows [n] drew is final; proposals are verified by it."""
    seats = step.scored.seats[rows]
    verifies = table.stage[seats] == Stage.VERIFY
    draws = (step.scored.kinds[rows] == RowKind.SETTLE) & ~verifies
    is_ar = table.mode[seats] == Mode.AR
    append(rows[draws & is_ar], step, table, requests, outcome)
    singles = rows[draws & ~is_ar]
    if singles.size:
        draw_singles(singles, step, table, requests, outcome)
        table.finish(step.scored.seats[singles], step.scored.positions[singles] + 1)
    verify(rows[verifies], step, table, requests, outcome)
