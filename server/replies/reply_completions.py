"""Answers of `/v1/completions`: whole, or as chunks."""

import time
from collections.abc import Sequence

from sampler import FinishReason, TokenLogprob
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
from server.schema.completions import (
    Completion,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
)
from server.text.answer_text import Answer, AnswerToken
from server.translate.requests import PromptTokens, Translated
from weights.text.tokenizer import Tokenizer


class CompletionReply:
    """Writes the answers to one body; answer i of prompt p has the index p * n + i."""

    def __init__(
        self,
        body: CompletionBody,
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
        self._writer = ChunkWriter(body.stream_options, count)
        self._tokenizer = tokenizer
        self._decoding = DecodingWriter(body.decoding, tokenizer)
        self._wants_trace = body.decoding is not None and body.decoding.trace
        self._begun: set[int] = set()
        self._echoes = [self._echo_text(prompt) for prompt in translated.prompts]

    def begin(self) -> bytes:
        """The prompts, when they are to be echoed and no log-probabilities are waited for."""
        if not self._body.echo or self._body.logprobs is not None:
            return b""
        return self._writer.write(
            [
                self._chunk(index, self._echoes[index // self._translated.n])
                for index in range(len(self._translated.requests))
            ]
        )

    def piece(self, choice: ChoicePiece) -> bytes:
        """Text, with the reason for the end in its own chunk."""
        piece, index = choice.piece, choice.index
        chunks = []
        text, tokens = piece.text, piece.tokens
        if self._translated.is_scoring:
            text, tokens = "", ()
        decoding = self._decoding.extra(choice, now_s=time.monotonic())
        if text or tokens or piece.prompt_logprobs or decoding is not None:
            chunk = self._text_chunk(choice, text, tokens)
            if decoding is not None:
                chunk = chunk.model_copy(update={"decoding": decoding})
            chunks.append(chunk)
        if piece.finish is not None:
            last = self._chunk(index, "", finish_reason=self._finish(piece.finish))
            if piece.stop_reason is not None and not self._translated.is_scoring:
                last.choices[0] = last.choices[0].model_copy(
                    update={"stop_reason": piece.stop_reason}
                )
            chunks.append(last)
        return self._writer.write(chunks)

    def end(self) -> bytes:
        """The usage, when it is wanted, and the end mark."""
        return self._writer.end(
            lambda usage: self._completion([]).model_copy(update={"usage": usage})
        )

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The error and the end mark."""
        return self._writer.failure(answer)

    def whole(self, answers: Sequence[Answer]) -> str:
        """The whole answer: of each prompt's candidates the best n."""
        choices = []
        per_prompt, n = self._translated.per_prompt, self._translated.n
        for number, prompt in enumerate(self._translated.prompts):
            candidates = answers[number * per_prompt : (number + 1) * per_prompt]
            for place, answer in enumerate(best(candidates, n)):
                choices.append(self._choice(number * n + place, prompt, answer))
        completion = self._completion(choices)
        return chunk_json(completion.model_copy(update={"usage": self._count.usage()}))

    def _choice(self, index: int, prompt: PromptTokens, answer: Answer) -> CompletionChoice:
        text, tokens = answer.text, answer.tokens
        if self._translated.is_scoring:
            text, tokens = "", ()
        echo = self._echoes[index // self._translated.n]
        choice = CompletionChoice(
            index=index,
            text=echo + text,
            logprobs=self._logprobs(tokens, prompt, answer.prompt_logprobs),
            finish_reason=None if answer.finish is None else self._finish(answer.finish),
        )
        extras: dict[str, object] = {}
        if answer.stop_reason is not None and not self._translated.is_scoring:
            extras["stop_reason"] = answer.stop_reason
        if self._body.return_token_ids:
            extras["token_ids"] = [token.token_id for token in tokens]
            extras["prompt_token_ids"] = list(prompt.token_ids)
        if self._wants_trace:
            extras["decoding"] = trace_bodies(self._tokenizer, tokens)
        if self._body.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answer.prompt_logprobs)
        return choice.model_copy(update=extras)

    def _text_chunk(
        self, choice: ChoicePiece, text: str, tokens: Sequence[AnswerToken]
    ) -> Completion:
        index, piece = choice.index, choice.piece
        prompt = self._translated.prompts[index // self._translated.n]
        is_first = index not in self._begun
        self._begun.add(index)
        echo = ""
        if is_first and self._body.echo and self._body.logprobs is not None:
            echo = self._echoes[index // self._translated.n]
        chunk = self._chunk(index, echo + text)
        own: dict[str, object] = {"logprobs": self._logprobs(tokens, prompt, piece.prompt_logprobs)}
        if self._body.return_token_ids:
            own["token_ids"] = [token.token_id for token in tokens]
            if is_first:
                own["prompt_token_ids"] = list(prompt.token_ids)
        if self._body.prompt_logprobs is not None and piece.prompt_logprobs:
            own["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        chunk.choices[0] = chunk.choices[0].model_copy(update=own)
        return chunk

    def _chunk(self, index: int, text: str, *, finish_reason: str | None = None) -> Completion:
        choice = CompletionChoice(
            index=index, text=text, logprobs=None, finish_reason=finish_reason
        )
        return self._completion([choice])

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self._facts.id,
            object="text_completion",
            created=self._facts.created,
            model=self._facts.model,
            system_fingerprint=self._facts.system_fingerprint,
            choices=choices,
        )

    def _finish(self, finish: FinishReason) -> str:
        return "length" if self._translated.is_scoring else str(finish)

    def _echo_text(self, prompt: PromptTokens) -> str:
        if not self._body.echo:
            return ""
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids, skip_special_tokens=False)

    def _logprobs(
        self,
        tokens: Sequence[AnswerToken],
        prompt: PromptTokens,
        prompt_entries: Sequence[TokenLogprob],
    ) -> CompletionLogprobs | None:
        """Lists of the tokens, behind those of an echoed prompt."""
        if self._body.logprobs is None:
            return None
        lists = CompletionLogprobs(
            tokens=[],
            token_logprobs=[],
            top_logprobs=[] if self._body.logprobs else None,
            text_offset=[],
        )
        if self._body.echo and prompt_entries:
            start = len(token_text(self._tokenizer, prompt.token_ids[0]))
            self._append(lists, prompt.token_ids[0], None, 0)
            for entry in prompt_entries:
                self._append(lists, entry.token_id, entry, start)
                start += len(token_text(self._tokenizer, entry.token_id))
        behind = len(self._echo_text(prompt))
        for token in tokens:
            if token.logprob is not None:
                self._append(lists, token.token_id, token.logprob, behind + token.start)
        return lists

    def _append(
        self, lists: CompletionLogprobs, token_id: int, entry: TokenLogprob | None, offset: int
    ) -> None:
        lists.tokens.append(token_text(self._tokenizer, token_id))
        lists.text_offset.append(offset)
        lists.token_logprobs.append(None if entry is None else finite(entry.logprob))
        if lists.top_logprobs is None:
            return
        if entry is None:
            lists.top_logprobs.append(None)
            return
        # The token itself is always among them, as those who look for greedy answers expect.
        top = {token_text(self._tokenizer, token_id): finite(entry.logprob)}
        for alternative, logprob in entry.top:
            # Of tokens that look alike, such as halves of characters, the likeliest stays.
            top.setdefault(token_text(self._tokenizer, alternative), finite(logprob))
        lists.top_logprobs.append(top)


def best(candidates: Sequence[Answer], n: int) -> list[Answer]:
    """The n candidates with the highest mean log-probability, in that order."""
    if len(candidates) <= n:
        return list(candidates)
    return sorted(candidates, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(answer: Answer) -> float:
    logprobs = [token.logprob.logprob for token in answer.tokens if token.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else LOWEST_MEAN


# An answer without tokens says nothing and so comes last.
LOWEST_MEAN = float("-inf")
