"""`WholeSpans`: everything at once, both ways (LLaDA, Dream, MDLM): nothing settles.

A refresh runs the whole text; between refreshes an approximate cache may keep what lies before
the block (prefix) or around it (dual), and only the rest is run again in place. Entries lie by
position. From: Wu et al. 2025, Fast-dLLM, section 3.2; arXiv 2505.22618.
"""

import numpy as np
from numpy.typing import NDArray

from sampler.border.errors import PromptTooLong
from sampler.border.request import Request
from sampler.spans.drawn_tokens import accept, draft_rows
from sampler.spans.full_canvas import close_after_steps, close_full
from sampler.spans.plan import Plan
from sampler.spans.scored import StepScores
from sampler.spans.span_rule import SpanRule, StepLimits
from sampler.spans.step_outcome import SeatedRequests, StepOutcome
from sampler.state.decoding import CacheKind, Decoding
from sampler.state.sequence_table import IntArray, SequenceTable
from weights.families import FamilyRule, Speaks


class WholeSpans(SpanRule):
    """Spans of a bidirectional family."""

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
        table.place_known(seat, answer_stop, request.suffix)
        table.open_positions(seat, slice(length, answer_stop))
        table.open_canvas(
            seat,
            answer_stop + len(request.suffix),
            part_start=length,
            part_open=min(int(table.sub_block_length[seat]), answer_stop - length),
        )
        table.skip_prompt(seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Nothing follows: the answer is one canvas."""

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

    def sharing_length(self, table: SequenceTable, seat: int) -> int:
        """The whole text: no page is ever shared."""
        return int(table.canvas_stop[seat])

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Nothing."""
        return table.text(seat, 0)

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Nothing."""
        return table.text(seat, 0)

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Accept drafts, and close the canvas when it is full."""
        outcome = StepOutcome()
        _, rows = draft_rows(rows, step, table)
        accepted = accept(rows, step, table, requests, outcome, by_position=True)
        close_after_steps(self, table, accepted, outcome)
        return outcome

    def past_pinned(self, table: SequenceTable, seat: int, outcome: StepOutcome) -> None:
        """Move to the next part, and close what is full."""
        table.move_part(seat)
        close_full(self, table, seat, outcome)

    def check(self, request: Request, decoding: Decoding, limits: StepLimits) -> None:  # noqa: ARG002
        """A refresh runs the whole text in one step."""
        known = len(request.prompt) + len(request.suffix)
        if known + request.params.max_tokens > limits.max_rows:
            raise PromptTooLong(
                prompt_tokens=known,
                max_tokens=request.params.max_tokens,
                limit_tokens=limits.max_rows,
            )
