"""A request's JSON body as a checked model, with what to do about fields it does not declare.

Declared fields are honoured. Of the others, some are refused by name because ignoring them would
change what the client meant, some are harmless bookkeeping, and the rest is unknown: named in
the response header `x-estuary-ignored-params` and counted, or refused with `--strict-params`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from anyio import to_thread
from fastapi import Depends, Request
from pydantic import JsonValue

from server.body_structure import MAX_ITEMS, check_structure
from server.error_responses import ApiError, ErrorAnswer, invalid, unsupported
from server.schema.body import Body
from server.state import ServerState, server_state

BodyT = TypeVar("BodyT", bound=Body, covariant=True)

# Above this size, parsing would hold up the streams of everybody else.
_INLINE_BODY_BYTES = 64 * 1024
_MAX_NAMED = 20

BOOKKEEPING = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "session_id",
        "stream_interval",
        "spaces_between_special_tokens",
    }
)

_NO_OTHER_MEDIA = "this server answers with text"
_NO_GRAMMAR = "use response_format or structured_outputs"
_STATELESS = "this server keeps no state between requests"
_USE_TOOLS = "use tools and tool_choice"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused, and the values of it that ask for nothing special."""

    reason: str
    harmless: tuple[JsonValue, ...] = ()


REFUSED: Mapping[str, Refusal] = {
    "audio": Refusal(_NO_OTHER_MEDIA),
    "modalities": Refusal(_NO_OTHER_MEDIA, (["text"], [])),
    "web_search_options": Refusal("this server does not search the web"),
    "moderation": Refusal("this server does not moderate"),
    "functions": Refusal(_USE_TOOLS, ([],)),
    "function_call": Refusal(_USE_TOOLS, ("none", "auto")),
    "prediction": Refusal("only chat and completions take a prediction"),
    "chat_template": Refusal("a request cannot bring its own template"),
    "documents": Refusal("put documents into the messages", ([],)),
    "use_beam_search": Refusal("beam search is not implemented", (False,)),
    "length_penalty": Refusal("beam search is not implemented", (1, 1.0)),
    "early_stopping": Refusal("beam search is not implemented", (False,)),
    "cache_salt": Refusal("only chat and completions take a salt"),
    "truncation_side": Refusal("prompts are cut on the left", ("left",)),
    "logits_processors": Refusal("a request cannot bring code", ([],)),
    "mm_processor_kwargs": Refusal(_NO_OTHER_MEDIA, ({},)),
    "diffusing": Refusal("streams carry final text only", (False,)),
    "diffusion": Refusal("this server calls the object decoding", ({},)),
    "kv_transfer_params": Refusal("caches are not transferred between servers", ({},)),
    "vllm_xargs": Refusal("this server calls the object decoding", ({},)),
    "lora_request": Refusal("adapters are chosen by the model name"),
    "prompt_embeds": Refusal("prompts are text or token ids"),
    "images": Refusal(_NO_OTHER_MEDIA, ([],)),
    "previous_response_id": Refusal(_STATELESS),
    "conversation": Refusal(_STATELESS),
    "background": Refusal(_STATELESS, (False,)),
    "prompt": Refusal(_STATELESS),
    "include": Refusal("nothing more can be included", ([], ["reasoning.encrypted_content"])),
    "max_tool_calls": Refusal("this server runs no tools"),
    "truncation": Refusal("prompts are not cut unasked", ("disabled",)),
    "mcp_servers": Refusal("this server runs no tools", ([],)),
    "container": Refusal("this server runs no tools"),
    "json_schema": Refusal(_NO_GRAMMAR),
    "regex": Refusal(_NO_GRAMMAR),
    "grammar": Refusal(_NO_GRAMMAR, ("",)),
    "ebnf": Refusal(_NO_GRAMMAR),
}

# Agent clients send these whatever the model is; refusing them would refuse the clients. They are
# named as ignored, and refused only by `--strict-params`.
IGNORED: Mapping[str, Refusal] = {
    "reasoning_effort": Refusal("the model does not take an effort", ("none",)),
    "verbosity": Refusal("the model does not take a verbosity", ("medium",)),
    "reasoning": Refusal("how much the model reasons cannot be set", ({},)),
    "thinking": Refusal("how much the model reasons cannot be set", ({"type": "disabled"},)),
}


@dataclass(frozen=True, slots=True)
class ReadBody(Generic[BodyT]):
    """A checked body and the names of the fields that were ignored."""

    value: BodyT
    ignored: tuple[str, ...]


def body_reader(model: type[BodyT]) -> Callable[..., Awaitable[ReadBody[BodyT]]]:
    """A dependency that reads and checks a body of type `model`."""

    async def read(
        request: Request, state: Annotated[ServerState, Depends(server_state)]
    ) -> ReadBody[BodyT]:
        _check_content_type(request.headers.get("content-type"))
        raw = await request.body()
        if len(raw) > _INLINE_BODY_BYTES:
            # A prompt of token ids may fill the context.
            max_items = max(MAX_ITEMS, 2 * state.engine.info.context_length)
            value = await to_thread.run_sync(
                _parse_large, model, raw, max_items, limiter=state.large_bodies
            )
        else:
            value = model.model_validate_json(raw)
        ignored = check_extra(value.model_extra or {}, strict=state.settings.strict_params)
        return ReadBody(value, ignored)

    return read


def _parse_large(model: type[BodyT], raw: bytes, max_items: int) -> BodyT:
    check_structure(raw, max_items=max_items)
    return model.model_validate_json(raw)


def _check_content_type(content_type: str | None) -> None:
    essence = (content_type or "").partition(";")[0].strip().lower()
    if essence == "application/json" or essence.endswith("+json"):
        return
    raise ApiError(
        ErrorAnswer(
            415,
            "invalid_request_error",
            "unsupported_media_type",
            "the body must be sent with content-type: application/json",
        )
    )


def check_extra(extra: Mapping[str, JsonValue], *, strict: bool) -> tuple[str, ...]:
    """Find the fields that are ignored: unknown ones and those of `IGNORED`, a bounded list.

    Raises ApiError for a field that is refused, and for one that would be ignored when `strict`.
    """
    ignored = []
    for name, value in extra.items():
        refusal = REFUSED.get(name) or IGNORED.get(name)
        if value is None or name in BOOKKEEPING or (refusal and value in refusal.harmless):
            continue
        if refusal is not None and (strict or name in REFUSED):
            raise unsupported(name, refusal.reason)
        if strict:
            raise invalid(f"{name[:64]}: no such field", param=name[:64], code="unknown_parameter")
        ignored.append(name)
    return tuple(ignored[:_MAX_NAMED])
