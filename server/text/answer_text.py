"""Deltas to text: stop strings, finish reason and usage of one answer.

The whole answer is the fold of its pieces, however the engine cut them: everything here works
token by token.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sampler import Delta, FinishReason, Frame, RequestError, RequestStats, TokenLogprob, TokenTrace
from server.text.snapshots import Snapshots
from weights.text.detokenizer import Detokenizer
from weights.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextRules:
    """How tokens become text and what ends it.

    stop:         texts that end the answer
    include_stop: the stop text or stop token stays in the answer
    min_tokens:   stop texts are not looked for in so many first tokens
    snapshots:    frames show the whole answer and not its canvas alone
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    snapshots: bool = False


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of the answer; start and stop are characters of the answer's text."""

    token_id: int
    start: int
    stop: int
    logprob: TokenLogprob | None = None
    trace: TokenTrace | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a delta added to an answer.

    frame:       the canvas after the delta's step, when asked for
    num_tokens:  tokens that count for usage, those of a stop string included
    stop_reason: the stop string or stop token id that ended the answer; None for the model's
                 own end-of-text token
    refusal:     why the engine will not serve the request, when that is the request's own fault
    """

    text: str = ""
    tokens: tuple[AnswerToken, ...] = ()
    num_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    frame: Frame | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    refusal: RequestError | None = None
    stats: RequestStats | None = None


class AnswerText:
    """One answer as it grows; `add` gives each delta's piece, the last one with `finish`.

    Text that could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TextRules, eos_ids: Sequence[int]) -> None:
        self._rules = rules
        self._eos_ids = frozenset(eos_ids)
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=rules.skip_special_tokens)
        self._held = ""
        self._released = 0
        self._waiting: deque[AnswerToken] = deque()
        self._num_tokens = 0
        self._num_released = 0
        self._snapshots = Snapshots() if rules.snapshots else None
        self._is_finished = False

    def add(self, delta: Delta) -> Piece:
        """The piece of the next delta; empty when the answer has ended already."""
        if self._is_finished:
            return Piece(stats=delta.stats)
        before = self._num_tokens
        text: list[str] = []
        tokens: list[AnswerToken] = []
        stopped: str | None = None
        for index, token_id in enumerate(delta.token_ids):
            self._num_tokens += 1
            is_stop_token = delta.stop_token_id is not None and index == len(delta.token_ids) - 1
            if is_stop_token and not self._rules.include_stop:
                break
            stopped = self._take(token_id, index=index, delta=delta)
            if stopped is not None:
                break
            text.append(self._release())
            self._move_released(tokens)
        finish = delta.finish
        if stopped is not None:
            finish = FinishReason.STOP
            text.append(self._cut(stopped))
        elif finish is not None:
            text.append(self._release_rest())
        self._is_finished = finish is not None
        self._move_released(tokens)
        self._num_released += len(tokens)
        return Piece(
            text="".join(text),
            tokens=tuple(tokens),
            num_tokens=self._num_tokens - before,
            prompt_logprobs=delta.prompt_logprobs,
            frame=self._frame(delta.frame),
            finish=finish,
            stop_reason=stopped if stopped is not None else self._stop_token(delta),
            error=delta.error,
            refusal=RequestError(delta.error or "", field=delta.error_field)
            if delta.is_refusal
            else None,
            stats=delta.stats,
        )

    def _frame(self, frame: Frame | None) -> Frame | None:
        if frame is None or self._snapshots is None:
            return frame
        return self._snapshots.add(frame, limit=self._num_released if self._is_finished else None)

    def _stop_token(self, delta: Delta) -> int | None:
        if delta.stop_token_id is None or delta.stop_token_id in self._eos_ids:
            return None
        return delta.stop_token_id

    def _take(self, token_id: int, *, index: int, delta: Delta) -> str | None:
        """Append a token's text to what is held; the stop string that it completes, if any."""
        start = self._released + len(self._held)
        self._held += self._detokenizer.push((token_id,))
        self._waiting.append(
            AnswerToken(
                token_id=token_id,
                start=start,
                stop=self._released + len(self._held),
                logprob=delta.logprobs[index] if delta.logprobs else None,
                trace=delta.trace[index] if delta.trace else None,
            )
        )
        if not self._rules.stop or self._num_tokens <= self._rules.min_tokens:
            return None
        return first_stop(self._held, self._rules.stop)

    def _release(self) -> str:
        """Text that no stop string can take back any more."""
        num_held = 0
        if self._rules.stop and self._num_tokens >= self._rules.min_tokens:
            num_held = held_back(self._held, self._rules.stop)
        return self._let_go(len(self._held) - num_held)

    def _cut(self, stop: str) -> str:
        """Text before the stop string, or with it when it is to stay; the rest is dropped."""
        length = self._held.index(stop) + (len(stop) if self._rules.include_stop else 0)
        text = self._let_go(length)
        while self._waiting and self._waiting[-1].start >= self._released:
            self._waiting.pop()
        self._held = ""
        return text

    def _release_rest(self) -> str:
        self._held += self._detokenizer.finish()
        return self._let_go(len(self._held))

    def _let_go(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        self._released += length
        return text

    def _move_released(self, tokens: list[AnswerToken]) -> None:
        """Move tokens whose whole text has left to `tokens`."""
        while self._waiting and (not self._held or self._waiting[0].stop <= self._released):
            tokens.append(self._waiting.popleft())


def first_stop(text: str, stops: Sequence[str]) -> str | None:
    """The stop string that begins earliest in the text; the longest of those that begin there."""
    found = [(text.find(stop), -len(stop), stop) for stop in stops]
    matches = [match for match in found if match[0] >= 0]
    return min(matches)[2] if matches else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of the text that could be the beginning of a stop string."""
    longest = min(max(len(stop) for stop in stops) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: the fold of its pieces."""

    text: str
    tokens: tuple[AnswerToken, ...]
    num_tokens: int
    prompt_logprobs: tuple[TokenLogprob, ...]
    finish: FinishReason | None
    stop_reason: str | int | None
    stats: RequestStats | None


def fold(pieces: Iterable[Piece]) -> Answer:
    """The whole answer of a stream's pieces."""
    text: list[str] = []
    tokens: list[AnswerToken] = []
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens = 0
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    stats: RequestStats | None = None
    for piece in pieces:
        text.append(piece.text)
        tokens.extend(piece.tokens)
        num_tokens += piece.num_tokens
        prompt_logprobs = piece.prompt_logprobs or prompt_logprobs
        finish = piece.finish or finish
        stop_reason = piece.stop_reason if piece.stop_reason is not None else stop_reason
        stats = piece.stats or stats
    return Answer(
        text="".join(text),
        tokens=tuple(tokens),
        num_tokens=num_tokens,
        prompt_logprobs=prompt_logprobs,
        finish=finish,
        stop_reason=stop_reason,
        stats=stats,
    )
