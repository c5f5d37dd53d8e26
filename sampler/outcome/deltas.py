"""`DeltaWriter`: what clients are told after a step: tokens that are final with no gap before."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sampler.border.messages import TokenBatch
from sampler.border.request import (
    Delta,
    FinishReason,
    Frame,
    FramePosition,
    FrameState,
    RequestStats,
    TokenKind,
    TokenLogprob,
)
from sampler.scheduler import Scheduler
from sampler.seats.seat_record import SeatRecord
from sampler.state.decoding import Mode
from sampler.state.sequence_table import NEVER_EDIT, TOKEN_KINDS, IntArray, Stage
from sampler.step.runner import HostScores
from sampler.step.score_spec import Vocabulary
from sampler.step.step_input import ScoredRows

_T = TypeVar("_T")

_VERIFIED = TOKEN_KINDS.index(TokenKind.VERIFIED)


class DeltaWriter:
    """Writes deltas and ends sequences; the only place where an answer ends by itself."""

    def __init__(self, scheduler: Scheduler, vocabulary: Vocabulary) -> None:
        self.scheduler = scheduler
        self.table = scheduler.table
        self._is_eos = np.zeros(vocabulary.size, dtype=np.bool_)
        self._is_eos[[i for i in vocabulary.eos_ids if i < vocabulary.size]] = True

    def write(
        self, appended: IntArray, moved: list[int], *, now_s: float
    ) -> tuple[TokenBatch, list[Delta]]:
        """Deltas of sequences that got one token (`appended`) or changed in any way (`moved`)."""
        table = self.table
        first = table.emitted[appended] == table.prompt_length[appended]
        for seat in appended[first].tolist():
            self.scheduler.record(seat).first_token_s = now_s
        tokens = table.tokens[appended, table.final[appended] - 1]
        plain = ~(table.is_special[appended] | self._ends(appended, tokens))
        batch = self._plain(appended[plain], tokens[plain])
        others = [*appended[~plain].tolist(), *moved]
        deltas = [delta for seat in others if (delta := self._delta(seat, now_s)) is not None]
        return batch, deltas

    def collect_prompt_logprobs(self, scored: ScoredRows, scores: HostScores) -> None:
        """Keep the log-probabilities of prompt tokens until the first delta."""
        assert scores.given_logprob is not None, "given rows are scored with given tokens"
        for row in np.flatnonzero(scored.is_given).tolist():
            seat, position = int(scored.seats[row]), int(scored.positions[row])
            record = self.scheduler.record(seat)
            # A sequence that was preempted scores its prompt again; what is known stays.
            if position != len(record.prompt_logprobs) + 1:
                continue
            record.prompt_logprobs.append(
                TokenLogprob(
                    token_id=int(self.table.tokens[seat, position]),
                    logprob=float(scores.given_logprob[row]),
                    top=_alternatives(row, scores, record.request.params.prompt_logprobs or 0),
                )
            )

    def logprob(self, row: int, scores: HostScores, num_top: int) -> TokenLogprob:
        """How likely the drawn token of a row was, with its best alternatives."""
        return TokenLogprob(
            token_id=int(scores.token[row]),
            logprob=float(np.log(scores.probability[row])),
            top=_alternatives(row, scores, num_top),
        )

    def abort(self, seat: int, *, now_s: float) -> Delta:
        """End a sequence now; its last delta says what it cost and has no tokens."""
        delta = Delta(
            request_id=self._record(seat).request.id,
            finish=FinishReason.ABORT,
            stats=self._stats(seat, stop=int(self.table.emitted[seat]), now_s=now_s),
        )
        self.scheduler.release(seat)
        return delta

    def _ends(self, seats: IntArray, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which answers end with the token just appended."""
        table = self.table
        ends = self._is_eos[tokens] & ~table.ignores_eos[seats]
        ends |= table.final[seats] >= table.limit[seats]
        for index in np.flatnonzero(table.has_stop_ids[seats]).tolist():
            ends[index] |= int(tokens[index]) in self._record(int(seats[index])).stop_ids
        return ends

    def _plain(self, seats: IntArray, tokens: NDArray[np.int32]) -> TokenBatch:
        self.table.emitted[seats] += 1
        self.table.kind_counts[seats, 0] += 1
        records = self.scheduler.records
        ids = [record.request.id for seat in seats.tolist() if (record := records[seat])]
        return TokenBatch(request_ids=ids, token_ids=tokens.tolist())

    def _delta(self, seat: int, now_s: float) -> Delta | None:
        """Everything of a sequence that can be sent, or None when there is nothing to say."""
        table, record = self.table, self._record(seat)
        start = int(table.emitted[seat])
        stop, finish = self._sendable(seat, start)
        frame = self._frame(seat) if record.request.params.decoding.frames else None
        if stop == start and finish is None and frame is None:
            return None
        first = start == int(table.prompt_length[seat])
        if first and stop > start:
            record.first_token_s = now_s
        token_ids = tuple(table.tokens[seat, start:stop].tolist())
        kinds = np.bincount(table.kinds[seat, start:stop], minlength=len(TOKEN_KINDS))
        table.kind_counts[seat] += kinds
        table.emitted[seat] = stop
        failure = _failure(record) if finish is FinishReason.ERROR else None
        delta = Delta(
            request_id=record.request.id,
            token_ids=token_ids,
            logprobs=_taken(record.pending_logprobs, start, stop),
            trace=_taken(record.pending_trace, start, stop),
            prompt_logprobs=tuple(record.prompt_logprobs) if first and stop > start else (),
            frame=frame,
            finish=finish,
            stop_token_id=self._stop_token(seat, token_ids, finish),
            error=failure,
            is_refusal=failure is not None,
            error_field=None if failure is None else "response_format",
            stats=None if finish is None else self._stats(seat, stop=stop, now_s=now_s),
        )
        if finish is not None:
            self.scheduler.release(seat)
        return delta

    def _frame(self, seat: int) -> Frame:
        """The canvas of a sequence, or of one without a canvas the token that came last."""
        table = self.table
        length, limit = int(table.prompt_length[seat]), int(table.limit[seat])
        ranks = np.arange(int(table.emitted[seat]), int(table.canvas_stop[seat]))
        positions = ranks if table.order is None else np.sort(self._canvas_positions(seat))
        positions = positions[(positions >= length) & (positions < limit)]
        is_open = table.is_open[seat, positions]
        base = int(positions.min()) if positions.size else length
        return Frame(
            step=int(table.steps[seat]),
            base=base - length,
            length=int(positions.size),
            positions=self._filled_positions(seat, positions[~is_open]),
            progress=self._progress(seat, positions[is_open]),
        )

    def _filled_positions(self, seat: int, filled: IntArray) -> tuple[FramePosition, ...]:
        table = self.table
        length = int(table.prompt_length[seat])
        is_proposed = np.isin(filled, self._proposed(seat))
        is_draft = is_proposed.copy()
        if table.order is None:
            is_draft |= filled >= table.final[seat]
        kinds = np.where(is_proposed, _VERIFIED, table.kinds[seat, filled])
        columns = (
            (filled - length).tolist(),
            table.tokens[seat, filled].tolist(),
            table.confidence[seat, filled].tolist(),
            [TOKEN_KINDS[kind] for kind in kinds.tolist()],
            [FrameState.DRAFT if draft else FrameState.FINAL for draft in is_draft.tolist()],
        )
        return tuple(FramePosition(*entry) for entry in zip(*columns, strict=True))

    def _proposed(self, seat: int) -> IntArray:
        """Positions whose tokens the next step verifies."""
        table = self.table
        if table.stage[seat] != Stage.VERIFY:
            return np.zeros(0, dtype=np.int64)
        ranks = np.arange(int(table.final[seat]), int(table.canvas_stop[seat]))
        return ranks if table.order is None else table.order[seat, ranks].astype(np.int64)

    def _progress(self, seat: int, opened: IntArray) -> tuple[tuple[int, float], ...]:
        """(offset, t) of open positions of a canvas of latents."""
        table = self.table
        if table.latents is None:
            return ()
        t = table.latents.progress[seat, opened % table.latents.columns]
        offsets = opened - table.prompt_length[seat]
        return tuple(zip(offsets.tolist(), t.tolist(), strict=True))

    def _canvas_positions(self, seat: int) -> IntArray:
        """Positions of an any-order canvas, those already final among them."""
        table = self.table
        assert table.order is not None, "only called for any-order families"
        # What became final since the last delta is shown too, in one piece with the canvas.
        start = min(int(table.prompt_stop[seat]), int(table.emitted[seat]))
        return table.order[seat, start : table.canvas_stop[seat]].astype(np.int64)

    def _stats(self, seat: int, *, stop: int, now_s: float) -> RequestStats:
        table = self.table
        return self._record(seat).stats(
            answer_tokens=stop - int(table.prompt_length[seat]),
            steps=int(table.steps[seat]),
            kind_counts=table.kind_counts[seat].tolist(),
            finished_s=now_s,
        )

    def _stop_token(
        self, seat: int, token_ids: tuple[int, ...], finish: FinishReason | None
    ) -> int | None:
        """The token that ended the answer; a grammar may end it without one."""
        ended = finish is FinishReason.STOP and token_ids
        return token_ids[-1] if ended and token_ids[-1] in self._record(seat).stop_ids else None

    def _sendable(self, seat: int, start: int) -> tuple[int, FinishReason | None]:
        """Up to which position tokens can be sent, and why the answer ends there if it does."""
        table = self.table
        limit = int(table.limit[seat])
        filled = self._filled(seat, start, limit)
        stop = self._first_stop(seat, start, filled)
        constraint = self._record(seat).constraint
        if constraint is not None and constraint.is_done:
            end = int(table.prompt_length[seat]) + constraint.num_consumed
            # Verified drafts may go on behind the grammar's end, and an end of text with them.
            if stop is None or stop >= end:
                failed = constraint.failure is not None
                return end, FinishReason.ERROR if failed else FinishReason.STOP
        if stop is not None:
            return stop + 1, FinishReason.STOP
        if filled >= limit:
            return limit, FinishReason.LENGTH
        if table.order is not None:
            return filled, None
        return max(min(int(table.final[seat]), filled), start), None

    def _filled(self, seat: int, start: int, limit: int) -> int:
        """Where the first position lies that has no token for good."""
        table = self.table
        stop = min(int(table.canvas_stop[seat]), limit) if table.order is None else limit
        if table.order is not None:
            # Positions of later windows have no rank yet.
            num_suffix = int(table.room[seat]) - limit
            stop = min(stop, int(table.canvas_stop[seat]) - num_suffix)
        elif table.edit_confidence[seat] < NEVER_EDIT or table.mode[seat] == Mode.SPECULATIVE:
            stop = min(stop, int(table.final[seat]))
        is_open = table.is_open[seat, start:stop]
        if table.order is not None and table.stage[seat] == Stage.VERIFY:
            # Proposals have tokens, but not for good.
            proposed = self._proposed(seat)
            is_open = is_open.copy()
            is_open[proposed[(proposed >= start) & (proposed < stop)] - start] = True
        return start + int(is_open.argmax()) if is_open.any() else stop

    def _first_stop(self, seat: int, start: int, stop: int) -> int | None:
        """Position of the first token that ends the answer, or None."""
        stop_ids = self._record(seat).stop_ids
        shortest = int(self.table.min_length[seat])
        tokens = self.table.tokens[seat, start:stop].tolist()
        for position, token in enumerate(tokens, start):
            if token in stop_ids and position >= shortest:
                return position
        return None

    def _record(self, seat: int) -> SeatRecord:
        return self.scheduler.record(seat)


def _failure(record: SeatRecord) -> str:
    """Why an answer failed: its grammar grew beyond the parser's limits, or into a dead end."""
    assert record.constraint is not None, "only grammars end answers with an error"
    return f"the grammar cannot be kept: {record.constraint.failure}"


def _alternatives(row: int, scores: HostScores, num_top: int) -> tuple[tuple[int, float], ...]:
    if num_top == 0:
        return ()
    assert scores.top_ids is not None, "the score spec asked for alternatives"
    assert scores.top_logprobs is not None, "the score spec asked for alternatives"
    ids, logprobs = scores.top_ids[row, :num_top], scores.top_logprobs[row, :num_top]
    return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))


def _taken(pending: dict[int, _T], start: int, stop: int) -> tuple[_T, ...]:
    """Take the values of positions `start` to `stop` out of what is pending."""
    return tuple(pending.pop(i) for i in range(start, stop)) if pending else ()
