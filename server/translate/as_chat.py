"""Bodies of `/v1/responses` and `/v1/messages` as chat bodies; nothing is decided here."""

import json

from pydantic import ValidationError

from server.error_responses import ApiError, answer_of, invalid
from server.schema.chat import ChatBody
from server.schema.messages import CountBody, MessagesBody, TextBlock, ToolResultBlock, Turn
from server.schema.responses import (
    FlatChoice,
    FunctionCallItem,
    FunctionCallOutput,
    InputItem,
    InputText,
    ResponsesBody,
)
from weights.config_fields import Json

Fields = dict[str, Json]


def chat_of_responses(body: ResponsesBody) -> ChatBody:
    """A body of `/v1/responses`; raises ApiError for what chat cannot say."""
    messages: list[Json] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    for item in body.input:
        _append_item(messages, item)
    return _chat(
        {
            "model": body.model,
            "messages": messages,
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "seed": body.seed,
            "logprobs": True if body.top_logprobs is not None else None,
            "top_logprobs": body.top_logprobs,
            "response_format": _response_format(body),
            "tools": [
                {
                    "type": "function",
                    "function": tool.model_dump(exclude={"type"}, exclude_none=True),
                }
                for tool in body.tools
            ]
            if body.tools
            else None,
            "tool_choice": (
                {"type": "function", "function": {"name": body.tool_choice.name}}
                if isinstance(body.tool_choice, FlatChoice)
                else body.tool_choice
            ),
            "parallel_tool_calls": body.parallel_tool_calls,
            "decoding": None if body.decoding is None else body.decoding.model_dump(),
        }
    )


def _append_item(messages: list[Json], item: InputItem) -> None:
    if isinstance(item, FunctionCallOutput):
        messages.append(
            {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
        )
    elif isinstance(item, FunctionCallItem):
        call: Json = {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments},
        }
        last = messages[-1] if messages else None
        if isinstance(last, dict) and isinstance(calls := last.get("tool_calls"), list):
            calls.append(call)
        else:
            messages.append({"role": "assistant", "tool_calls": [call]})
    else:
        messages.append({"role": item.role, "content": _text(item.content)})


def _text(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _response_format(body: ResponsesBody) -> Json:
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if wanted.schema_ is None:
        raise invalid("text.format.schema: Field required", param="text.format.schema")
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}


def chat_of_messages(body: CountBody) -> ChatBody:
    """A body of `/v1/messages`; raises ApiError for what chat cannot say."""
    messages: list[Json] = []
    if body.system:
        messages.append({"role": "system", "content": _joined(body.system)})
    for turn in body.messages:
        _append_turn(messages, turn)
    fields: Fields = {"model": body.model, "messages": messages, **_tool_fields(body)}
    if isinstance(body, MessagesBody):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": list(body.stop_sequences) if body.stop_sequences else None,
            "seed": body.seed,
            "decoding": None if body.decoding is None else body.decoding.model_dump(),
        }
    return _chat(fields)


def _append_turn(messages: list[Json], turn: Turn) -> None:
    text: list[TextBlock] = []
    calls: list[Json] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            text.append(block)
        elif isinstance(block, ToolResultBlock):
            content = _joined(block.content or [])
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        else:
            arguments = json.dumps(block.input, ensure_ascii=False)
            function: Json = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
    if text or calls:
        message: Fields = {"role": turn.role, "content": _joined(text)}
        messages.append(message | ({"tool_calls": calls} if calls else {}))


def _joined(blocks: list[TextBlock]) -> str:
    return "\n".join(block.text for block in blocks)


def _tool_fields(body: CountBody) -> Fields:
    if not body.tools:
        return {}
    tools: list[Json] = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input_schema,
            },
        }
        for tool in body.tools
    ]
    choice = body.tool_choice
    if choice is None:
        return {"tools": tools}
    if choice.type == "tool" and choice.name is None:
        raise invalid("tool_choice.name: Field required", param="tool_choice.name")
    named: Json = {"type": "function", "function": {"name": choice.name}}
    words: Fields = {"auto": "auto", "any": "required", "none": "none", "tool": named}
    return {
        "tools": tools,
        "tool_choice": words[choice.type],
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


def _chat(fields: Fields) -> ChatBody:
    try:
        return ChatBody.model_validate(fields)
    except ValidationError as error:
        raise ApiError(answer_of(error)) from error
