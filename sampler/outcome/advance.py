"""`Advance`: what a step's scores change in the sequences, and what their clients are told.

The counterpart of `Scheduler.plan`. What follows from the scores is the span rule's to say; here
its outcome becomes metrics, notes of tokens, what the balance learns, and deltas.
"""

import numpy as np

from sampler.border.engine_metrics import EngineMetrics
from sampler.border.messages import TokenBatch
from sampler.border.request import Delta, TokenKind, TokenTrace
from sampler.outcome.deltas import DeltaWriter
from sampler.outcome.forced_tokens import pin_forced
from sampler.outcome.held_requests import HeldRequests
from sampler.scheduler import Scheduler
from sampler.spans.plan import Plan
from sampler.spans.scored import HostScores, ScoredRows, StepScores
from sampler.spans.step_outcome import Fill, Round, StepOutcome
from sampler.state.decoding import Mode
from sampler.state.sequence_table import IntArray
from sampler.step.score_spec import Vocabulary


class Advance:
    """Applies what came back from a step to the sequences of a scheduler."""

    def __init__(
        self, scheduler: Scheduler, vocabulary: Vocabulary, metrics: EngineMetrics
    ) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table
        self.vocabulary = vocabulary
        self.metrics = metrics
        self.requests = HeldRequests(scheduler)
        self.deltas = DeltaWriter(scheduler, vocabulary)

    def apply(
        self, plan: Plan, scored: ScoredRows, scores: HostScores, *, now_s: float
    ) -> tuple[TokenBatch, list[Delta]]:
        """Settle, decide, end answers; the deltas of the step, each request at most once."""
        step = StepScores(
            plan,
            scored,
            scores,
            vocabulary_size=self.vocabulary.size,
            mask_id=self.vocabulary.mask_id,
        )
        self.scheduler.settle(plan)
        self.table.count_forward(np.unique(scored.seats[~scored.is_given]))
        if scored.is_given.any():
            self.deltas.collect_prompt_logprobs(scored, scores)
        drawn = np.flatnonzero(~scored.is_given)
        outcome = self.scheduler.rule.after_step(drawn, step, self.table, self.requests)
        for filled in outcome.fills:
            self._count_fill(filled, step)
        for ended in outcome.rounds:
            self._count_round(ended, step)
        self._observe(outcome, step)
        self._pin_forced(outcome)
        self._count(outcome)
        return self.deltas.write(outcome.appended, outcome.moved, now_s=now_s)

    def _count_fill(self, filled: Fill, step: StepScores) -> None:
        rows, kind, is_draft = filled
        metrics = self.metrics
        if is_draft:
            metrics.accepted_entropy.observe_many(step.scores.entropy[rows])
        if kind is TokenKind.AR:
            metrics.tokens_ar += rows.size
        elif kind is TokenKind.DIFFUSION:
            metrics.tokens_diffusion += rows.size
        else:
            metrics.tokens_verified += rows.size
        special = self.table.is_special[step.scored.seats[rows]]
        if special.any():
            self._note(rows[special], step, kind)

    def _count_round(self, ended: Round, step: StepScores) -> None:
        rows, offered, confirmed, is_drafted = ended
        metrics = self.metrics
        metrics.observe_round(offered=offered, confirmed=confirmed, by_canvas=is_drafted)
        metrics.accepted_entropy.observe_many(step.scores.entropy[rows[: confirmed + 1]])
        proposer = self.scheduler.record(int(step.scored.seats[rows[0]])).proposer
        if proposer is not None:
            proposer.observe(num_confirmed=confirmed)

    def _observe(self, outcome: StepOutcome, step: StepScores) -> None:
        """Tell the balance how its sequences fared: tokens one by one, and rounds of drafts."""
        balance = self.scheduler.balance
        if balance is None:
            return
        seats, is_auto = step.scored.seats, self.table.is_auto
        for rows in outcome.singles:
            own = rows[is_auto[seats[rows]]]
            if own.size:
                balance.observe_singles(seats[own], step.uncertainty(own))
        rounds = [
            (ended.rows[0], ended.offered, ended.confirmed)
            for ended in outcome.rounds
            # Proposals that no round of drafts made tell nothing about drafts.
            if ended.is_drafted and is_auto[seats[ended.rows[0]]]
        ]
        if rounds:
            rows, offered, confirmed = np.array(rounds).T
            balance.observe_rounds(seats[rows], offered, confirmed, step.uncertainty(rows))

    def _pin_forced(self, outcome: StepOutcome) -> None:
        """Fill what grammars leave no choice about, in canvases that no verification follows."""
        table, mask_id = self.table, self.vocabulary.mask_id
        for seat in outcome.moved:
            if not table.is_special[seat] or table.mode[seat] != Mode.DIFFUSION:
                continue
            record = self.scheduler.record(seat)
            while count := pin_forced(seat, record, table, mask_id=mask_id):
                self.metrics.tokens_diffusion += count
                self.metrics.tokens_forced += count
                self.scheduler.rule.past_pinned(table, seat, outcome)

    def _count(self, outcome: StepOutcome) -> None:
        """Metrics of what is no token."""
        metrics = self.metrics
        # Whoever had a token before is counted as revised, not as filled.
        metrics.tokens_diffusion -= outcome.num_edited
        for seat, count in outcome.revised:
            metrics.tokens_revised += count
            self.scheduler.record(seat).num_revised += count
        metrics.rows_wasted += outcome.num_wasted
        metrics.canvases_opened += outcome.num_opened
        metrics.canvases_closed += outcome.num_closed
        metrics.canvases_handed_to_ar += outcome.num_handed_to_ar
        for steps in outcome.canvas_steps:
            metrics.canvas_steps.observe(steps)

    def _note(self, rows: IntArray, step: StepScores, kind: TokenKind) -> None:
        """Keep what requests want to know of drawn tokens until the tokens are sent."""
        scored, scores = step.scored, step.scores
        uncertain = step.uncertainty(rows).tolist()
        for row, uncertainty in zip(rows.tolist(), uncertain, strict=True):
            seat, position = int(scored.seats[row]), int(scored.positions[row])
            params = self.scheduler.record(seat).request.params
            notes = self.table.notes[seat]
            if params.logprobs is not None:
                notes.logprobs[position] = self.deltas.logprob(row, scores, params.logprobs)
            if params.decoding.trace:
                number = int(self.table.steps[seat]) - 1
                notes.trace[position] = TokenTrace(step=number, kind=kind, uncertainty=uncertainty)
