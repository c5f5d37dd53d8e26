"""`WholeSpans`: everything at once, both ways (LLaDA, Dream, MDLM): nothing settles.

A refresh runs the whole text; between refreshes an approximate cache may keep what lies before
the block (prefix) or around it (dual), and only the rest is run again in place. Entries lie by
position. From: Wu et al. 2025, Fast-dLLM, section 3.2; arXiv 2505.22618.
"""

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request
from sampler.spans.plan import Plan
from sampler.state.decoding import CacheKind
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule, Speaks


class WholeSpans:
    """Spans of a bidirectional family."""

    decides_by_position = True

    settled_speak_of_next = False

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.drafts_speak_of_next = rule.draft_speaks_of is Speaks.NEXT
        self.suppresses_mask = rule.suppresses_mask

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """Prompt, answer and suffix."""
        return len(request.prompt) + request.params.max_tokens + len(request.suffix)

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Open the whole answer; a suffix behind it is fixed."""
        length = len(request.prompt)
        answer_stop = length + request.params.max_tokens
        stop = answer_stop + len(request.suffix)
        table.tokens[seat, answer_stop:stop] = request.suffix
        table.is_fixed[seat, answer_stop:stop] = True
        table.is_open[seat, length:answer_stop] = True
        table.canvas_stop[seat] = stop
        table.prompt_stop[seat] = 0
        table.stage[seat] = Stage.DRAFT
        table.part_start[seat] = length
        table.part_open[seat] = min(int(table.sub_block_length[seat]), answer_stop - length)
        table.needs_refresh[seat] = True

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Nothing follows: the answer is one canvas."""

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Never called: no settled row draws a token."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Everything when the cache is to be refreshed, else what it does not keep."""
        stop = table.canvas_stop[seats]
        kind = np.where(table.needs_refresh[seats], CacheKind.NONE, table.cache_kind[seats])
        part_start = table.part_start[seats]
        part_stop = np.minimum(part_start + table.sub_block_length[seats], stop)
        # A family whose rows speak of the next position needs the row before the part as well.
        first = np.where(kind == CacheKind.NONE, 0, part_start - self.drafts_speak_of_next)
        draft_stop = np.where(kind == CacheKind.DUAL, part_stop, stop)
        return Plan(
            seats=seats,
            first=first,
            settle_stop=first,
            propose_stop=first,
            draft_stop=draft_stop,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=np.zeros(seats.size, dtype=np.bool_),
            causal_drafts=np.zeros(seats.size, dtype=np.bool_),
            draft_limit=stop,
            checks=np.zeros(seats.size, dtype=np.bool_),
        )

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:  # noqa: ARG002
        """Nowhere: a refresh is never cut."""
        return int(table.settled[seat])

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:  # noqa: ARG002
        """Nothing settles."""
        return entries + 1

    def sharing_length(self, table: SequenceTable, seat: int) -> int:
        """The whole text: no page is ever shared."""
        return int(table.canvas_stop[seat])

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Nothing."""
        return table.text(seat, 0)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Nothing."""
        return table.text(seat, 0)
