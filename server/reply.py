"""What the answers of chat and of text completions have in common when they are written."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from sampler import TokenLogprob
from server.answer import Answer, AnswerToken
from server.answers import Answers, ChoicePiece
from server.event_stream import KEEP_ALIVE, event
from server.schema.common import (
    DecodingFrame,
    PromptLogprob,
    PromptLogprobEntry,
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
    """Writes one body's answers, whole or as chunks."""

    def first_chunks(self) -> Sequence[BaseModel]:
        """Chunks that come before any token."""
        ...

    def chunks(self, choice: ChoicePiece) -> Sequence[BaseModel]:
        """Chunks of a piece."""
        ...

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The chunk that only tells the usage."""
        ...

    def whole(self, answers: Sequence[Answer], usage: Usage) -> BaseModel:
        """The whole answer."""
        ...


def chunk_json(chunk: BaseModel) -> str:
    """A chunk as JSON: fields that were not set are left out, those set to None stay."""
    return chunk.model_dump_json(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How a stream reports usage, and how long it may be silent."""

    keep_alive_s: float
    include_usage: bool = False
    usage_in_every_chunk: bool = False


async def write_events(
    answers: Answers, reply: Reply, count: UsageCount, *, num_choices: int, rules: StreamRules
) -> AsyncIterator[bytes]:
    """The encoded events of a stream, up to but without the end mark."""

    def encode(chunks: Sequence[BaseModel]) -> bytes:
        usage = count.usage() if rules.usage_in_every_chunk else None
        return b"".join(event(_with_usage(chunk, usage, rules)) for chunk in chunks)

    first = reply.first_chunks()
    if first:
        yield encode(first)
    num_open = num_choices
    while num_open:
        pieces = await answers.next_pieces(timeout_s=rules.keep_alive_s)
        if not pieces:
            yield KEEP_ALIVE
            continue
        encoded = []
        for choice in pieces:
            count.add(choice.index, choice.piece)
            num_open -= choice.piece.finish is not None
            encoded.append(encode(reply.chunks(choice)))
        # Text that is held back makes no chunk.
        if any(encoded):
            yield b"".join(encoded)
    if rules.include_usage:
        yield event(chunk_json(reply.usage_chunk(count.usage())))


def _with_usage(chunk: BaseModel, usage: Usage | None, rules: StreamRules) -> str:
    if rules.include_usage or rules.usage_in_every_chunk:
        chunk = chunk.model_copy(update={"usage": usage})
    return chunk_json(chunk)


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
