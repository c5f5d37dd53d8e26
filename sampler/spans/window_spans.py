"""`WindowSpans`: causal in rank over a sliding window (WeDLM).

A window of positions follows what is final. Its filled positions come first in the cache, its
masks after them, each at its true position and each seeing the entries up to its own; a filled
token is final as soon as everything to its left is, and until then it is run again in every
step. From: Liu et al. 2025, WeDLM, section 3 (topological reordering); arXiv 2512.22737.
"""

import numpy as np

from sampler.border.request import Request
from sampler.spans.drawn_tokens import accept, draft_rows
from sampler.spans.plan import Plan
from sampler.spans.scored import StepScores
from sampler.spans.span_rule import SpanRule
from sampler.spans.step_outcome import SeatedRequests, StepOutcome
from sampler.state.sequence_table import IntArray, SequenceTable
from weights.families import FamilyRule


class WindowSpans(SpanRule):
    """Spans of a family that fills a window in any order and settles from the left."""

    has_order = True

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.suppresses_mask = rule.suppresses_mask

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """The prompt is final; the answer is open, and the window stands at its start."""
        length = len(request.prompt)
        table.set_order(seat, 0, np.arange(length))
        table.open_positions(seat, slice(length, int(table.limit[seat])))
        self.slide(table, seat)

    def slide(self, table: SequenceTable, seat: int) -> None:
        """Make the filled run at the left final, and lay out the window that follows it."""
        start, limit = int(table.final[seat]), int(table.limit[seat])
        is_open = table.is_open[seat, start:limit]
        final = start + (int(is_open.argmax()) if is_open.any() else limit - start)
        stop = min(final + int(table.width[seat]), limit)
        window, masked = np.arange(final, stop), table.is_open[seat, final:stop]
        ranked = (np.arange(start, final), window[~masked], window[masked])
        table.set_order(seat, start, np.concatenate(ranked))
        table.finish_part(seat, final)
        table.slide_canvas(seat, stop)
        table.set_part(seat, int(masked.sum()))

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Settle what became final; run the window's filled positions, then its masks."""
        final, stop = table.final[seats], table.canvas_stop[seats]
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=final,
            draft_stop=stop,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=np.zeros(seats.size, dtype=np.bool_),
            causal_drafts=np.ones(seats.size, dtype=np.bool_),
            draft_limit=stop,
            checks=np.zeros(seats.size, dtype=np.bool_),
        )

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Accept drafts, and slide the windows on."""
        outcome = StepOutcome()
        _, rows = draft_rows(rows, step, table)
        for seat in accept(rows, step, table, requests, outcome, by_position=True).seats:
            self.slide(table, seat)
        return outcome

    def past_pinned(self, table: SequenceTable, seat: int, outcome: StepOutcome) -> None:  # noqa: ARG002
        """Slide the window on."""
        self.slide(table, seat)
        table.cut_backlog(seat)
