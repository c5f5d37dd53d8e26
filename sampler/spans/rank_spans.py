"""`RankSpans`: any order, causal in rank (Eso-LM B): entries lie in the order of decoding.

The prompt takes the first ranks in natural order, a suffix the ones after it. Then per step the
tokens of the last step settle and `num_drafts` masks are drafted, each seeing the entries up to
its own. Which position comes at which rank is drawn at the start, from the request's own seed:
first a diffusion part in random order, several at a time, then the rest from left to right, one
by one. From: Sahoo et al. 2025, Esoteric Language Models, sections 3-4; arXiv 2506.01928. We
draw counts and order for each request by itself, so that a batch cannot change them.
"""

import numpy as np
from numpy.typing import NDArray

from kernels import PURPOSE_ORDER
from sampler.balance.balance import rank_costs
from sampler.border.errors import PromptTooLong
from sampler.border.request import Request, TokenKind
from sampler.spans.drawn_tokens import accept, check, draft_rows, fill, propose
from sampler.spans.plan import Plan
from sampler.spans.rank_schedule import RankSchedule, draw_schedule, strided_schedule
from sampler.spans.scored import RowKind, StepScores
from sampler.spans.span_rule import SpanRule, StepLimits
from sampler.spans.step_outcome import SeatedRequests, StepOutcome
from sampler.state.acceptance import Rule
from sampler.state.decoding import Decoding, Mode
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule


