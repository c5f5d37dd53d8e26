"""Tool calls: what the prompt says of the tools, and calls read from the answer's text.

Models write calls in a few styles; which one, their chat template tells. A call that was forced
(`tool_choice` required or a name) is held to JSON by a grammar and needs no style.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import JsonValue

from sampler import GrammarSpec
from server.calls.answer_grammar import schema_grammar
from server.calls.coded_calls import Schemas, read_coded
from server.schema.tools import NamedChoice, Tool

_ANY_ARGUMENTS: dict[str, JsonValue] = {"type": "object"}


class ToolStyle(StrEnum):
    """How a model writes calls.

    TAGGED:    JSON objects between <tool_call> and </tool_call> (Hermes, Qwen)
    CODED:     <function=NAME> with <parameter=NAME> inside, between the same (Qwen3-Coder)
    LISTED:    a JSON list behind [TOOL_CALLS] (Mistral)
    ARGUED:    a name, [ARGS] and a JSON object behind each [TOOL_CALLS] (Mistral, later)
    ENCLOSED:  a JSON list between <TOOLCALL> and </TOOLCALL> (Nemotron)
    BARE:      a JSON object and nothing else, perhaps behind <|python_tag|> (Llama 3)
    UNTAUGHT:  the template knows no tools; we describe them, in the tagged style
    """

    TAGGED = "tagged"
    CODED = "coded"
    LISTED = "listed"
    ARGUED = "argued"
    ENCLOSED = "enclosed"
    BARE = "bare"
    UNTAUGHT = "untaught"


# What begins and ends a call.
CALL_MARKS = {
    ToolStyle.TAGGED: ("<tool_call>", "</tool_call>"),
    ToolStyle.LISTED: ("[TOOL_CALLS]", ""),
    ToolStyle.ENCLOSED: ("<TOOLCALL>", "</TOOLCALL>"),
}
ARGUMENTS_MARK = "[ARGS]"
PYTHON_TAG = "<|python_tag|>"


def style_of(template_source: str) -> ToolStyle:
    """The style that a chat template teaches."""
    if "[TOOL_CALLS]" in template_source:
        return ToolStyle.ARGUED if ARGUMENTS_MARK in template_source else ToolStyle.LISTED
    if "<TOOLCALL>" in template_source:
        return ToolStyle.ENCLOSED
    if "<tool_call>" in template_source:
        return ToolStyle.CODED if "<function=" in template_source else ToolStyle.TAGGED
    if not re.search(r"\btools\b", template_source):
        return ToolStyle.UNTAUGHT
    return ToolStyle.BARE


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A call in an answer; arguments are JSON text."""

    name: str
    arguments: str


class CallReader(Protocol):
    """Takes the answer's text as it comes and tells content from calls."""

    def feed(self, text: str) -> list[str | CalledTool]:
        """Content and calls that the text completes."""
        ...

    def finish(self) -> list[str | CalledTool]:
        """What was held back until the end of the answer."""
        ...


def reader_of(style: ToolStyle, choice: NamedChoice | str, schemas: Schemas) -> CallReader:
    """The reader for a style, or for what a forced choice makes the model write.

    schemas: of the functions' arguments, by name
    """
    if isinstance(choice, NamedChoice):
        return WholeTextReader(lambda text: [CalledTool(choice.function.name, text)])
    if choice == "required":
        return WholeTextReader(_read_calls)
    if style in (ToolStyle.LISTED, ToolStyle.ARGUED):
        return MarkedReader(CALL_MARKS[ToolStyle.LISTED][0], None, _read_argued)
    if style is ToolStyle.ENCLOSED:
        return MarkedReader(*CALL_MARKS[ToolStyle.ENCLOSED], _read_calls)
    if style is ToolStyle.BARE:
        return BareReader()
    return MarkedReader(*CALL_MARKS[ToolStyle.TAGGED], lambda text: _read_tagged(text, schemas))


def forced_grammar(
    tools: Sequence[Tool], choice: NamedChoice | str, *, is_single: bool
) -> GrammarSpec | None:
    """The grammar of an answer that must be calls; None when the model may choose."""
    if isinstance(choice, NamedChoice):
        tool = next(tool for tool in tools if tool.function.name == choice.function.name)
        return schema_grammar(arguments_schema(tool), param="tools")
    if choice != "required":
        return None
    items: list[JsonValue] = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": arguments_schema(tool),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema: dict[str, JsonValue] = {"type": "array", "minItems": 1, "items": {"anyOf": items}}
    if is_single:
        schema["maxItems"] = 1
    return schema_grammar(schema, param="tools")


def arguments_schema(tool: Tool) -> dict[str, JsonValue]:
    """The JSON schema of a tool's arguments."""
    return tool.function.parameters or _ANY_ARGUMENTS


class ReadCalls(Protocol):
    """Reads calls from text; None when it holds none."""

    def __call__(self, text: str, /) -> list[CalledTool] | None:
        """Read the text."""
        ...


class WholeTextReader:
    """Nothing but calls: they are read when the answer is complete."""

    def __init__(self, read: ReadCalls) -> None:
        self._read = read
        self._text: list[str] = []

    def feed(self, text: str) -> list[str | CalledTool]:
        """Keep the text."""
        self._text.append(text)
        return []

    def finish(self) -> list[str | CalledTool]:
        """The calls, or the text when the answer was cut before it became one."""
        text = "".join(self._text)
        calls = self._read(text) if _is_json(text) else None
        return [*calls] if calls else [text] if text else []


