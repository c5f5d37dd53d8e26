"""Answers of `/v1/responses`: a list of items, whole or as named events."""

import json
import uuid
from collections.abc import Sequence

from sampler import FinishReason
from server.calls.answer_parts import CallPart, PartReader
from server.error_responses import ErrorAnswer
from server.replies.event_stream import named_event
from server.replies.reply_format import ReplyFacts
from server.replies.running_answers import ChoicePiece
from server.replies.usage import UsageCount
from server.schema.responses import ResponsesBody
from server.text.answer_text import Answer
from server.translate.requests import Translated
from weights.config_fields import Json

Item = dict[str, Json]


class ResponsesReply:
    """Writes the answer to one body: a message, then calls, as they come in the text."""

    def __init__(
        self, body: ResponsesBody, translated: Translated, facts: ReplyFacts, count: UsageCount
    ) -> None:
        self._body = body
        self._facts = facts
        self._count = count
        self._reader = PartReader(translated.call_rules)
        self._items: list[Item] = []
        self._open_text: list[str] | None = None
        self._finish = FinishReason.STOP
        self._num_events = 0

    def begin(self) -> bytes:
        """The response as it is before any token."""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def piece(self, choice: ChoicePiece) -> bytes:
        """Events of a piece's text and calls."""
        parts = self._reader.feed(choice.piece.text)
        if choice.piece.finish is not None:
            self._finish = choice.piece.finish
            parts += self._reader.finish()
        written = [self._part(part) for part in parts]
        if choice.piece.finish is not None:
            written.append(self._close_message())
        return b"".join(written)

    def end(self) -> bytes:
        """The whole response once more, as the API has it."""
        status = self._status()
        return self._event(f"response.{status}", response=self._response(status))

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The error as an event."""
        return self._event("error", code=answer.code, message=answer.message, param=answer.param)

    def whole(self, answers: Sequence[Answer]) -> str:
        """The whole answer: the fold of the events."""
        answer = answers[0]
        self._finish = answer.finish or FinishReason.STOP
        for part in [*self._reader.feed(answer.text), *self._reader.finish()]:
            self._part(part)
        self._close_message()
        return json.dumps(self._response(self._status()), ensure_ascii=False)

    def _part(self, part: str | CallPart) -> bytes:
        if isinstance(part, CallPart):
            return self._close_message() + self._call(part)
        opened = b""
        if self._open_text is None:
            self._open_text = []
            item = _message(f"msg_{uuid.uuid4().hex}", "in_progress", [])
            self._items.append(item)
            opened = self._item_event("added", item) + self._content_event(
                "content_part.added", part=_output_text("")
            )
        self._open_text.append(part)
        return opened + self._content_event("output_text.delta", delta=part, logprobs=[])

    def _close_message(self) -> bytes:
        if self._open_text is None:
            return b""
        text = "".join(self._open_text)
        status = "completed" if self._finish is not FinishReason.LENGTH else "incomplete"
        written = self._content_event("output_text.done", text=text, logprobs=[])
        written += self._content_event("content_part.done", part=_output_text(text))
        item = _message(str(self._items[-1]["id"]), status, [_output_text(text)])
        self._items[-1] = item
        self._open_text = None
        return written + self._item_event("done", item)

    def _call(self, part: CallPart) -> bytes:
        item: Item = {
            "type": "function_call",
            "id": f"fc_{uuid.uuid4().hex}",
            "call_id": part.id,
            "name": part.name,
            "arguments": part.arguments,
            "status": "completed",
        }
        self._items.append(item)
        place: Item = {"item_id": item["id"], "output_index": len(self._items) - 1}
        begun = item | {"arguments": "", "status": "in_progress"}
        return b"".join(
            (
                self._item_event("added", begun),
                self._event(
                    "response.function_call_arguments.delta", **place, delta=part.arguments
                ),
                self._event(
                    "response.function_call_arguments.done",
                    **place,
                    name=part.name,
                    arguments=part.arguments,
                ),
                self._item_event("done", item),
            )
        )

    def _item_event(self, name: str, item: Item) -> bytes:
        return self._event(
            f"response.output_item.{name}", output_index=len(self._items) - 1, item=item
        )

    def _content_event(self, name: str, **fields: Json) -> bytes:
        return self._event(
            f"response.{name}",
            item_id=self._items[-1]["id"],
            output_index=len(self._items) - 1,
            content_index=0,
            **fields,
        )

    def _event(self, name: str, /, **fields: Json) -> bytes:
        data: Item = {"type": name, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return named_event(name, json.dumps(data, ensure_ascii=False))

    def _status(self) -> str:
        return "incomplete" if self._finish is FinishReason.LENGTH else "completed"

    def _response(self, status: str) -> Item:
        body = self._body
        format_ = None if body.text is None else body.text.format
        is_cut = status == "incomplete"
        return {
            "id": self._facts.id,
            "object": "response",
            "created_at": self._facts.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self._facts.model,
            "output": list(self._items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {
                "format": {"type": "text"}
                if format_ is None
                else format_.model_dump(by_alias=True, exclude_none=True)
            },
            "tool_choice": (
                body.tool_choice.model_dump()
                if body.tool_choice is not None and not isinstance(body.tool_choice, str)
                else body.tool_choice or "auto"
            ),
            "tools": [_tool(tool.model_dump()) for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> Item:
        usage = self._count.usage()
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
            "decoding": usage.decoding.model_dump(),
        }


def _message(item_id: str, status: str, content: list[Json]) -> Item:
    return {
        "type": "message",
        "id": item_id,
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _output_text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _tool(tool: Item) -> Item:
    return {"parameters": None, "strict": None} | tool
