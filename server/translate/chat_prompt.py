"""A conversation as prompt text: messages, tools and the chat template."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence

from server.calls.answer_parts import CallRules
from server.calls.tool_calls import (
    ToolStyle,
    arguments_schema,
    style_of,
    tool_values,
    untaught_messages,
)
from server.error_responses import invalid, unsupported
from server.schema.chat import ChatBody, Message, TextPart, ToolCall
from server.schema.tools import NamedChoice, Tool
from server.translate.model_text import ModelTools
from server.translate.plain_text import marked, special_spellings
from weights.config_fields import Json
from weights.errors import TemplateError

# Names that templates in use know; others could stand for the template's own variables.
TEMPLATE_OPTIONS = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "date_string"}
)


def render_chat(
    messages: Sequence[Message],
    tools: ModelTools,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    options: Mapping[str, Json] | None = None,
    functions: Sequence[Tool] = (),
) -> str:
    """The prompt text of a conversation, for `encode_marked`.

    Raises ApiError when the template refuses it.
    """
    if tools.chat_template is None:
        raise unsupported("messages", "the model has no chat template; use /v1/completions")
    for name in options or {}:
        if name not in TEMPLATE_OPTIONS:
            raise unsupported(
                f"chat_template_kwargs.{name}",
                f"templates are given {', '.join(sorted(TEMPLATE_OPTIONS))} only",
            )
    spellings = special_spellings(tools.tokenizer)
    values = [message_value(message, spellings) for message in messages]
    if continue_final_message and add_generation_prompt:
        raise invalid(
            "continue_final_message needs add_generation_prompt to be false",
            param="continue_final_message",
        )
    described = [_marked_fields(value, spellings) for value in tool_values(functions)]
    if functions and style_of(tools.chat_template.source) is ToolStyle.UNTAUGHT:
        values, described = untaught_messages(values, described), []
    try:
        text = tools.chat_template.render(
            values,
            add_generation_prompt=add_generation_prompt,
            tools=described or None,
            **dict(options or {}),
        )
    except TemplateError as error:
        raise invalid(f"the chat template refuses this: {error}", param="messages") from error
    return _until_final_content(text, values[-1]) if continue_final_message else text


def message_value(message: Message, spellings: re.Pattern[str] | None) -> dict[str, Json]:
    """A message as templates read it: the content as text, no empty fields, texts marked."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content if isinstance(part, TextPart))
    value: dict[str, Json] = {
        # Templates know one word for whoever sets the rules.
        "role": "system" if message.role == "developer" else message.role,
        "content": "" if content is None else content,
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.__dict__[name] is not None:
            value[name] = message.__dict__[name]
    value = _marked_fields(value, spellings)
    if message.tool_calls:
        value["tool_calls"] = [_call_value(call, spellings) for call in message.tool_calls]
    return value


def _marked_fields(value: Mapping[str, Json], spellings: re.Pattern[str] | None) -> dict[str, Json]:
    return {name: marked(item, spellings) for name, item in value.items()}


def _call_value(call: ToolCall, spellings: re.Pattern[str] | None) -> Json:
    arguments = marked(call.function.arguments, spellings)
    # Templates write arguments as JSON themselves and so want them parsed, where they are JSON.
    with contextlib.suppress(ValueError, RecursionError):
        arguments = marked(json.loads(call.function.arguments), spellings)
    name = marked(call.function.name, spellings)
    function: Json = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function} | ({} if call.id is None else {"id": call.id})


def _until_final_content(text: str, message: Mapping[str, Json]) -> str:
    content = str(message["content"]).strip()
    start = text.rfind(content)
    if not content or start < 0:
        raise invalid(
            "the chat template does not show the last message's content",
            param="continue_final_message",
        )
    return text[: start + len(content)]


def call_rules_of(body: ChatBody, tools: ModelTools) -> CallRules | None:
    """How to read calls; raises ApiError for a choice that names no tool."""
    choice = "auto" if body.tool_choice is None else body.tool_choice
    if not body.tools:
        if choice not in ("auto", "none"):
            raise invalid("tool_choice needs tools", param="tool_choice")
        return None
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise invalid("tools: every name may stand once", param="tools")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise invalid(
            f"tool_choice.function.name must be one of {', '.join(names)}",
            param="tool_choice.function.name",
        )
    if choice == "none" or tools.chat_template is None:
        return None
    if body.response_format is not None and body.response_format.type != "text":
        raise invalid("response_format cannot be combined with tools", param="response_format")
    if body.structured_outputs is not None:
        raise invalid(
            "structured_outputs cannot be combined with tools", param="structured_outputs"
        )
    return CallRules(
        style=style_of(tools.chat_template.source),
        choice=choice,
        is_single=body.parallel_tool_calls is False,
        schemas={tool.function.name: arguments_schema(tool) for tool in body.tools},
    )
