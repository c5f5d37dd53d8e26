"""`WindowSpans`: causal in rank over a sliding window (WeDLM).

A window of positions follows what is final. Its filled positions come first in the cache, its
masks after them, each at its true position and each seeing the entries up to its own; a filled
token is final as soon as everything to its left is, and until then it is run again in every
step. From: Liu et al. 2025, WeDLM, section 3 (topological reordering); arXiv 2512.22737.
"""

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request
from sampler.spans.plan import Plan
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule


class WindowSpans:
    """Spans of a family that fills a window in any order and settles from the left."""

    settled_speak_of_next = False
    drafts_speak_of_next = False
    decides_by_position = True

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.suppresses_mask = rule.suppresses_mask

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """The answer's own limit."""
        return len(request.prompt) + request.params.max_tokens

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """The prompt is final; the answer is open, and the window stands at its start."""
        assert table.order is not None, "a reordered window keeps an order"
        length = len(request.prompt)
        table.order[seat, :length] = np.arange(length)
        table.is_open[seat, length : table.limit[seat]] = True
        table.stage[seat] = Stage.DRAFT
        self.slide(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Nothing to do: the window slides as it fills."""

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Never called: no settled row draws a token."""

    def slide(self, table: SequenceTable, seat: int) -> None:
        """Make the filled run at the left final, and lay out the window that follows it."""
        assert table.order is not None, "a reordered window keeps an order"
        start, limit = int(table.final[seat]), int(table.limit[seat])
        is_open = table.is_open[seat, start:limit]
        final = start + (int(is_open.argmax()) if is_open.any() else limit - start)
        table.order[seat, start:final] = np.arange(start, final)
        stop = min(final + int(table.width[seat]), limit)
        window = np.arange(final, stop)
        masked = table.is_open[seat, final:stop]
        table.order[seat, final:stop] = np.concatenate((window[~masked], window[masked]))
        table.final[seat] = table.part_start[seat] = final
        table.canvas_stop[seat] = stop
        table.part_open[seat] = int(masked.sum())

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

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Anywhere."""
        return min(int(table.settled[seat]) + rows, settle_stop)

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:  # noqa: ARG002
        """The entries up to the row's own."""
        return entries + 1

    def sharing_length(self, table: SequenceTable, seat: int) -> int:  # noqa: ARG002
        """An entry depends on nothing of higher rank."""
        return 1

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What is final: its ranks are its positions."""
        return table.text(seat)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What is settled."""
        return table.text(seat, int(table.settled[seat]))
