"""Answers of `/v1/chat/completions`: whole, or as chunks."""

import time
from collections.abc import Sequence

from sampler import FinishReason
from server.calls.answer_parts import ArgumentsPart, CallPart, StreamedPart, StreamedPartReader
from server.error_responses import ErrorAnswer
from server.replies.reply_format import (
    ChunkWriter,
    DecodingWriter,
    ReplyFacts,
    chunk_json,
    finite,
    prompt_logprobs,
    token_text,
    trace_bodies,
)
from server.replies.running_answers import ChoicePiece
from server.replies.usage import UsageCount
from server.schema.chat import (
    AlternativeLogprob,
    AnsweredMessage,
    AnsweredToolCall,
    CalledFunctionText,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    MessageDelta,
    ToolCallDelta,
)
from server.text.answer_text import Answer, AnswerToken
from server.translate.requests import Translated
from weights.text.tokenizer import Tokenizer


class ChatReply:
    """Writes the answers to one chat body."""

    def __init__(
        self,
        body: ChatBody,
        translated: Translated,
        facts: ReplyFacts,
        count: UsageCount,
        *,
        tokenizer: Tokenizer,
    ) -> None:
        self._body = body
        self._translated = translated
        self._facts = facts
        self._count = count
        self._tokenizer = tokenizer
        self._writer = ChunkWriter(body.stream_options, count)
        self._decoding = DecodingWriter(body.decoding, tokenizer)
        self._wants_trace = body.decoding is not None and body.decoding.trace
        self._readers = [StreamedPartReader(translated.call_rules) for _ in range(translated.n)]

    def begin(self) -> bytes:
        """One chunk for each answer that names the role."""
        chunks = []
        for index in range(self._translated.n):
            chunk = self._chunk(index, MessageDelta(role="assistant", content=""))
            if index == 0 and self._body.return_token_ids:
                chunk = chunk.model_copy(update={"prompt_token_ids": self._prompt_ids()})
            chunks.append(chunk)
        return self._writer.write(chunks)

    def piece(self, choice: ChoicePiece) -> bytes:
        """Text and calls first, then the end with an empty delta."""
        piece = choice.piece
        reader = self._readers[choice.index]
        deltas = _deltas(reader.feed(piece.text))
        if piece.finish is not None:
            deltas += _deltas(reader.finish())
        extras = self._extras(choice)
        if not deltas and (piece.tokens or extras):
            deltas = [MessageDelta(content="")]
        chunks = [
            self._chunk(choice.index, delta, tokens=() if number else piece.tokens)
            for number, delta in enumerate(deltas)
        ]
        if chunks:
            # What does not belong to a single part stands in the first of a piece's chunks.
            chunks[0] = chunks[0].model_copy(update=extras)
        if piece.finish is not None:
            chunks.append(self._last_chunk(choice, self._finish(choice.index, piece.finish)))
        return self._writer.write(chunks)

    def end(self) -> bytes:
        """The usage, when it is wanted, and the end mark."""
        return self._writer.end(
            lambda usage: self._chunk_of([]).model_copy(update={"usage": usage})
        )

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The error and the end mark."""
        return self._writer.failure(answer)

    def whole(self, answers: Sequence[Answer]) -> str:
        """The whole answer."""
        completion = ChatCompletion(
            id=self._facts.id,
            object="chat.completion",
            created=self._facts.created,
            model=self._facts.model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=self._count.usage(),
            system_fingerprint=self._facts.system_fingerprint,
        )
        extras: dict[str, object] = {}
        if self._body.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answers[0].prompt_logprobs)
        if self._body.return_token_ids:
            extras["prompt_token_ids"] = self._prompt_ids()
        return chunk_json(completion.model_copy(update=extras))

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        reader = self._readers[index]
        parts = [*reader.feed(answer.text), *reader.finish()]
        finish = FinishReason.LENGTH if answer.finish is None else answer.finish
        choice = ChatChoice(
            index=index,
            message=_message(parts),
            logprobs=self._logprobs(answer.tokens),
            finish_reason=self._finish(index, finish),
        )
        extras: dict[str, object] = {}
        if answer.stop_reason is not None:
            extras["stop_reason"] = answer.stop_reason
        if self._body.return_token_ids:
            extras["token_ids"] = [token.token_id for token in answer.tokens]
        if self._wants_trace:
            extras["decoding"] = trace_bodies(self._tokenizer, answer.tokens)
        return choice.model_copy(update=extras)

    def _finish(self, index: int, finish: FinishReason) -> str:
        if finish is FinishReason.STOP and self._readers[index].num_calls:
            return "tool_calls"
        return str(finish)

    def _last_chunk(self, choice: ChoicePiece, finish_reason: str) -> ChatChunk:
        last = self._chunk(choice.index, MessageDelta(), finish_reason=finish_reason)
        if choice.piece.stop_reason is not None:
            last.choices[0] = last.choices[0].model_copy(
                update={"stop_reason": choice.piece.stop_reason}
            )
        return last

    def _chunk(
        self,
        index: int,
        delta: MessageDelta,
        *,
        tokens: Sequence[AnswerToken] = (),
        finish_reason: str | None = None,
    ) -> ChatChunk:
        written = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._logprobs(tokens) if tokens else None,
            finish_reason=finish_reason,
        )
        if self._body.return_token_ids and tokens:
            token_ids = [token.token_id for token in tokens]
            written = written.model_copy(update={"token_ids": token_ids})
        return self._chunk_of([written])

    def _extras(self, choice: ChoicePiece) -> dict[str, object]:
        extras: dict[str, object] = {}
        piece = choice.piece
        decoding = self._decoding.extra(choice, now_s=time.monotonic())
        if decoding is not None:
            extras["decoding"] = decoding
        if self._body.prompt_logprobs is not None and piece.prompt_logprobs and not choice.index:
            extras["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        return extras

    def _chunk_of(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._facts.id,
            object="chat.completion.chunk",
            created=self._facts.created,
            model=self._facts.model,
            system_fingerprint=self._facts.system_fingerprint,
            choices=choices,
        )

    def _logprobs(self, tokens: Sequence[AnswerToken]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        content = [
            ChatTokenLogprob(
                **self._alternative(entry.token_id, entry.logprob).model_dump(),
                top_logprobs=[self._alternative(*pair) for pair in entry.top],
            )
            for entry in (token.logprob for token in tokens)
            if entry is not None
        ]
        return ChatLogprobs(content=content, refusal=None)

    def _alternative(self, token_id: int, logprob: float) -> AlternativeLogprob:
        return AlternativeLogprob(
            token=token_text(self._tokenizer, token_id),
            logprob=finite(logprob),
            bytes=list(self._tokenizer.token_bytes(token_id)),
        )

    def _prompt_ids(self) -> list[int]:
        return list(self._translated.prompts[0].token_ids)


def _deltas(parts: Sequence[StreamedPart]) -> list[MessageDelta]:
    return [_delta(part) for part in parts]


def _delta(part: StreamedPart) -> MessageDelta:
    if isinstance(part, str):
        return MessageDelta(content=part)
    if isinstance(part, ArgumentsPart):
        more = CalledFunctionText(arguments=part.text)
        return MessageDelta(tool_calls=[ToolCallDelta(index=part.index, function=more)])
    begun = CalledFunctionText(name=part.name, arguments=part.arguments)
    call = ToolCallDelta(index=part.index, id=part.id, type="function", function=begun)
    return MessageDelta(tool_calls=[call])


def _message(parts: Sequence[StreamedPart]) -> AnsweredMessage:
    content = "".join(part for part in parts if isinstance(part, str))
    rest: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, ArgumentsPart):
            rest.setdefault(part.index, []).append(part.text)
    calls = [
        AnsweredToolCall(
            id=part.id,
            type="function",
            function=CalledFunctionText(
                name=part.name, arguments=part.arguments + "".join(rest.get(part.index, []))
            ),
        )
        for part in parts
        if isinstance(part, CallPart)
    ]
    if not calls:
        return AnsweredMessage(role="assistant", content=content, refusal=None)
    return AnsweredMessage(
        role="assistant", content=content or None, refusal=None, tool_calls=calls
    )