class MarkedReader:
    """Content until a mark; behind it calls, up to the closing mark or the end of the answer."""

    def __init__(self, opening: str, closing: str | None, read: ReadCalls) -> None:
        self._read = read
        self._opening = opening
        self._closing = closing
        self._held = ""
        self._in_call = False
        self._has_called = False

    def feed(self, text: str) -> list[str | CalledTool]:
        """Content at once, calls when complete.

        Held back are what may be the beginning of a mark, and blank text, which belongs to the
        style when a mark follows.
        """
        self._held += text
        parts: list[str | CalledTool] = []
        while self._go_on(parts):
            pass
        return parts

    def finish(self) -> list[str | CalledTool]:
        """What is left: a call whose end is missing counts when it is complete JSON."""
        held, self._held = self._held, ""
        if self._in_call:
            return self._calls_or_text(held)
        is_blank_behind_call = self._has_called and not held.strip()
        return [held] if held and not is_blank_behind_call else []

    def _go_on(self, parts: list[str | CalledTool]) -> bool:
        """Move what is complete to `parts`; whether a mark was passed and more may follow."""
        if self._in_call:
            return self._end_call(parts)
        before, mark, after = self._held.partition(self._opening)
        if mark:
            content, self._held, self._in_call = before.rstrip(), after, True
        else:
            content = before[: len(before) - _overlap(before, self._opening)].rstrip()
            self._held = before[len(content) :]
        if content:
            parts.append(content)
        return bool(mark)

    def _end_call(self, parts: list[str | CalledTool]) -> bool:
        if self._closing is None:
            return False
        inside, mark, after = self._held.partition(self._closing)
        if not mark:
            return False
        self._held, self._in_call, self._has_called = after, False, True
        parts += self._calls_or_text(inside, self._closing)
        return True

    def _calls_or_text(self, inside: str, closing: str = "") -> list[str | CalledTool]:
        calls = self._read(inside)
        # What cannot be read as a call is shown as it was written, never dropped.
        return [*calls] if calls else [self._opening + inside + closing]


class BareReader:
    """An answer that begins with { or <|python_tag|> is a call; any other is content."""

    def __init__(self) -> None:
        self._held = ""
        self._is_content = False

    def feed(self, text: str) -> list[str | CalledTool]:
        """Content at once when it is known to be content."""
        if self._is_content:
            return [text] if text else []
        self._held += text
        beginning = self._held.lstrip()
        if (
            not beginning
            or beginning[0] == "{"
            or PYTHON_TAG.startswith(beginning[: len(PYTHON_TAG)])
        ):
            return []
        self._is_content = True
        held, self._held = self._held, ""
        return [held]

    def finish(self) -> list[str | CalledTool]:
        """The calls, or the text when it is none."""
        held, self._held = self._held, ""
        text = held.strip().removeprefix(PYTHON_TAG)
        calls = _read_calls(text) or _read_calls(f"[{text.replace('; ', ', ')}]")
        if calls:
            return [*calls]
        return [held] if held else []


def _read_tagged(text: str, schemas: Schemas) -> list[CalledTool] | None:
    """JSON, or code: a model that was taught code writes JSON where a grammar holds it to that."""
    coded = read_coded(text, schemas)
    return _read_calls(text) if coded is None else [CalledTool(*call) for call in coded]


def _read_argued(text: str) -> list[CalledTool] | None:
    """Names with arguments behind them; a JSON list where there is no mark between the two."""
    calls: list[CalledTool] = []
    for part in text.split(CALL_MARKS[ToolStyle.LISTED][0]):
        name, mark, arguments = part.partition(ARGUMENTS_MARK)
        if not mark:
            return _read_calls(text)
        # Some models number their calls between name and arguments.
        name = name.partition("[CALL_ID]")[0].strip()
        if not name or not _is_object(arguments):
            return None
        calls.append(CalledTool(name, json.dumps(json.loads(arguments), ensure_ascii=False)))
    return calls


def _read_calls(text: str) -> list[CalledTool] | None:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = [_read_call(item) for item in (value if isinstance(value, list) else [value])]
    known = [call for call in calls if call is not None]
    return known if known and len(known) == len(calls) else None


def _read_call(value: JsonValue) -> CalledTool | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str):
        return None
    if isinstance(arguments, str):
        return CalledTool(name, arguments)
    return CalledTool(name, json.dumps(arguments, ensure_ascii=False))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_object(text: str) -> bool:
    return text.strip().startswith("{") and _is_json(text)


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of the text that could be the beginning of the mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def tool_values(tools: Sequence[Tool]) -> list[dict[str, JsonValue]]:
    """The tools as templates read them."""
    return [tool.model_dump(mode="json", exclude_none=True) for tool in tools]


def untaught_messages(
    messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]]
) -> list[dict[str, JsonValue]]:
    """The conversation for a template that knows no tools: all in words, in the tagged style."""
    told = [_in_words(message) for message in messages]
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = (
        "You may call functions. These are their signatures, one a line:\n"
        f"<tools>\n{described}\n</tools>\n"
        "To call one, write its name and arguments like this:\n"
        '<tool_call>\n{"name": "<name>", "arguments": {<arguments>}}\n</tool_call>'
    )
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _in_words(message: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        written = [
            f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
            for call in calls
            if isinstance(call, dict)
        ]
        content = "\n".join([*filter(None, [str(message["content"])]), *written])
        return {"role": message["role"], "content": content}
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    return dict(message)
