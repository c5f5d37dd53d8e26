"""Answers of `/v1/chat/completions`: whole, or as chunks."""

from collections.abc import Sequence

from server.answer import Answer, AnswerToken
from server.answers import ChoicePiece
from server.reply import (
    ReplyFacts,
    decoding_frame,
    finite,
    prompt_logprobs,
    token_text,
    trace_bodies,
)
from server.schema.chat import (
    AlternativeLogprob,
    AnsweredMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatTokenLogprob,
    MessageDelta,
)
from server.schema.common import Usage
from server.translate import Translated
from weights.tokenizer import Tokenizer


class ChatReply:
    """Writes the answers to one chat body."""

    def __init__(
        self, body: ChatBody, translated: Translated, facts: ReplyFacts, *, tokenizer: Tokenizer
    ) -> None:
        self._body = body
        self._translated = translated
        self._facts = facts
        self._tokenizer = tokenizer
        self._wants_trace = body.decoding is not None and body.decoding.trace

    def first_chunks(self) -> list[ChatChunk]:
        """One chunk for each answer that names the role."""
        chunks = []
        for index in range(self._translated.n):
            chunk = self._chunk(index, MessageDelta(role="assistant", content=""))
            if index == 0 and self._body.return_token_ids:
                chunk = chunk.model_copy(update={"prompt_token_ids": self._prompt_ids()})
            chunks.append(chunk)
        return chunks

    def chunks(self, choice: ChoicePiece) -> list[ChatChunk]:
        """Text first, then the end with an empty delta."""
        piece = choice.piece
        chunks = []
        if piece.text or piece.tokens or piece.prompt_logprobs:
            chunk = self._chunk(choice.index, MessageDelta(content=piece.text), tokens=piece.tokens)
            chunks.append(chunk.model_copy(update=self._extras(choice)))
        if piece.finish is not None:
            last = self._chunk(choice.index, MessageDelta(), finish_reason=str(piece.finish))
            if piece.stop_reason is not None:
                last.choices[0] = last.choices[0].model_copy(
                    update={"stop_reason": piece.stop_reason}
                )
            chunks.append(last)
        return chunks

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """The chunk that only tells the usage."""
        return self._chunk_of([]).model_copy(update={"usage": usage})

    def whole(self, answers: Sequence[Answer], usage: Usage) -> ChatCompletion:
        """The whole answer."""
        completion = ChatCompletion(
            id=self._facts.id,
            object="chat.completion",
            created=self._facts.created,
            model=self._facts.model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage,
            system_fingerprint=self._facts.system_fingerprint,
        )
        extras: dict[str, object] = {}
        if self._body.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answers[0].prompt_logprobs)
        if self._body.return_token_ids:
            extras["prompt_token_ids"] = self._prompt_ids()
        return completion.model_copy(update=extras)

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        choice = ChatChoice(
            index=index,
            message=AnsweredMessage(role="assistant", content=answer.text, refusal=None),
            logprobs=self._logprobs(answer.tokens),
            finish_reason=str(answer.finish),
        )
        extras: dict[str, object] = {}
        if answer.stop_reason is not None:
            extras["stop_reason"] = answer.stop_reason
        if self._body.return_token_ids:
            extras["token_ids"] = [token.token_id for token in answer.tokens]
        if self._wants_trace:
            extras["decoding"] = trace_bodies(self._tokenizer, answer.tokens)
        return choice.model_copy(update=extras)

    def _extras(self, choice: ChoicePiece) -> dict[str, object]:
        extras: dict[str, object] = {}
        piece = choice.piece
        if self._wants_trace and piece.tokens:
            extras["decoding"] = decoding_frame(self._tokenizer, choice.index, piece.tokens)
        if self._body.prompt_logprobs is not None and piece.prompt_logprobs and not choice.index:
            extras["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        return extras

    def _chunk(
        self,
        index: int,
        delta: MessageDelta,
        *,
        tokens: Sequence[AnswerToken] = (),
        finish_reason: str | None = None,
    ) -> ChatChunk:
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._logprobs(tokens) if tokens else None,
            finish_reason=finish_reason,
        )
        if self._body.return_token_ids and tokens:
            choice = choice.model_copy(update={"token_ids": [token.token_id for token in tokens]})
        return self._chunk_of([choice])

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
