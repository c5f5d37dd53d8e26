"""Bodies and chunks of `/v1/chat/completions`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, JsonValue, StringConstraints, Tag

from server.limits import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOKENS
from server.schema.body import Body
from server.schema.common import (
    DecodingExtra,
    PromptLogprob,
    SamplingBody,
    TokenTraceBody,
    Usage,
    content_tag,
)
from server.schema.media import TextOnly
from server.schema.tools import ToolChoice, Tools


class TextPart(Body):
    """A piece of a message's content; text is the only type this server reads."""

    type: Annotated[Literal["text"], TextOnly]
    text: str


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Tag("<parts>")],
    Discriminator(content_tag),
]


class CalledFunction(Body):
    """A function the assistant called, with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call the assistant made earlier in the conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One turn of the conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


TemplateName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class ChatBody(SamplingBody):
    """What a client sends to `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Wins over max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool | None = Field(None, description="True by default.")
    continue_final_message: bool | None = Field(
        None, description="The answer goes on where the last message ends."
    )
    chat_template_kwargs: dict[TemplateName, JsonValue] | None = Field(None, max_length=16)
    tools: Tools | None = Field(None, description="Functions the model may call.")
    tool_choice: ToolChoice | None = Field(
        None, description="auto by default; required and a name hold the answer to the schemas."
    )
    include_reasoning: bool | None = Field(
        None, description="False leaves out what the model thinks before it answers."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="False: only the first call of an answer counts. True by default."
    )


class AlternativeLogprob(BaseModel):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(AlternativeLogprob):
    """A token of the answer with the likeliest alternatives."""

    top_logprobs: list[AlternativeLogprob]


class ChatLogprobs(BaseModel):
    """One entry per token of the answer."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CalledFunctionText(BaseModel):
    """A called function in an answer."""

    name: str | None = None
    arguments: str


class AnsweredToolCall(BaseModel):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunctionText


class AnsweredMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: list[AnsweredToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    decoding: list[TokenTraceBody] | None = None


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: list[PromptLogprob | None] | None = None
    prompt_token_ids: list[int] | None = None


class ToolCallDelta(BaseModel):
    """What a chunk adds to a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionText


class MessageDelta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to one answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatChunk(BaseModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    decoding: DecodingExtra | None = None
    prompt_logprobs: list[PromptLogprob | None] | None = None
    prompt_token_ids: list[int] | None = None
