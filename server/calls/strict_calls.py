"""The grammar of an answer whose calls, if it makes any, obey the schemas of `strict` functions.

Text is free up to the mark that begins a call in the style of the model; behind it a call of one of
the functions must follow. Arguments of functions that are not strict are any JSON object.
"""

import json
from collections.abc import Sequence

from pydantic import JsonValue

from sampler import GrammarKind, GrammarSpec
from server.calls.answer_grammar import schema_grammar
from server.calls.tool_calls import (
    ARGUMENTS_MARK,
    CALL_MARKS,
    PYTHON_TAG,
    ToolStyle,
    arguments_schema,
)
from server.error_responses import invalid
from server.limits import MAX_GRAMMAR_CHARACTERS
from server.schema.tools import Tool
from weights.text.tokenizer import Tokenizer

_ANY_TEXT = r"/(.|\n)*/"
# What the reader of bare calls takes for content: nothing, or text that begins with no brace.
_NO_BARE_CALL = r"/[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/"


def strict_grammar(
    tools: Sequence[Tool], style: ToolStyle, tokenizer: Tokenizer
) -> GrammarSpec | None:
    """The grammar, in Lark; None when no function is strict.

    Raises ApiError when a schema is too large or too deep.
    """
    if not any(tool.function.strict for tool in tools):
        return None
    if style is ToolStyle.LISTED:
        text = _listed(tools, tokenizer)
    elif style is ToolStyle.ARGUED:
        text = _argued(tools, tokenizer)
    elif style is ToolStyle.ENCLOSED:
        text = _enclosed(tools, tokenizer)
    elif style is ToolStyle.BARE:
        text = _bare(tools, tokenizer)
    else:
        text = _tagged(tools, tokenizer)
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise invalid(
            f"tools: strict schemas may have at most {MAX_GRAMMAR_CHARACTERS} characters together",
            param="tools",
        )
    return GrammarSpec(GrammarKind.LARK, text)


def _tagged(tools: Sequence[Tool], tokenizer: Tokenizer) -> str:
    opening, closing = CALL_MARKS[ToolStyle.TAGGED]
    rules = [
        "start: call* TEXT",
        "call: opening (" + " | ".join(f"body_{number}" for number in range(len(tools))) + ")",
        _opening(opening, tokenizer),
        f"closing: {_literal(closing, tokenizer)}",
        f"TEXT: {_ANY_TEXT}",
    ]
    for number, tool in enumerate(tools):
        begin = f'\n{{"name": {json.dumps(tool.function.name)}, "arguments": '
        rules.append(
            f"body_{number}: {json.dumps(begin)} {_json(_arguments(tool))} "
            + json.dumps("}\n")
            + " closing"
        )
    return "\n".join(rules)


def _listed(tools: Sequence[Tool], tokenizer: Tokenizer) -> str:
    opening, _ = CALL_MARKS[ToolStyle.LISTED]
    return "\n".join(
        (
            "start: TEXT | opening calls",
            _opening(opening, tokenizer),
            f"calls: {_json(_list_schema(tools))}",
            f"TEXT: {_ANY_TEXT}",
        )
    )


def _enclosed(tools: Sequence[Tool], tokenizer: Tokenizer) -> str:
    opening, closing = CALL_MARKS[ToolStyle.ENCLOSED]
    return "\n".join(
        (
            "start: call* TEXT",
            f"call: opening calls {_literal(closing, tokenizer)}",
            _opening(opening, tokenizer),
            f"calls: {_json(_list_schema(tools))}",
            f"TEXT: {_ANY_TEXT}",
        )
    )


def _argued(tools: Sequence[Tool], tokenizer: Tokenizer) -> str:
    opening, _ = CALL_MARKS[ToolStyle.LISTED]
    mark = _literal(ARGUMENTS_MARK, tokenizer)
    calls = [f"{json.dumps(tool.function.name)} {mark} {_json(_arguments(tool))}" for tool in tools]
    return "\n".join(
        (
            f"start: TEXT | opening call ({_literal(opening, tokenizer)} call)*",
            _opening(opening, tokenizer),
            "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
            *(f"call_{number}: {call}" for number, call in enumerate(calls)),
            f"TEXT: {_ANY_TEXT}",
        )
    )


def _list_schema(tools: Sequence[Tool]) -> JsonValue:
    items: list[JsonValue] = [_call_schema(tool, "arguments") for tool in tools]
    return {"type": "array", "minItems": 1, "items": {"anyOf": items}}


def _bare(tools: Sequence[Tool], tokenizer: Tokenizer) -> str:
    token_id = tokenizer.token_id(PYTHON_TAG)
    tag = "" if token_id is None else f"<[{token_id}]>? "
    calls: list[JsonValue] = [_call_schema(tool, "parameters") for tool in tools]
    return "\n".join(
        (
            f"start: TEXT | {tag}call",
            f"call: {_json({'anyOf': calls})}",
            f"TEXT: {_NO_BARE_CALL}",
        )
    )


def _call_schema(tool: Tool, arguments: str) -> JsonValue:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, arguments: _arguments(tool)},
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _arguments(tool: Tool) -> JsonValue:
    if not tool.function.strict:
        return {"type": "object"}
    schema = arguments_schema(tool)
    schema_grammar(schema, param="tools")
    return schema


def _opening(mark: str, tokenizer: Tokenizer) -> str:
    """The rule of free text up to a mark; a lazy one ends at the mark's first occurrence."""
    if _is_special(mark, tokenizer):
        return f"opening: TEXT {_literal(mark, tokenizer)}"
    return f"opening[lazy]: TEXT {_literal(mark, tokenizer)}"


def _literal(mark: str, tokenizer: Tokenizer) -> str:
    """A mark as the tokenizer knows it: a special token by its id, or text."""
    if _is_special(mark, tokenizer):
        return f"<[{tokenizer.token_id(mark)}]>"
    return json.dumps(mark)


def _is_special(mark: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.token_id(mark) in tokenizer.special_token_ids


def _json(schema: JsonValue) -> str:
    return "%json " + json.dumps(schema)
