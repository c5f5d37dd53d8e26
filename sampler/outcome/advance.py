"""`Advance`: what a step's scores change in the sequences, and what their clients are told.

The counterpart of `Scheduler.plan`: settled entries are recorded, drawn tokens become final,
drafts are accepted or confirmed, canvases open and close, answers end, and every change that a
client may see becomes a delta.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler.border.engine_metrics import EngineMetrics
from sampler.border.messages import TokenBatch
from sampler.border.request import Delta, TokenKind, TokenTrace, has_penalties
from sampler.outcome.canvas_acceptance import Decision, decide, remasked, uncertainty
from sampler.outcome.deltas import DeltaWriter
from sampler.outcome.forced_tokens import pin_forced
from sampler.outcome.latent_advance import evolve, follow_branch, slide
from sampler.scheduler import Scheduler
from sampler.seats.constraint import Constraint
from sampler.spans.canvas_spans import CanvasSpans
from sampler.spans.latent_spans import LatentSpans
from sampler.spans.plan import Plan
from sampler.spans.rank_spans import RankSpans
from sampler.spans.window_spans import WindowSpans
from sampler.state.decoding import CacheKind, Mode
from sampler.state.sequence_table import NEVER_EDIT, TOKEN_KINDS, IntArray, Stage
from sampler.step.runner import HostScores
from sampler.step.score_spec import Vocabulary
from sampler.step.step_input import RowKind, ScoredRows

_AR = TOKEN_KINDS.index(TokenKind.AR)
_DIFFUSION = TOKEN_KINDS.index(TokenKind.DIFFUSION)
_VERIFIED = TOKEN_KINDS.index(TokenKind.VERIFIED)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one step ran and what came back."""

    plan: Plan
    scored: ScoredRows
    scores: HostScores