class RankSpans(SpanRule):
    """Spans of an any-order family that is causal in rank."""

    has_order = True

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.suppresses_mask = rule.suppresses_mask
        self.round_costs = rank_costs()

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """Prompt, answer and suffix."""
        return len(request.prompt) + request.params.max_tokens + len(request.suffix)

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Give the known tokens the first ranks, and open the first window of the answer."""
        length, num_suffix = len(request.prompt), len(request.suffix)
        answer_stop = length + request.params.max_tokens
        behind = np.arange(answer_stop, answer_stop + num_suffix)
        table.set_order(seat, 0, np.concatenate((np.arange(length), behind)))
        table.place_known(seat, answer_stop, request.suffix)
        table.start_at(seat, length + num_suffix)
        self.open_canvas(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Open the next window of the answer and draw its order."""
        known, window = int(table.final[seat]), int(table.block_length[seat])
        num_suffix = int(table.room[seat] - table.limit[seat])
        # Ranks of the answer follow the suffix; its windows are consecutive positions.
        start = known - num_suffix
        stop = min(start + window, int(table.limit[seat]))
        self.begin_canvas(table, seat, self._schedule(table, seat, np.arange(start, stop)))

    def _schedule(self, table: SequenceTable, seat: int, positions: IntArray) -> RankSchedule:
        """The order of a window: the published draw, or left to right where nothing else is asked.

        Autoregressive decoding is the order from left to right, one by one. An adaptive sequence
        queries masks from left to right unless it names alpha_0.
        """
        alpha_0 = float(table.alpha_0[seat])
        if table.mode[seat] == Mode.AR:
            alpha_0 = 0.0
        length = int(table.sub_context[seat])
        if length and alpha_0 > 0:
            num_parts = -(-positions.size // length)
            return strided_schedule(positions, alpha_0=alpha_0, num_parts=num_parts)
        return draw_schedule(
            positions,
            alpha_0=alpha_0,
            num_steps=int(table.steps_planned[seat]),
            generator=np.random.default_rng(
                [abs(int(table.seeds[seat])), PURPOSE_ORDER, int(positions[0])]
            ),
        )

    def begin_canvas(self, table: SequenceTable, seat: int, schedule: RankSchedule) -> None:
        """Open the positions of a schedule."""
        start = int(table.final[seat])
        table.set_order(seat, start, schedule.positions)
        table.open_positions(seat, schedule.positions)
        table.begin_canvas(seat, start + schedule.positions.size)
        table.set_schedule(seat, schedule.counts)
        self.next_count(table, seat)

    def next_count(self, table: SequenceTable, seat: int) -> None:
        """How many masks the next step drafts: the schedule's count, or the sequence's width.

        Where the balance chooses, it is one until a round begins (`begin_rounds`).
        """
        left = int(table.canvas_stop[seat] - table.final[seat])
        verifies = bool(table.mode[seat] == Mode.SPECULATIVE)
        follows = not verifies and table.rule[seat] == Rule.EVERYTHING
        chosen = 1 if table.is_auto[seat] else int(table.width[seat])
        wanted = table.next_scheduled(seat) if follows and left else chosen
        # A checked proposal needs two entries; both must lie inside what the sequence may use.
        width = wanted if verifies and not table.is_auto[seat] else 0
        table.plan_drafts(seat, min(wanted, left), widths=width)

    def starts_round(self, table: SequenceTable, seats: IntArray) -> NDArray[np.bool_]:
        """Which of the seats [n] verify drafts and are about to draft, their prompts settled."""
        starts: NDArray[np.bool_] = table.mode[seats] == Mode.SPECULATIVE
        starts &= table.stage[seats] == Stage.DRAFT
        starts &= table.settled[seats] >= table.prompt_stop[seats]
        return starts & (table.canvas_stop[seats] > table.final[seats])

    def begin_rounds(self, table: SequenceTable, seats: IntArray, widths: IntArray) -> None:
        """So many masks are drafted now and checked in the step after; width 0 accepts one."""
        left = table.canvas_stop[seats] - table.final[seats]
        counts = np.minimum(np.maximum(widths, 1), left)
        table.plan_drafts(seats, counts, widths=np.where(widths > 0, counts, 0))

    def accept_ranks(self, table: SequenceTable, seat: int, count: int) -> None:
        """Put the accepted ones of the drafted ranks first; they are final."""
        assert table.order is not None, "an any-order family keeps an order"
        start = int(table.final[seat])
        drafted = table.order[seat, start : start + int(table.num_drafts[seat])].copy()
        is_open = table.is_open[seat, drafted]
        table.set_order(seat, start, np.concatenate((drafted[~is_open], drafted[is_open])))
        assert int((~is_open).sum()) == count, "what is accepted has a token"
        table.finish_part(seat, start + count)
        self.next_count(table, seat)

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """The tokens of the last step settle, the next masks are drafted or proposals checked."""
        final = table.final[seats]
        verifies = table.stage[seats] == Stage.VERIFY
        count = table.num_drafts[seats]
        propose_stop = final + np.where(verifies, count, 0)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=propose_stop,
            draft_stop=propose_stop + count,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=np.zeros(seats.size, dtype=np.bool_),
            causal_drafts=np.ones(seats.size, dtype=np.bool_),
            draft_limit=table.canvas_stop[seats],
            checks=verifies,
        )

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Tokens and positions of what is final, by rank."""
        return self._by_rank(table, seat, int(table.final[seat]))

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Tokens and positions of what is settled, by rank."""
        return self._by_rank(table, seat, int(table.settled[seat]))

    def _by_rank(self, table: SequenceTable, seat: int, stop: int) -> NDArray[np.int32]:
        assert table.order is not None, "an any-order family keeps an order"
        positions = table.order[seat, :stop]
        return np.stack((table.tokens[seat, positions], positions), axis=1)

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Masks check proposals, or drafts are accepted by rank; what is accepted is final."""
        outcome = StepOutcome()
        is_check = step.scored.kinds[rows] == RowKind.CHECK
        self._check(rows[is_check], step, table, outcome)
        rows = rows[~is_check]
        if rows.size == 0:
            return outcome
        verified, rows = draft_rows(rows, step, table)
        by_one = table.round_width[step.scored.seats[verified]] == 0
        propose(verified[~by_one], step, table, outcome)
        self._accept_singles(verified[by_one], step, table, outcome)
        accepted = accept(rows, step, table, requests, outcome, by_position=False)
        for seat, filled in zip(accepted.seats, accepted.filled, strict=True):
            self._go_on(table, seat, filled, outcome)
        return outcome

    def check(self, request: Request, decoding: Decoding, limits: StepLimits) -> None:
        """The masks that check proposals lie behind all of them."""
        if decoding.mode is not Mode.SPECULATIVE:
            return
        known, most = len(request.prompt) + len(request.suffix), limits.max_entries
        if known + request.params.max_tokens + decoding.width > most:
            raise PromptTooLong(
                prompt_tokens=known,
                max_tokens=request.params.max_tokens,
                limit_tokens=most - decoding.width,
            )

    def _check(
        self, rows: IntArray, step: StepScores, table: SequenceTable, outcome: StepOutcome
    ) -> None:
        seats = step.scored.seats[rows]
        for seat in np.unique(seats).tolist():
            count = check(rows[seats == seat], step, table, outcome)
            self._go_on(table, seat, count, outcome)

    def _accept_singles(
        self, rows: IntArray, step: StepScores, table: SequenceTable, outcome: StepOutcome
    ) -> None:
        """Drafts of sequences that decode by AR: drawn like the target, final at once."""
        fill(rows, step, table, outcome, kind=TokenKind.AR)
        seats: list[int] = step.scored.seats[rows].tolist()
        outcome.singles.append(rows)
        outcome.moved += seats
        for seat in seats:
            self._go_on(table, seat, 1, outcome)

    def _go_on(self, table: SequenceTable, seat: int, count: int, outcome: StepOutcome) -> None:
        """So many drafts were accepted, and are final at once."""
        self.accept_ranks(table, seat, count)
        if table.final[seat] < table.canvas_stop[seat]:
            return
        outcome.num_closed += 1
        if not self._is_full(table, seat):
            self.open_canvas(table, seat)

    def _is_full(self, table: SequenceTable, seat: int) -> bool:
        """Whether the whole answer has tokens."""
        start, stop = int(table.prompt_length[seat]), int(table.limit[seat])
        known = int(table.final[seat]) - (int(table.room[seat]) - stop)
        return known >= stop and not table.is_open[seat, start:stop].any()
