"""What the answers of chat and of text completions have in common when they are written."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from sampler import Frame, TokenLogprob
from server.error_responses import ErrorAnswer, error_body
from server.replies.event_stream import DONE, KEEP_ALIVE, event
from server.replies.running_answers import Answers, ChoicePiece
from server.replies.usage import UsageCount
from server.schema.common import (
    DecodingBody,
    DecodingExtra,
    FrameBody,
    PromptLogprob,
    PromptLogprobEntry,
    StreamOptions,
    TokenTraceBody,
    Usage,
)
from server.text.answer_text import Answer, AnswerToken
from weights.text.tokenizer import Tokenizer

# JSON has no infinity; this is what OpenAI's API says of a token that could not be.
LOWEST_LOGPROB = -9999.0
# What an eye can follow; each frame costs as much as a canvas of text.
_FRAMES_PER_S = 20.0


@dataclass(frozen=True, slots=True)
class ReplyFacts:
    """What stands in every answer and every chunk of it."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Reply(Protocol):
    """Writes one body's answers: whole as JSON, or as the bytes of a stream."""

    def begin(self) -> bytes:
        """Events that come before any token."""
        ...

    def piece(self, choice: ChoicePiece) -> bytes:
        """Events of a piece; none for text that is held back."""
        ...

    def end(self) -> bytes:
        """Events that end a stream when every answer has ended."""
        ...

    def failure(self, answer: ErrorAnswer) -> bytes:
        """Events that end a stream when an answer could not be finished."""
        ...

    def whole(self, answers: Sequence[Answer]) -> str:
        """The whole answer."""
        ...


def chunk_json(chunk: BaseModel) -> str:
    """A chunk as JSON: fields that were not set are left out, those set to None stay."""
    return chunk.model_dump_json(exclude_unset=True)


class ChunkWriter:
    """Chunks as events, with usage where the client wants it; what OpenAI's streams share."""

    def __init__(self, options: StreamOptions | None, count: UsageCount) -> None:
        self._include_usage = options is not None and bool(options.include_usage)
        self._in_every_chunk = options is not None and bool(options.continuous_usage_stats)
        self._count = count

    def write(self, chunks: Sequence[BaseModel]) -> bytes:
        """The events of some chunks."""
        return b"".join(event(self._json(chunk)) for chunk in chunks)

    def end(self, usage_chunk: Callable[[Usage], BaseModel]) -> bytes:
        """The end of a stream that went well."""
        if not self._include_usage:
            return DONE
        return event(chunk_json(usage_chunk(self._count.usage()))) + DONE

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The end of a stream that did not."""
        return event(error_body(answer).decode()) + DONE

    def _json(self, chunk: BaseModel) -> str:
        if self._in_every_chunk:
            chunk = chunk.model_copy(update={"usage": self._count.usage()})
        elif self._include_usage:
            chunk = chunk.model_copy(update={"usage": None})
        return chunk_json(chunk)


async def write_events(
    answers: Answers, reply: Reply, count: UsageCount, *, num_choices: int, keep_alive_s: float
) -> AsyncIterator[bytes]:
    """The bytes of a stream, to its end."""
    if beginning := reply.begin():
        yield beginning
    num_open = num_choices
    while num_open:
        pieces = await answers.next_pieces(timeout_s=keep_alive_s)
        if not pieces:
            yield KEEP_ALIVE
            continue
        written = []
        for choice in pieces:
            count.add(choice.index, choice.piece)
            num_open -= choice.piece.finish is not None
            written.append(reply.piece(choice))
        # Text that is held back makes no event.
        if any(written):
            yield b"".join(written)
    yield reply.end()


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text; bytes that are no character by themselves become U+FFFD."""
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    """A log-probability that JSON can carry."""
    return max(logprob, LOWEST_LOGPROB)


def trace_bodies(tokenizer: Tokenizer, tokens: Sequence[AnswerToken]) -> list[TokenTraceBody]:
    """How each token came."""
    return [
        TokenTraceBody(
            token_id=token.token_id,
            text=token_text(tokenizer, token.token_id),
            step=token.trace.step,
            kind=str(token.trace.kind),
            uncertainty=token.trace.uncertainty,
        )
        for token in tokens
        if token.trace is not None
    ]


class DecodingWriter:
    """Writes the `decoding` object of chunks: traces of tokens, frames of the canvas.

    Frames of steps come at most `_FRAMES_PER_S` times a second for each answer, so that they do
    not hold up the text; snapshots come at every change that the client keeps up with.
    """

    def __init__(self, decoding: DecodingBody | None, tokenizer: Tokenizer) -> None:
        self._has_trace = decoding is not None and decoding.trace
        self._has_frames = decoding is not None and decoding.stream != "final"
        self._has_snapshots = decoding is not None and decoding.stream == "snapshots"
        self._tokenizer = tokenizer
        self._sent_s: dict[int, float] = {}

    def extra(self, choice: ChoicePiece, *, now_s: float) -> DecodingExtra | None:
        """What a piece has to tell; None when it is nothing."""
        index, piece = choice.index, choice.piece
        told: dict[str, object] = {}
        if self._has_trace and piece.tokens:
            told["tokens"] = trace_bodies(self._tokenizer, piece.tokens)
        if self._has_frames and piece.frame is not None:
            is_due = (
                self._has_snapshots
                or now_s - self._sent_s.get(index, -math.inf) >= 1 / _FRAMES_PER_S
            )
            if is_due or piece.finish is not None:
                self._sent_s[index] = now_s
                told["frame"] = self._frame(piece.frame)
        return DecodingExtra(v=1, index=index).model_copy(update=told) if told else None

    def _frame(self, frame: Frame) -> FrameBody:
        body = self._canvas(frame)
        if not self._has_snapshots:
            return body
        token_ids = [position.token_id for position in frame.positions]
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return body.model_copy(update={"text": text})

    def _canvas(self, frame: Frame) -> FrameBody:
        body = FrameBody(
            step=frame.step,
            base=frame.base,
            length=frame.length,
            set=[
                (
                    position.offset,
                    position.token_id,
                    token_text(self._tokenizer, position.token_id),
                    round(position.probability, 4),
                    str(position.kind),
                    str(position.state),
                )
                for position in frame.positions
            ],
        )
        if not frame.progress:
            return body
        progress = [(offset, round(t, 4)) for offset, t in frame.progress]
        return body.model_copy(update={"progress": progress})


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob]
) -> list[PromptLogprob | None]:
    """One entry per prompt token; the first token follows nothing and so has none."""
    return [None, *(_prompt_logprob(tokenizer, entry) for entry in entries)]


def _prompt_logprob(tokenizer: Tokenizer, entry: TokenLogprob) -> PromptLogprob:
    shown = {
        str(token_id): PromptLogprobEntry(
            logprob=finite(logprob), rank=rank, decoded_token=token_text(tokenizer, token_id)
        )
        for rank, (token_id, logprob) in enumerate(entry.top, 1)
    }
    own = PromptLogprobEntry(
        logprob=finite(entry.logprob),
        rank=None,
        decoded_token=token_text(tokenizer, entry.token_id),
    )
    return {str(entry.token_id): own} | shown
