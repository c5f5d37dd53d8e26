"""Answers of `/v1/messages`: content blocks, whole or as named events."""

import json
from collections.abc import Sequence

from sampler import FinishReason
from server.calls.answer_parts import CallPart, PartReader
from server.error_responses import ErrorAnswer
from server.replies.event_stream import named_event
from server.replies.reply_format import ReplyFacts
from server.replies.running_answers import ChoicePiece
from server.replies.usage import UsageCount
from server.text.answer_text import Answer
from server.translate.requests import Translated
from weights.config_fields import Json

Fields = dict[str, Json]


class MessagesReply:
    """Writes the answer to one body: text blocks and tool_use blocks."""

    def __init__(self, translated: Translated, facts: ReplyFacts, count: UsageCount) -> None:
        self._facts = facts
        self._count = count
        self._reader = PartReader(translated.call_rules)
        self._num_blocks = 0
        self._is_text_open = False
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def begin(self) -> bytes:
        """The message as it is before any token."""
        return _event("message_start", message=self._message([]))

    def piece(self, choice: ChoicePiece) -> bytes:
        """Events of a piece's text and calls."""
        parts = self._reader.feed(choice.piece.text)
        if choice.piece.finish is None:
            return b"".join(self._part(part) for part in parts)
        parts += self._reader.finish()
        written = b"".join(self._part(part) for part in parts) + self._close_text()
        self._stop(choice.piece.finish, choice.piece.stop_reason)
        return written

    def end(self) -> bytes:
        """Why the answer ended and what it took."""
        delta: Fields = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        return _event("message_delta", delta=delta, usage=self._usage()) + _event("message_stop")

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The error as an event."""
        return _event("error", error={"type": answer.type, "message": answer.message})

    def whole(self, answers: Sequence[Answer]) -> str:
        """The whole answer."""
        answer = answers[0]
        blocks: list[Json] = []
        text: list[str] = []
        for part in [*self._reader.feed(answer.text), *self._reader.finish()]:
            if isinstance(part, str):
                text.append(part)
                continue
            if text:
                blocks.append({"type": "text", "text": "".join(text)})
                text = []
            blocks.append(_tool_use(part))
        if text or not blocks:
            blocks.append({"type": "text", "text": "".join(text)})
        self._stop(answer.finish or FinishReason.STOP, answer.stop_reason)
        return json.dumps(self._message(blocks), ensure_ascii=False)

    def _part(self, part: str | CallPart) -> bytes:
        if isinstance(part, str):
            opened = b""
            if not self._is_text_open:
                self._is_text_open = True
                opened = self._block("start", content_block={"type": "text", "text": ""})
            return opened + self._block("delta", delta={"type": "text_delta", "text": part})
        written = self._close_text()
        written += self._block("start", content_block=_tool_use(part) | {"input": {}})
        written += self._block(
            "delta", delta={"type": "input_json_delta", "partial_json": part.arguments}
        )
        return written + self._stop_block()

    def _close_text(self) -> bytes:
        if not self._is_text_open:
            return b""
        self._is_text_open = False
        return self._stop_block()

    def _stop_block(self) -> bytes:
        written = self._block("stop")
        self._num_blocks += 1
        return written

    def _block(self, name: str, /, **fields: Json) -> bytes:
        return _event(f"content_block_{name}", index=self._num_blocks, **fields)

    def _stop(self, finish: FinishReason, stop_reason: str | int | None) -> None:
        if isinstance(stop_reason, str):
            self._stop_reason, self._stop_sequence = "stop_sequence", stop_reason
        elif finish is FinishReason.LENGTH:
            self._stop_reason = "max_tokens"
        else:
            self._stop_reason = "tool_use" if self._reader.num_calls else "end_turn"

    def _message(self, content: list[Json]) -> Fields:
        return {
            "id": self._facts.id,
            "type": "message",
            "role": "assistant",
            "model": self._facts.model,
            "content": content,
            "stop_reason": self._stop_reason,
            "stop_sequence": self._stop_sequence,
            "usage": self._usage(),
        }

    def _usage(self) -> Fields:
        usage = self._count.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.completion_tokens,
        }


def _tool_use(part: CallPart) -> Fields:
    try:
        arguments: Json = json.loads(part.arguments)
    except (ValueError, RecursionError):
        arguments = {}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


def _event(name: str, /, **fields: Json) -> bytes:
    return named_event(name, json.dumps({"type": name, **fields}, ensure_ascii=False))
