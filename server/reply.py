"""What the answers of chat and of text completions have in common when they are written."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from sampler import TokenLogprob
from server.answer import Answer, AnswerToken
from server.answers import Answers, ChoicePiece
from server.error_responses import ErrorAnswer, error_body
from server.event_stream import DONE, KEEP_ALIVE, event
from server.schema.common import (
    DecodingFrame,
    PromptLogprob,
    PromptLogprobEntry,
    StreamOptions,
    TokenTraceBody,
    Usage,
)
from server.usage import UsageCount
from weights.tokenizer import Tokenizer

# JSON has no infinity; this is what OpenAI's API says of a token that could not be.
LOWEST_LOGPROB = -9999.0


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


def decoding_frame(
    tokenizer: Tokenizer, index: int, tokens: Sequence[AnswerToken]
) -> DecodingFrame:
    """The `decoding` object of a chunk."""
    return DecodingFrame(index=index, tokens=trace_bodies(tokenizer, tokens))


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
