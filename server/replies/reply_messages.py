"""Answers of `/v1/messages`: content blocks, whole or as named events."""

import json
from collections.abc import Sequence

from sampler import FinishReason
from server.calls.answer_parts import CallPart, PartReader, WholePart
from server.calls.reasoning import ReasoningPart
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
        self._reader = PartReader(translated.call_rules, translated.reasoning)
        self._num_blocks = 0
        # The type of the block that is open: text or thinking.
        self._open: str | None = None
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
        blocks = [
            _tool_use(part) if isinstance(part, CallPart) else part
            for part in _merged([*self._reader.feed(answer.text), *self._reader.finish()])
        ]
        if not any(block["type"] != "thinking" for block in blocks):
            blocks.append({"type": "text", "text": ""})
        self._stop(answer.finish or FinishReason.STOP, answer.stop_reason)
        return json.dumps(self._message([*blocks]), ensure_ascii=False)

    def _part(self, part: WholePart) -> bytes:
        if isinstance(part, CallPart):
            written = self._close_text()
            written += self._block("start", content_block=_tool_use(part) | {"input": {}})
            delta: Fields = {"type": "input_json_delta", "partial_json": part.arguments}
            return written + self._block("delta", delta=delta) + self._stop_block()
        block = _text_block(part)
        kind = str(block["type"])
        opened = b""
        if self._open != kind:
            opened = self._close_text()
            self._open = kind
            opened += self._block("start", content_block=block | {kind: ""})
        return opened + self._block("delta", delta={"type": f"{kind}_delta", kind: block[kind]})

    def _close_text(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
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


def _text_block(part: str | ReasoningPart) -> Fields:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # Nothing is signed: this server takes no reasoning back.
    return {"type": "thinking", "thinking": part.text, "signature": ""}


def _merged(parts: Sequence[WholePart]) -> list[Fields | CallPart]:
    """Calls, and one block for each run of text or of reasoning."""
    merged: list[Fields | CallPart] = []
    for part in parts:
        block = part if isinstance(part, CallPart) else _text_block(part)
        last = merged[-1] if merged else None
        if isinstance(block, dict) and isinstance(last, dict) and last["type"] == block["type"]:
            kind = str(block["type"])
            last[kind] = f"{last[kind]}{block[kind]}"
        else:
            merged.append(block)
    return merged


def _tool_use(part: CallPart) -> Fields:
    try:
        arguments: Json = json.loads(part.arguments)
    except (ValueError, RecursionError):
        arguments = {}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


def _event(name: str, /, **fields: Json) -> bytes:
    return named_event(name, json.dumps({"type": name, **fields}, ensure_ascii=False))
