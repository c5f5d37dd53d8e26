"""The answers of one body while the engine works on them: submitted, merged, cancelled once."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from sampler import Delta, EngineStopped, FinishReason, Request
from server.engine import Engine
from server.error_responses import INTERNAL_ERROR, ApiError, deadline_exceeded, unavailable
from server.text.answer_text import Answer, AnswerText, Piece, TextRules, fold
from server.watch.metrics import RequestObserver, ServerMetrics
from server.watch.tracing import NoTrace, RequestTrace
from weights.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """A piece of one of the answers."""

    index: int
    piece: Piece


class Answers:
    """Submits requests when made and gives their pieces as they come.

    Whoever makes one calls `close` in the end, on every path: it cancels what still runs.
    Making one raises Overloaded or EngineStopped, and then nothing is left running.

    timeout_s: answers that have not ended by then are given up
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
        *,
        rules: TextRules,
        metrics: ServerMetrics,
        timeout_s: float | None = None,
        trace: RequestTrace | None = None,
    ) -> None:
        self._trace = trace or NoTrace()
        self._timeout_s = timeout_s
        self._ready: list[ChoicePiece] = []
        self._engine = engine
        self._metrics = metrics
        self._queue: asyncio.Queue[ChoicePiece | Exception] = asyncio.Queue()
        self._open: dict[int, Request] = {}
        self._pumps: list[asyncio.Task[None]] = []
        self.finishes: list[FinishReason] = []
        self.first_token_ms: float | None = None
        self._submitted_s = time.monotonic()
        eos_ids = engine.info.eos_ids
        try:
            for index, request in enumerate(requests):
                deltas = engine.submit(request)
                self._open[index] = request
                text = AnswerText(tokenizer, rules, eos_ids)
                observer = metrics.observe_request(request)
                self._pumps.append(
                    asyncio.create_task(self._pump(index, deltas, text=text, observer=observer))
                )
        except BaseException:
            self.close()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether every answer has ended."""
        return not self._open

    def close(self) -> None:
        """Cancel what still runs; pages are given back within a step."""
        for pump in self._pumps:
            pump.cancel()
        for request in self._open.values():
            self._engine.cancel(request.id)
            self._metrics.count_cancelled()
        self._open.clear()

    async def wait_for_first(self, *, timeout_s: float) -> None:
        """Return when there are pieces, or after `timeout_s`; raises like `next_pieces`."""
        self._ready = await self.next_pieces(timeout_s=timeout_s)

    async def next_pieces(self, *, timeout_s: float | None) -> list[ChoicePiece]:
        """The pieces that have come, waiting for the first; empty after `timeout_s` of silence.

        Raises ApiError or EngineStopped when an answer could not be finished, or not in time.
        """
        if self._ready:
            pieces, self._ready = self._ready, []
            return pieces
        left_s = self._left_s()
        # What has ended in time is handed out however late it is fetched.
        if left_s <= 0 and self._open:
            raise self._late()
        waits_s = left_s if timeout_s is None else min(timeout_s, left_s)
        try:
            async with asyncio.timeout(None if waits_s == math.inf else waits_s):
                first = await self._queue.get()
        except TimeoutError:
            if self._left_s() <= 0:
                raise self._late() from None
            return []
        pieces = [_checked(first)]
        while not self._queue.empty():
            pieces.append(_checked(self._queue.get_nowait()))
        return pieces

    async def whole(self, num_choices: int) -> list[Answer]:
        """Every answer, complete."""
        pieces: list[list[Piece]] = [[] for _ in range(num_choices)]
        num_open = num_choices
        while num_open:
            for choice in await self.next_pieces(timeout_s=None):
                pieces[choice.index].append(choice.piece)
                num_open -= choice.piece.finish is not None
        return [fold(of_choice) for of_choice in pieces]

    def _left_s(self) -> float:
        if self._timeout_s is None:
            return math.inf
        return self._submitted_s + self._timeout_s - time.monotonic()

    def _late(self) -> ApiError:
        self._metrics.count_timeout()
        return deadline_exceeded(self._timeout_s or 0.0)

    async def _pump(
        self,
        index: int,
        deltas: AsyncIterator[Delta],
        *,
        text: AnswerText,
        observer: RequestObserver,
    ) -> None:
        ended: Piece | None = None
        try:
            async for delta in deltas:
                if ended is not None:
                    # A stop string has ended the answer; what it cost is still to come.
                    if delta.finish is None:
                        continue
                    self._end(index, replace(ended, stats=delta.stats), observer=observer)
                    return
                piece = text.add(delta)
                self._observe(piece, observer)
                is_late = not self._queue.empty() and piece.finish is None
                if piece.frame is not None and is_late:
                    # The client is behind: the next frame will tell it all that this one would.
                    piece = replace(piece, frame=None)
                if piece.finish is None:
                    if piece.num_tokens or piece.prompt_logprobs or piece.frame is not None:
                        self._queue.put_nowait(ChoicePiece(index, piece))
                elif delta.finish is None:
                    ended = piece
                    self._engine.end_early(delta.request_id)
                else:
                    self._end(index, piece, observer=observer)
                    return
            self._queue.put_nowait(EngineStopped("the engine ended a stream without a reason"))
        except EngineStopped as error:
            self._open.pop(index, None)
            self._queue.put_nowait(error)
        except Exception as error:
            # The boundary of one request: it ends, the others go on.
            log.exception("request %s failed", self._open[index].id)
            self._queue.put_nowait(error)

    def _observe(self, piece: Piece, observer: RequestObserver) -> None:
        now_s = time.monotonic()
        observer.add(piece, now_s=now_s)
        if self.first_token_ms is None and piece.num_tokens:
            self.first_token_ms = round((now_s - self._submitted_s) * 1000, 1)

    def _end(self, index: int, piece: Piece, *, observer: RequestObserver) -> None:
        """Account for an answer's end."""
        request = self._open.pop(index)
        observer.finish(piece)
        if piece.finish is not None:
            self._trace.answer_ended(request, finish=piece.finish, stats=piece.stats)
        if piece.refusal is not None:
            self._queue.put_nowait(piece.refusal)
            return
        if piece.finish is FinishReason.ERROR:
            log.error("request %s failed in the engine: %s", request.id, piece.error)
            self._queue.put_nowait(ApiError(INTERNAL_ERROR))
            return
        if piece.finish is FinishReason.ABORT:
            self._queue.put_nowait(unavailable("draining", "the server is shutting down"))
            return
        if piece.finish is not None:
            self.finishes.append(piece.finish)
        self._queue.put_nowait(ChoicePiece(index, piece))


def _checked(item: ChoicePiece | Exception) -> ChoicePiece:
    if isinstance(item, Exception):
        raise item
    return item