class Advance:
    """Applies what came back from a step to the sequences of a scheduler."""

    def __init__(
        self, scheduler: Scheduler, vocabulary: Vocabulary, metrics: EngineMetrics
    ) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table
        self.rule = scheduler.rule
        self.vocabulary = vocabulary
        self.metrics = metrics
        self.deltas = DeltaWriter(scheduler, vocabulary)
        # (first verifying row, drafts offered, drafts confirmed) of the step's rounds
        self._rounds: list[tuple[int, int, int]] = []

    def apply(
        self, plan: Plan, scored: ScoredRows, scores: HostScores, *, now_s: float
    ) -> tuple[TokenBatch, list[Delta]]:
        """Settle, decide, end answers; the deltas of the step, each request at most once."""
        table = self.table
        step = _Step(plan, scored, scores)
        self.scheduler.settle(plan)
        scored_seats = np.unique(scored.seats[~scored.is_given])
        table.steps[scored_seats] += 1
        if scored.is_given.any():
            self.deltas.collect_prompt_logprobs(scored, scores)
        drawn = np.flatnonzero(~scored.is_given)
        evolved = self._evolve(drawn, step)
        drawn = drawn[~np.isin(scored.seats[drawn], evolved)]
        kinds, seats = scored.kinds[drawn], scored.seats[drawn]
        verifies = table.stage[seats] == Stage.VERIFY
        appends = (kinds == RowKind.SETTLE) & ~verifies
        appended = self._append(drawn[appends], step)
        moved = [
            *evolved,
            *self._open_drawn(drawn[appends], step),
            *self._verify(drawn[verifies & (kinds != RowKind.CHECK)], step),
            *self._check(drawn[kinds == RowKind.CHECK], step),
            *self._accept(drawn[kinds == RowKind.DRAFT], step),
        ]
        self._report_rounds(step)
        self._pin_forced(moved)
        return self.deltas.write(appended, moved, now_s=now_s)

    def _evolve(self, rows: IntArray, step: _Step) -> list[int]:
        """All that happens to sequences with latent canvases but for those that decode by AR."""
        table, scored = self.table, step.scored
        if not isinstance(self.rule, LatentSpans):
            return []
        rows = rows[table.mode[scored.seats[rows]] != Mode.AR]
        by_canvas = table.mode[scored.seats[rows]] == Mode.DIFFUSION
        return [*self._follow(rows[~by_canvas], step), *self._move(rows[by_canvas], step)]

    def _follow(self, rows: IntArray, step: _Step) -> list[int]:
        """Verify proposals, and propose what the branch behind the confirmed ones drafted."""
        table, scored = self.table, step.scored
        seats = scored.seats[rows]
        starts = table.final[seats]
        is_draft = scored.kinds[rows] == RowKind.DRAFT
        table.attempts[seats[is_draft], scored.positions[rows[is_draft]]] += 1
        moved = self._verify(rows[~is_draft], step)
        for seat in moved:
            own = seats == seat
            confirmed = int(table.settled[seat] - starts[own][0])
            drafted = rows[own & is_draft]
            if drafted.size:
                follow_branch(
                    seat,
                    drafted,
                    confirmed=confirmed,
                    endings=self.scheduler.record(seat).endings,
                    table=table,
                    scored=scored,
                    scores=step.scores,
                )
        return moved

    def _move(self, rows: IntArray, step: _Step) -> list[int]:
        """Fill positions whose latents are ready, move the others, slide canvases on."""
        table, scored = self.table, step.scored
        if rows.size == 0:
            return []
        assert isinstance(self.rule, LatentSpans), "only latents move"
        evolved = evolve(
            rows,
            scored,
            step.scores,
            table,
            self.rule,
            vocabulary_size=self.vocabulary.size,
        )
        decision = Decision(evolved.rows, evolved.is_ready, np.zeros_like(evolved.is_ready))
        self._hold_to_grammars(decision, step)
        table.attempts[scored.seats[evolved.rows], scored.positions[evolved.rows]] += 1
        for kind, chosen in (
            (TokenKind.AR, decision.accepted & evolved.is_exact),
            (TokenKind.DIFFUSION, decision.accepted & ~evolved.is_exact),
        ):
            self._fill(evolved.rows[chosen], step, kind)
        self.metrics.rows_wasted += evolved.rows.size - int(decision.accepted.sum())
        moved: list[int] = np.unique(scored.seats[rows]).tolist()
        uncertain = self._uncertainty(evolved.rows, step)
        for seat in moved:
            self._slide(seat, evolved.rows, uncertain, step)
        return moved

    def _fill(self, rows: IntArray, step: _Step, kind: TokenKind) -> None:
        """Give positions of canvases the tokens that were drawn for them."""
        table, scored = self.table, step.scored
        seats, positions = scored.seats[rows], scored.positions[rows]
        self._note(rows[table.is_special[seats]], step, kind)
        table.tokens[seats, positions] = step.scores.token[rows]
        table.is_open[seats, positions] = False
        table.kinds[seats, positions] = TOKEN_KINDS.index(kind)
        table.confidence[seats, positions] = step.scores.probability[rows]
        self.metrics.accepted_entropy.observe_many(step.scores.entropy[rows])
        if kind is TokenKind.AR:
            self.metrics.tokens_ar += rows.size
        else:
            self.metrics.tokens_diffusion += rows.size

    def _slide(
        self, seat: int, rows: IntArray, uncertain: NDArray[np.float64], step: _Step
    ) -> None:
        table, scored = self.table, step.scored
        own = scored.seats[rows] == seat
        middle = table.final[seat] + max(int(table.width_now[seat]) // 2, 1)
        left = uncertain[own & (scored.positions[rows] < middle)]
        table.canvas_steps[seat] += 1
        slide(seat, mean_uncertainty=float(left.mean()) if left.size else None, table=table)
        if table.final[seat] < table.limit[seat]:
            self.rule.open_canvas(table, seat)

    def _append(self, rows: IntArray, step: _Step) -> IntArray:
        """Make the drawn token of autoregressive sequences final; their seats."""
        table = self.table
        rows = rows[table.mode[step.scored.seats[rows]] == Mode.AR]
        seats = step.scored.seats[rows]
        self._note(rows[table.is_special[seats]], step, TokenKind.AR)
        table.tokens[seats, table.final[seats]] = step.scores.token[rows]
        table.confidence[seats, table.final[seats]] = step.scores.probability[rows]
        self._take(seats[table.is_special[seats]], table.final[seats[table.is_special[seats]]])
        table.final[seats] += 1
        table.canvas_stop[seats] = table.final[seats]
        self.metrics.tokens_ar += seats.size
        return seats

    def _open_drawn(self, rows: IntArray, step: _Step) -> list[int]:
        """The drawn token of a drafting family: a seed of the canvas, or final and drafted from."""
        table, scored = self.table, step.scored
        rows = rows[table.mode[scored.seats[rows]] != Mode.AR]
        self._note(rows[table.is_special[scored.seats[rows]]], step, TokenKind.AR)
        self.metrics.tokens_ar += rows.size
        moved: list[int] = scored.seats[rows].tolist()
        self._observe_singles(rows, step)
        for row, seat in zip(rows.tolist(), moved, strict=True):
            position = int(table.final[seat])
            table.tokens[seat, position] = step.scores.token[row]
            table.kinds[seat, position] = _AR
            table.confidence[seat, position] = step.scores.probability[row]
            self._take(np.array([seat]), np.array([position]))
            if table.mode[seat] == Mode.SPECULATIVE or position < table.ar_until[seat]:
                table.final[seat] += 1
                table.canvas_stop[seat] = table.final[seat]
            else:
                self.rule.open_seeded(table, seat)
                self.metrics.canvases_opened += 1
                self._close_full(seat)
        return moved

    def _observe_singles(self, rows: IntArray, step: _Step) -> None:
        """Tell the balance how uncertain the tokens were that its sequences got one by one."""
        balance = self.scheduler.balance
        rows = rows[self.table.is_auto[step.scored.seats[rows]]]
        if balance is not None and rows.size:
            balance.observe_singles(step.scored.seats[rows], self._uncertainty(rows, step))

    def _observe_round(self, rows: IntArray, step: _Step, *, offered: int, confirmed: int) -> None:
        """Count what a round of one sequence confirmed, and keep it for the balance."""
        self.metrics.proposals += offered
        self.metrics.proposals_accepted += confirmed
        self.metrics.rows_wasted += offered - confirmed
        self.metrics.accepted_entropy.observe_many(step.scores.entropy[rows[: confirmed + 1]])
        seat = step.scored.seats[rows[0]]
        # Proposals that no round of drafts made tell nothing about drafts.
        if self.table.is_auto[seat] and self.table.round_width[seat] > 0:
            self._rounds.append((int(rows[0]), offered, confirmed))

    def _report_rounds(self, step: _Step) -> None:
        """Tell the balance how the rounds of this step ended."""
        balance = self.scheduler.balance
        if balance is None or not self._rounds:
            return
        rows, offered, confirmed = np.array(self._rounds).T
        self._rounds.clear()
        uncertain = self._uncertainty(rows, step)
        balance.observe_rounds(step.scored.seats[rows], offered, confirmed, uncertain)

    def _uncertainty(self, rows: IntArray, step: _Step) -> NDArray[np.float64]:
        largest = math.log(self.vocabulary.size)
        return np.clip(step.scores.entropy[rows].astype(np.float64) / largest, 0.0, 1.0)

    def _verify(self, rows: IntArray, step: _Step) -> list[int]:
        """Confirm proposals by what the verifying rows draw; the first other token is final too."""
        table, scored = self.table, step.scored
        moved = []
        for seat in np.unique(scored.seats[rows]).tolist():
            own = rows[scored.seats[rows] == seat]
            # Behind a prompt that was cut there may be room for fewer proposals, or for none.
            start = int(table.final[seat])
            stop = min(int(table.canvas_stop[seat]), start + own.size - 1)
            drawn = step.scores.token[own]
            equal = drawn[:-1] == table.tokens[seat, start:stop]
            confirmed = int(np.argmin(np.append(equal, False)))
            new_stop = min(start + confirmed + 1, int(table.limit[seat]))
            self._note(own[: new_stop - start], step, TokenKind.VERIFIED, last=confirmed)
            table.tokens[seat, start:new_stop] = drawn[: new_stop - start]
            table.confidence[seat, start:new_stop] = step.scores.probability[own][
                : new_stop - start
            ]
            table.kinds[seat, start:new_stop] = _VERIFIED
            table.kinds[seat, start + confirmed : new_stop] = _AR
            positions = np.arange(start, new_stop)
            self._take(np.full(positions.size, seat), positions)
            table.final[seat] = table.canvas_stop[seat] = new_stop
            # The confirmed proposals were stored as they will stay; the last draw was not run.
            table.settled[seat] = min(start + confirmed, new_stop)
            self._observe_round(own, step, offered=stop - start, confirmed=confirmed)
            proposer = self.scheduler.record(seat).proposer
            if proposer is not None:
                proposer.observe(num_confirmed=confirmed)
            self.metrics.tokens_verified += min(confirmed, new_stop - start)
            self.metrics.tokens_ar += max(new_stop - start - confirmed, 0)
            table.stage[seat] = Stage.SETTLE
            moved.append(seat)
        return moved

    def _check(self, rows: IntArray, step: _Step) -> list[int]:
        """The same in any order: the mask at a proposal's position draws the target's token."""
        table, scored, rule = self.table, step.scored, self.rule
        moved = []
        for seat in np.unique(scored.seats[rows]).tolist():
            assert isinstance(rule, RankSpans), "only any-order families check by masks"
            own = rows[scored.seats[rows] == seat]
            positions, drawn = scored.positions[own], step.scores.token[own]
            equal = drawn == table.tokens[seat, positions]
            confirmed = own.size if equal.all() else int(np.argmin(equal))
            count = min(confirmed + 1, own.size)
            self._note(own[:count], step, TokenKind.VERIFIED, last=confirmed)
            table.tokens[seat, positions[:count]] = drawn[:count]
            table.confidence[seat, positions[:count]] = step.scores.probability[own[:count]]
            table.kinds[seat, positions[:confirmed]] = _VERIFIED
            table.kinds[seat, positions[confirmed:count]] = _AR
            table.is_open[seat, positions[count:]] = True
            table.settled[seat] = table.final[seat] + confirmed
            table.stage[seat] = Stage.DRAFT
            self._observe_round(own, step, offered=own.size, confirmed=confirmed)
            self.metrics.tokens_verified += confirmed
            self.metrics.tokens_ar += count - confirmed
            self._rank_accepted(seat, count)
            moved.append(seat)
        return moved

    def _accept(self, rows: IntArray, step: _Step) -> list[int]:
        """Fill open positions with accepted drafts, and close canvases that are full."""
        table, scored = self.table, step.scored
        if rows.size == 0:
            return []
        seats = scored.seats[rows]
        table.attempts[seats, scored.positions[rows]] += 1
        verifies = table.mode[seats] == Mode.SPECULATIVE
        is_single = verifies & (table.round_width[seats] == 0)
        proposed = self._propose(rows[verifies & ~is_single], step)
        singles = self._accept_singles(rows[is_single], step)
        rows = rows[~verifies]
        if rows.size == 0:
            return [*proposed, *singles]
        mask_id = -1 if self.vocabulary.mask_id is None else self.vocabulary.mask_id
        decision = decide(
            rows,
            scored,
            step.scores,
            table,
            mask_id=mask_id,
            by_position=self.rule.decides_by_position,
        )
        self._hold_to_grammars(decision, step)
        reopened = self._remask(np.unique(scored.seats[rows]), decision, scored)
        taken = rows[decision.accepted]
        seats, positions = scored.seats[taken], scored.positions[taken]
        self._note(taken[table.is_special[seats]], step, TokenKind.DIFFUSION)
        table.tokens[seats, positions] = step.scores.token[taken]
        table.is_open[seats, positions] = False
        table.kinds[seats, positions] = _DIFFUSION
        table.confidence[seats, positions] = step.scores.probability[taken]
        num_edited = int(decision.edited.sum())
        self.metrics.accepted_entropy.observe_many(step.scores.entropy[taken])
        self.metrics.tokens_diffusion += taken.size - num_edited
        self.metrics.tokens_revised += num_edited
        self.metrics.rows_wasted += rows.size - taken.size
        moved = np.unique(scored.seats[rows])
        accepted = np.bincount(seats, minlength=table.num_seats)[moved]
        edited = np.bincount(scored.seats[rows[decision.edited]], minlength=table.num_seats)[moved]
        table.is_open[reopened] = True
        self._count_steps(moved, accepted - edited)
        for seat, count, edits in zip(
            moved.tolist(), accepted.tolist(), edited.tolist(), strict=True
        ):
            table.draws_mask[seat] = count == 0
            self.scheduler.record(seat).num_revised += edits
            self._move_on(seat, num_accepted=count - edits, num_edited=edits)
        return [*proposed, *singles, *(int(seat) for seat in moved)]

    def _remask(
        self, seats: IntArray, decision: Decision, scored: ScoredRows
    ) -> tuple[IntArray, IntArray]:
        """(seats, positions) that become open again; never in a step that accepts nothing."""
        gains = np.unique(scored.seats[decision.rows[decision.accepted]])
        seats = seats[np.isin(seats, gains) & (self.table.remask[seats] > 0)]
        reopened = remasked(seats, self.table)
        self.metrics.tokens_revised += reopened[0].size
        for seat in reopened[0].tolist():
            self.scheduler.record(seat).num_revised += 1
        return reopened

    def _accept_singles(self, rows: IntArray, step: _Step) -> list[int]:
        """Drafts of any-order sequences that decode by AR: drawn like the target, final at once."""
        table, scored = self.table, step.scored
        seats, positions = scored.seats[rows], scored.positions[rows]
        self._observe_singles(rows, step)
        self._note(rows[table.is_special[seats]], step, TokenKind.AR)
        table.tokens[seats, positions] = step.scores.token[rows]
        table.is_open[seats, positions] = False
        table.kinds[seats, positions] = _AR
        table.confidence[seats, positions] = step.scores.probability[rows]
        self.metrics.tokens_ar += rows.size
        moved: list[int] = seats.tolist()
        for seat in moved:
            self._rank_accepted(seat, 1)
        return moved

    def _take(self, seats: IntArray, positions: IntArray) -> None:
        """Let the grammars of sequences know tokens that are final, in text order."""
        for seat, position in zip(seats.tolist(), positions.tolist(), strict=True):
            constraint = self.scheduler.record(seat).constraint
            if constraint is not None:
                constraint.take([int(self.table.tokens[seat, position])])

    def _hold_to_grammars(self, decision: Decision, step: _Step) -> None:
        """Accept drafts of constrained answers from the frontier on, as far as they are allowed.

        The frontier's own draft was drawn from what the grammar allows there, and is accepted.
        """
        seats = step.scored.seats[decision.rows]
        for seat in np.unique(seats[self.table.is_special[seats]]).tolist():
            constraint = self.scheduler.record(seat).constraint
            if constraint is None:
                continue
            own = np.flatnonzero(seats == seat)
            positions = step.scored.positions[decision.rows[own]]
            own = own[np.argsort(positions)]
            decision.accepted[own] = self._allowed_run(
                constraint,
                tokens=step.scores.token[decision.rows[own]].tolist(),
                wanted=decision.accepted[own].tolist(),
                gaps=np.diff(np.sort(positions), prepend=positions.min() - 1) != 1,
            )

    def _pin_forced(self, seats: list[int]) -> None:
        """Fill what grammars leave no choice about, in canvases that no verification follows."""
        table = self.table
        for seat in seats:
            if not table.is_special[seat] or table.mode[seat] != Mode.DIFFUSION:
                continue
            record, mask_id = self.scheduler.record(seat), self.vocabulary.mask_id
            while count := pin_forced(seat, record, table, mask_id=mask_id):
                self.metrics.tokens_diffusion += count
                self.metrics.tokens_forced += count
                self._move_past_pinned(seat)

    def _move_past_pinned(self, seat: int) -> None:
        """Make what can be final, and open what follows it, as after a step."""
        table = self.table
        if isinstance(self.rule, WindowSpans):
            self.rule.slide(table, seat)
        elif isinstance(self.rule, LatentSpans):
            slide(seat, mean_uncertainty=None, table=table)
            if table.final[seat] < table.limit[seat]:
                self.rule.open_canvas(table, seat)
        else:
            self._move_part(seat)
            self._close_full(seat)
        backlog = table.final[seat] - table.settled[seat]
        settles = isinstance(self.rule, CanvasSpans | LatentSpans | WindowSpans)
        if settles and backlog > table.canvas_stop[seat] - table.final[seat]:
            # More to settle than a canvas ever leaves: it may be cut to the budget, as a prompt is.
            table.prompt_stop[seat] = table.final[seat]

    def _allowed_run(
        self,
        constraint: Constraint,
        *,
        tokens: list[int],
        wanted: list[bool],
        gaps: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which of the drafts, from the frontier on, are taken: a run from the left."""
        taken = np.zeros(len(tokens), dtype=np.bool_)
        for index, token in enumerate(tokens):
            stops = index > 0 and (gaps[index] or not wanted[index])
            if stops or constraint.take([token]) == 0:
                break
            taken[index] = True
        return taken

    def _propose(self, rows: IntArray, step: _Step) -> list[int]:
        """Drafts that will be verified: every position takes its token, none is final.

        The seats whose clients may want to see them.
        """
        table, scored = self.table, step.scored
        seats, positions = scored.seats[rows], scored.positions[rows]
        table.tokens[seats, positions] = step.scores.token[rows]
        table.confidence[seats, positions] = step.scores.probability[rows]
        table.is_open[seats, positions] = False
        seats = np.unique(seats)
        table.stage[seats] = Stage.VERIFY
        shown: list[int] = seats[table.is_special[seats]].tolist()
        return shown

    def _count_steps(self, seats: IntArray, accepted: IntArray) -> None:
        table = self.table
        owed = table.part_open[seats] // table.steps_planned[seats] + table.carry[seats]
        table.carry[seats] = np.maximum(owed - accepted, 0)
        table.canvas_steps[seats] += 1
        table.part_steps[seats] += 1
        table.needs_refresh[seats] = table.cache_kind[seats] == CacheKind.NONE

    def _move_on(self, seat: int, *, num_accepted: int, num_edited: int) -> None:
        """Make what can be final, move to the next part, open the next canvas."""
        table = self.table
        if isinstance(self.rule, RankSpans):
            self._rank_accepted(seat, num_accepted)
            return
        if isinstance(self.rule, WindowSpans):
            self.rule.slide(self.table, seat)
            return
        if self._is_given_up(seat):
            self._hand_to_ar(seat)
            return
        self._move_part(seat)
        if num_accepted == 0 and not self._has_open(seat):
            table.edit_steps[seat] += 1
        edits = table.edit_confidence[seat] < NEVER_EDIT
        tired = table.edit_steps[seat] >= table.max_edit_steps[seat]
        # A canvas that may be edited is done when a step changed nothing.
        if not edits or tired or num_accepted + num_edited == 0:
            self._close_full(seat)

    def _is_given_up(self, seat: int) -> bool:
        """Whether the canvas has had its steps and is of a family that can go on by AR."""
        table = self.table
        if table.canvas_steps[seat] < table.max_steps[seat] or not self._has_open(seat):
            return False
        return isinstance(self.rule, CanvasSpans) and self.rule.can_hand_to_ar

    def _hand_to_ar(self, seat: int) -> None:
        table, record = self.table, self.scheduler.record(seat)
        assert isinstance(self.rule, CanvasSpans), "only canvases are handed to AR"
        dropped = self.rule.hand_to_ar(table, seat)
        record.num_revised += dropped.size
        self.metrics.tokens_revised += dropped.size
        self.metrics.canvases_handed_to_ar += 1
        self.metrics.canvas_steps.observe(int(table.canvas_steps[seat]))
        if has_penalties(record.request.params):
            record.token_counts.subtract(table.tokens[seat, dropped].tolist())

    def _rank_accepted(self, seat: int, num_accepted: int) -> None:
        """Accepted drafts of an any-order family are final at once."""
        table, rule = self.table, self.rule
        assert isinstance(rule, RankSpans), "only any-order families count by rank"
        rule.accept_ranks(table, seat, num_accepted)
        if table.final[seat] == table.canvas_stop[seat]:
            self.metrics.canvases_closed += 1
            if not self._answer_is_full(seat):
                rule.open_canvas(table, seat)

    def _answer_is_full(self, seat: int) -> bool:
        start, stop = int(self.table.prompt_length[seat]), int(self.table.limit[seat])
        known = int(self.table.final[seat]) - (int(self.table.room[seat]) - stop)
        return known >= stop and not self.table.is_open[seat, start:stop].any()

    def _move_part(self, seat: int) -> None:
        """Acceptance goes on in the leftmost part of the canvas that has open positions."""
        table = self.table
        start, stop = int(table.part_start[seat]), int(table.canvas_stop[seat])
        length = int(table.sub_block_length[seat])
        while start + length < stop and not table.is_open[seat, start : start + length].any():
            start += length
        if start != table.part_start[seat]:
            table.part_start[seat] = start
            table.part_steps[seat] = 0
            table.needs_refresh[seat] = True
            part_stop = min(start + length, stop)
            table.part_open[seat] = int(table.is_open[seat, start:part_stop].sum())

    def _has_open(self, seat: int) -> bool:
        table = self.table
        return bool(table.is_open[seat, table.final[seat] : table.canvas_stop[seat]].any())

    def _close_full(self, seat: int) -> None:
        """A canvas without open positions is final; the next one opens while the answer goes on."""
        table = self.table
        if self._has_open(seat):
            return
        table.final[seat] = table.canvas_stop[seat]
        self.metrics.canvases_closed += 1
        self.metrics.canvas_steps.observe(int(table.canvas_steps[seat]))
        if table.final[seat] < table.limit[seat]:
            self.rule.open_canvas(table, seat)
            self.metrics.canvases_opened += int(table.stage[seat] == Stage.DRAFT)

    def _note(
        self, rows: IntArray, step: _Step, kind: TokenKind, *, last: int | None = None
    ) -> None:
        """Keep what requests want to know of drawn tokens until the tokens are sent.

        last: index from which on the rows' tokens are the verifier's own, not confirmed drafts
        """
        scored, scores, table = step.scored, step.scores, self.table
        for index, row in enumerate(rows.tolist()):
            seat, position = int(scored.seats[row]), int(scored.positions[row])
            if not table.is_special[seat]:
                continue
            record = self.scheduler.record(seat)
            params = record.request.params
            token = int(scores.token[row])
            if has_penalties(params):
                record.token_counts[token] += 1
            if params.logprobs is not None:
                record.pending_logprobs[position] = self.deltas.logprob(
                    row, scores, params.logprobs
                )
            if params.decoding.trace:
                own = last is not None and index >= last
                record.pending_trace[position] = TokenTrace(
                    step=int(table.steps[seat]) - 1,
                    kind=TokenKind.AR if own else kind,
                    uncertainty=uncertainty(float(scores.entropy[row]), self.vocabulary.size),
                )
