"""Body of `/v1/responses`: text and function calls, stateless."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
)

from server.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOKENS, MAX_TOOLS
from server.schema.body import Body
from server.schema.common import TokenChoiceBody
from server.schema.media import TextOnly
from server.schema.tools import ToolName, choice_tag


class InputText(Body):
    """A piece of a message, the model's own or the user's."""

    type: Annotated[Literal["input_text", "output_text"], TextOnly]
    text: str


def _content_tag(value: object) -> str:
    return "<text>" if isinstance(value, str) else "<parts>"


InputContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[InputText], Tag("<parts>")],
    Discriminator(_content_tag),
]


class InputMessage(Body):
    """One turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["developer", "system", "user", "assistant"]
    content: InputContent


class FunctionCallItem(Body):
    """A call the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: InputContent


class ReasoningItem(Body):
    """What the model thought earlier; taken back, and not shown to it again."""

    type: Literal["reasoning"]


def _item_tag(value: object) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="type must be message, reasoning, function_call or "
        "function_call_output",
    ),
]


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FlatTool(Body):
    """A function the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FlatChoice(Body):
    """One function must be called."""

    type: Literal["function"]
    name: str


class FlatAllowedChoice(Body):
    """Only some of the functions may be called this time."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatChoice] = Field(min_length=1, max_length=MAX_TOOLS)


class TextFormat(Body):
    """The form of the text: any, a JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """What the text shall be like."""

    format: TextFormat | None = None


class ResponsesBody(TokenChoiceBody):
    """What a client sends to `/v1/responses`."""

    model: str | None = Field(None, max_length=512)
    input: Annotated[
        list[InputItem],
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    ] = Field(min_length=1, max_length=MAX_MESSAGES)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[FlatTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[FlatChoice, Tag("<function>")]
            | Annotated[FlatAllowedChoice, Tag("<allowed>")],
            Discriminator(choice_tag),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
