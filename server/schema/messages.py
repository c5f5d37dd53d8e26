"""Body of `/v1/messages`, in the shape of Anthropic's API."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag

from server.limits import (
    MAX_MESSAGES,
    MAX_SEED,
    MAX_STOP_STRINGS,
    MAX_TOKENS,
)
from server.schema.body import Body
from server.schema.common import DecodingBody, StopString, Timeout
from server.schema.media import TextOnly
from server.schema.numbers import Float32, Temperature
from server.schema.tools import ToolName


class TextBlock(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ToolUseBlock(Body):
    """A call the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]


def _as_text_blocks(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


TextBlocks = Annotated[
    list[Annotated[TextBlock, TextOnly]],
    BeforeValidator(_as_text_blocks, json_schema_input_type=str | list[TextBlock]),
]


class ToolResultBlock(Body):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextBlocks | None = None
    is_error: bool | None = None


class ThinkingBlock(Body):
    """What the model thought earlier; taken back, and not shown to it again."""

    type: Literal["thinking", "redacted_thinking"]


def _block_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ThinkingBlock, Tag("<redacted_thinking>")],
    Discriminator(
        _block_tag,
        custom_error_type="block_type",
        custom_error_message="type must be text, thinking, tool_use or tool_result",
    ),
]
Blocks = Annotated[
    list[Annotated[Block, TextOnly]],
    BeforeValidator(_as_text_blocks, json_schema_input_type=str | list[Block]),
]


class Turn(Body):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Blocks


class InputTool(Body):
    """A function the model may call."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, JsonValue]


class ToolChoiceBody(Body):
    """How the model may choose among the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountBody(Body):
    """What a client sends to `/v1/messages/count_tokens`."""

    model: str | None = Field(None, max_length=512)
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: TextBlocks | None = None
    tools: list[InputTool] | None = Field(None, max_length=128)
    tool_choice: ToolChoiceBody | None = None


class MessagesBody(CountBody):
    """What a client sends to `/v1/messages`."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    temperature: Temperature | None = Field(None, ge=0, le=1)
    top_p: Float32 | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stop_sequences: list[StopString] | None = Field(None, max_length=MAX_STOP_STRINGS)
    stream: bool | None = None
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    timeout: Timeout | None = None
    decoding: DecodingBody | None = None
