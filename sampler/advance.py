"""`Advance`: what a step's scores change in the sequences, and what their clients are told.

The counterpart of `Scheduler.plan`: settled entries are recorded, drawn tokens become final,
answers end, and every change that a client may see becomes a delta.
"""

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sampler.messages import TokenBatch
from sampler.plan import Plan
from sampler.request import (
    Delta,
    FinishReason,
    TokenKind,
    TokenLogprob,
    TokenTrace,
    has_penalties,
)
from sampler.runner import HostScores
from sampler.scheduler import Scheduler
from sampler.score_spec import Vocabulary
from sampler.seat_record import SeatRecord
from sampler.sequence_table import TOKEN_KINDS, IntArray
from sampler.step_input import ScoredRows

_T = TypeVar("_T")

_AR = TOKEN_KINDS.index(TokenKind.AR)


class Advance:
    """Applies what came back from a step to the sequences of a scheduler."""

    def __init__(self, scheduler: Scheduler, vocabulary: Vocabulary) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table
        self.vocabulary = vocabulary
        self._is_eos = np.zeros(vocabulary.size, dtype=np.bool_)
        self._is_eos[[i for i in vocabulary.eos_ids if i < vocabulary.size]] = True

    def apply(
        self, plan: Plan, scored: ScoredRows, scores: HostScores, *, now_s: float
    ) -> tuple[TokenBatch, list[Delta]]:
        """Settle, make drawn tokens final, end answers; deltas of the step, each request once."""
        table = self.table
        self.scheduler.settle(plan)
        table.steps[plan.seats[plan.scores_settled & ~plan.is_cut]] += 1
        if scored.is_given.any():
            self._collect_prompt_logprobs(scored, scores)
        drawn = np.flatnonzero(~scored.is_given)
        seats = scored.seats[drawn]
        tokens = scores.token[drawn]
        special = table.is_special[seats]
        for row in drawn[special].tolist():
            self._note(row, scored, scores)
        self._append(seats, tokens)
        ends = self._ends(seats, tokens)
        first = table.emitted[seats] == table.prompt_length[seats]
        for seat in seats[first].tolist():
            self.scheduler.record(seat).first_token_s = now_s
        plain = ~(special | ends)
        batch = self._plain_deltas(seats[plain], tokens[plain])
        deltas = [self._delta(seat, now_s=now_s) for seat in seats[~plain].tolist()]
        return batch, deltas

    def _append(self, seats: IntArray, tokens: IntArray) -> None:
        """Make one drawn token of each sequence final."""
        table = self.table
        table.tokens[seats, table.final[seats]] = tokens
        table.final[seats] += 1
        table.canvas_stop[seats] = table.final[seats]
        table.kind_counts[seats, _AR] += 1

    def _ends(self, seats: IntArray, tokens: IntArray) -> NDArray[np.bool_]:
        """Which answers end with the token just appended."""
        table = self.table
        ends = self._is_eos[tokens] & ~table.ignores_eos[seats]
        ends |= table.final[seats] >= table.limit[seats]
        for index in np.flatnonzero(table.has_stop_ids[seats]).tolist():
            ends[index] |= int(tokens[index]) in self._record(int(seats[index])).stop_ids
        return ends

    def _plain_deltas(self, seats: IntArray, tokens: IntArray) -> TokenBatch:
        self.table.emitted[seats] += 1
        records = self.scheduler.records
        ids = [record.request.id for seat in seats.tolist() if (record := records[seat])]
        return TokenBatch(request_ids=ids, token_ids=tokens.tolist())

    def _delta(self, seat: int, *, now_s: float) -> Delta:
        """Everything of a sequence that is final and not sent; ends the sequence if it is over."""
        table, record = self.table, self._record(seat)
        start, stop = int(table.emitted[seat]), int(table.final[seat])
        token_ids = tuple(table.tokens[seat, start:stop].tolist())
        table.emitted[seat] = stop
        finish, stop_id = self._finish_reason(seat, token_ids)
        first = start == int(table.prompt_length[seat])
        delta = Delta(
            request_id=record.request.id,
            token_ids=token_ids,
            logprobs=_taken(record.pending_logprobs, start, stop),
            trace=_taken(record.pending_trace, start, stop),
            prompt_logprobs=tuple(record.prompt_logprobs) if first else (),
            finish=finish,
            stop_token_id=stop_id,
            stats=None
            if finish is None
            else record.stats(
                answer_tokens=stop - int(table.prompt_length[seat]),
                steps=int(table.steps[seat]),
                kind_counts=table.kind_counts[seat].tolist(),
                finished_s=now_s,
            ),
        )
        if finish is not None:
            self.scheduler.release(seat)
        return delta

    def _finish_reason(
        self, seat: int, token_ids: tuple[int, ...]
    ) -> tuple[FinishReason | None, int | None]:
        if token_ids and token_ids[-1] in self._record(seat).stop_ids:
            return FinishReason.STOP, token_ids[-1]
        if self.table.final[seat] >= self.table.limit[seat]:
            return FinishReason.LENGTH, None
        return None, None

    def _note(self, row: int, scored: ScoredRows, scores: HostScores) -> None:
        """Keep what a request wants to know of a drawn token until the token is sent."""
        seat, position = int(scored.seats[row]), int(scored.positions[row])
        record = self._record(seat)
        params = record.request.params
        token = int(scores.token[row])
        if has_penalties(params):
            record.token_counts[token] += 1
        if params.logprobs is not None:
            record.pending_logprobs[position] = _logprob(
                token, float(np.log(scores.probability[row])), row, scores, params.logprobs
            )
        if params.decoding.trace:
            record.pending_trace[position] = TokenTrace(
                step=int(self.table.steps[seat]) - 1,
                kind=TokenKind.AR,
                uncertainty=float(scores.entropy[row]) / math.log(self.vocabulary.size),
            )

    def _collect_prompt_logprobs(self, scored: ScoredRows, scores: HostScores) -> None:
        assert scores.given_logprob is not None, "given rows are scored with given tokens"
        for row in np.flatnonzero(scored.is_given).tolist():
            seat, position = int(scored.seats[row]), int(scored.positions[row])
            record = self._record(seat)
            # A sequence that was preempted scores its prompt again; what is known stays.
            if position != len(record.prompt_logprobs) + 1:
                continue
            wanted = record.request.params.prompt_logprobs or 0
            record.prompt_logprobs.append(
                _logprob(
                    int(self.table.tokens[seat, position]),
                    float(scores.given_logprob[row]),
                    row,
                    scores,
                    wanted,
                )
            )

    def _record(self, seat: int) -> SeatRecord:
        return self.scheduler.record(seat)


def _logprob(
    token_id: int, logprob: float, row: int, scores: HostScores, num_top: int
) -> TokenLogprob:
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        assert scores.top_ids is not None, "the score spec asked for alternatives"
        assert scores.top_logprobs is not None, "the score spec asked for alternatives"
        top = tuple(
            zip(
                scores.top_ids[row, :num_top].tolist(),
                scores.top_logprobs[row, :num_top].tolist(),
                strict=True,
            )
        )
    return TokenLogprob(token_id=token_id, logprob=logprob, top=top)


def _taken(pending: dict[int, _T], start: int, stop: int) -> tuple[_T, ...]:
    """Take the values of positions `start` to `stop` out of what is pending."""
    return tuple(pending.pop(i) for i in range(start, stop)) if pending else ()
