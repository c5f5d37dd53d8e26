"""Bodies and chunks of `/v1/completions`."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from server.limits import MAX_CHOICES_PER_PROMPT, MAX_LOGPROBS, MAX_PROMPTS, MAX_TOKENS
from server.schema.common import (
    DecodingExtra,
    PromptLogprob,
    SamplingBody,
    TokenId,
    TokenTraceBody,
    Usage,
)


def _as_prompts(value: object) -> object:
    """One prompt, text or token ids, stands for a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [value]
    return value


def _prompt_tag(value: object) -> str:
    return "<text>" if isinstance(value, str) else "<tokens>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TokenId], Tag("<tokens>")],
    Discriminator(_prompt_tag),
]


class CompletionBody(SamplingBody):
    """What a client sends to `/v1/completions`."""

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(
            _as_prompts,
            json_schema_input_type=str | list[str] | list[TokenId] | list[list[TokenId]],
        ),
    ] = Field(min_length=1, max_length=MAX_PROMPTS)
    suffix: str | None = Field(None, description="Text that follows the answer (infill).")
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="16 by default; 0 only with echo."
    )
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES_PER_PROMPT)
    echo: bool | None = Field(None, description="Answer with the prompt before the completion.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class CompletionLogprobs(BaseModel):
    """Parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[PromptLogprob | None] | None = None
    decoding: list[TokenTraceBody] | None = None


class Completion(BaseModel):
    """The whole answer, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    decoding: DecodingExtra | None = None
