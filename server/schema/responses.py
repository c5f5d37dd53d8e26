"""Body of `/v1/responses`: text and function calls, stateless."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
)

from server.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_SEED, MAX_TOKENS
from server.schema.body import Body
from server.schema.common import DecodingBody, Timeout
from server.schema.numbers import Float32, Temperature
from server.schema.tools import ToolName


class InputText(Body):
    """A piece of a message, the model's own or the user's."""

    type: Literal["input_text", "output_text"]
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


def _item_tag(value: object) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message="type must be message, function_call or function_call_output",
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


def _choice_tag(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<function>"


class TextFormat(Body):
    """The form of the text: any, a JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """What the text shall be like."""

    format: TextFormat | None = None


class ResponsesBody(Body):
    """What a client sends to `/v1/responses`."""

    model: str | None = Field(None, max_length=512)
    input: Annotated[
        list[InputItem],
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    ] = Field(min_length=1, max_length=MAX_MESSAGES)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: Temperature | None = Field(None, ge=0, le=2)
    top_p: Float32 | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[FlatTool] | None = Field(None, max_length=128)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[FlatChoice, Tag("<function>")],
            Discriminator(_choice_tag),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    timeout: Timeout | None = None
    decoding: DecodingBody | None = None
