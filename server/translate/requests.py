"""Bodies to requests: template, tokenizer, limits and defaults.

This and `server/translate/sampling.py` are the only validation beyond types.

Nothing is shortened or dropped without the client's asking: what cannot be served is refused
with the name of the field. Everything here is plain computation and may run in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sampler import ModelInfo, Request, SamplingParams
from sampler.seats.prediction import check_prediction
from sampler.state.decoding import resolve_decoding
from server.calls.answer_grammar import check_grammar
from server.calls.answer_parts import CallRules
from server.calls.strict_calls import strict_grammar
from server.calls.tool_calls import ToolStyle, forced_grammar
from server.error_responses import ApiError, invalid, unsupported
from server.limits import MAX_CHOICES, MAX_SEED
from server.schema.chat import ChatBody
from server.schema.common import SamplingBody
from server.schema.completions import CompletionBody
from server.text.answer_text import TextRules
from server.translate.chat_prompt import call_rules_of, render_chat
from server.translate.model_text import ModelTools
from server.translate.plain_text import encode_marked
from server.translate.sampling import known_ids, sampling_params, text_rules

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as token ids, and as text where the client sent text."""

    token_ids: tuple[int, ...]
    text: str | None


@dataclass(frozen=True, slots=True)
class Translated:
    """A body as requests to the engine.

    requests:  of all prompts, each prompt's candidates together
    per_prompt: candidates of each prompt
    n:         how many of them are answered
    is_scoring: only the prompt is wanted; the engine's one token is dropped
    call_rules: how to read tool calls, or None when there are no tools
    """

    id: str
    prompts: tuple[PromptTokens, ...]
    requests: tuple[Request, ...]
    rules: TextRules
    n: int
    per_prompt: int
    is_scoring: bool = False
    call_rules: CallRules | None = None


def translate_chat(body: ChatBody, tools: ModelTools, *, id: str, now_s: float) -> Translated:
    """A conversation as requests; raises ApiError for what cannot be served."""
    _check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", param="top_logprobs")
    call_rules = call_rules_of(body, tools)
    prompt = _chat_prompt(body, tools, call_rules)
    asked = body.max_completion_tokens or body.max_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = _fit(
        len(prompt.token_ids), asked, tools.info, fields=("messages", field), default=None
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, tools.info, max_tokens=max_tokens, logprobs=logprobs)
    if call_rules is not None:
        params = _with_call_grammar(params, body, tools, call_rules)
    _check_decoding(params, tools)
    n = body.n or 1
    return Translated(
        id=id,
        prompts=(prompt,),
        requests=_requests(
            id,
            (prompt,),
            (params,),
            per_prompt=n,
            suffix=(),
            extras=_extras(body, params, tools),
            now_s=now_s,
        ),
        rules=_call_text_rules(text_rules(body), call_rules),
        n=n,
        per_prompt=n,
        call_rules=call_rules,
    )


@dataclass(frozen=True, slots=True)
class _Extras:
    """What all requests of a body share beside their parameters."""

    prediction: tuple[int, ...]
    cache_salt: str
    priority: int


def _extras(body: SamplingBody, params: SamplingParams, tools: ModelTools) -> _Extras:
    """Raises RequestError for a prediction that the family cannot verify."""
    prediction: tuple[int, ...] = ()
    if body.prediction is not None:
        text = body.prediction.text
        prediction = tuple(tools.tokenizer.encode(text, add_special_tokens=False))
    if tools.rule is not None:
        check_prediction(prediction, params, tools.rule, context_length=tools.info.context_length)
    return _Extras(prediction, body.cache_salt or "", body.priority or 0)


def _check_decoding(params: SamplingParams, tools: ModelTools) -> None:
    """Raise RequestError for decoding that the family cannot do, before the engine does."""
    if tools.rule is not None:
        resolve_decoding(params, tools.rule)


def count_chat_tokens(body: ChatBody, tools: ModelTools) -> int:
    """Tokens of a conversation's prompt; raises ApiError for what cannot be served."""
    return len(_chat_prompt(body, tools, call_rules_of(body, tools)).token_ids)


def translate_completion(
    body: CompletionBody, tools: ModelTools, *, id: str, now_s: float
) -> Translated:
    """Prompts as requests; raises ApiError for what cannot be served."""
    _check_stream_options(body)
    n = body.n or 1
    per_prompt = _candidates(body, n)
    is_scoring = body.max_tokens == 0
    if is_scoring and not body.echo:
        raise invalid("max_tokens must be at least 1 unless echo is true", param="max_tokens")
    suffix = _suffix(body, tools)
    prompts = tuple(_prompt(body, index, tools) for index in range(len(body.prompt)))
    wants_logprobs = body.logprobs is not None or body.best_of is not None
    prompt_logprobs = body.logprobs if body.echo and body.logprobs is not None else None
    all_params = []
    for prompt in prompts:
        max_tokens = _fit(
            len(prompt.token_ids) + len(suffix),
            _answer_length(body, is_scoring=is_scoring),
            tools.info,
            fields=("prompt", "max_tokens"),
            default=DEFAULT_COMPLETION_TOKENS,
        )
        all_params.append(
            sampling_params(
                body,
                tools.info,
                max_tokens=max_tokens,
                logprobs=(body.logprobs or 0) if wants_logprobs else None,
                prompt_logprobs=prompt_logprobs,
            )
        )
        _check_decoding(all_params[-1], tools)
    return Translated(
        id=id,
        prompts=prompts,
        requests=_requests(
            id,
            prompts,
            all_params,
            per_prompt=per_prompt,
            suffix=suffix,
            extras=_extras(body, all_params[0], tools),
            now_s=now_s,
        ),
        rules=text_rules(body),
        n=n,
        per_prompt=per_prompt,
        is_scoring=is_scoring,
    )


def _with_call_grammar(
    params: SamplingParams, body: ChatBody, tools: ModelTools, rules: CallRules
) -> SamplingParams:
    """Hold the answer to calls where they are forced, and calls to schemas that are strict."""
    grammar = forced_grammar(body.tools or (), rules.choice, is_single=rules.is_single)
    param = "tool_choice"
    if grammar is None:
        grammar, param = strict_grammar(body.tools or (), rules.style, tools.tokenizer), "tools"
    if grammar is None:
        return params
    check_grammar(grammar, tools.info, param=param)
    return replace(params, grammar=grammar)


def _call_text_rules(rules: TextRules, call_rules: CallRules | None) -> TextRules:
    """Some styles mark their calls by special tokens, which then must be shown to the reader."""
    if call_rules is None or call_rules.style not in (ToolStyle.LISTED, ToolStyle.BARE):
        return rules
    return replace(rules, skip_special_tokens=False)


def _chat_prompt(body: ChatBody, tools: ModelTools, call_rules: CallRules | None) -> PromptTokens:
    continues = bool(body.continue_final_message)
    add_generation_prompt = body.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not continues
    text = render_chat(
        body.messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continues,
        options=body.chat_template_kwargs,
        functions=(body.tools or ()) if call_rules is not None else (),
    )
    token_ids = encode_marked(
        tools.tokenizer, text, add_special_tokens=bool(body.add_special_tokens)
    )
    return _cut(token_ids, body.truncate_prompt_tokens, param="messages")


def _answer_length(body: CompletionBody, *, is_scoring: bool) -> int | None:
    """Tokens to answer with at most; the gap before a suffix has a length of its own."""
    gap = None if body.decoding is None else body.decoding.infill_length
    if gap is None:
        return body.max_tokens or (1 if is_scoring else None)
    if not body.suffix:
        raise invalid("decoding.infill_length needs a suffix", param="decoding.infill_length")
    if body.max_tokens is not None and body.max_tokens < gap:
        raise invalid(
            f"decoding.infill_length must be at most max_tokens ({body.max_tokens}), got {gap}",
            param="decoding.infill_length",
        )
    return gap


def _prompt(body: CompletionBody, index: int, tools: ModelTools) -> PromptTokens:
    prompt = body.prompt[index]
    param = "prompt" if len(body.prompt) == 1 else f"prompt.{index}"
    if isinstance(prompt, str):
        token_ids = tools.tokenizer.encode(
            prompt, add_special_tokens=body.add_special_tokens is not False
        )
        text = prompt if body.truncate_prompt_tokens is None else None
    else:
        token_ids = list(known_ids(param, prompt, tools.info))
        text = None
    cut = _cut(token_ids, body.truncate_prompt_tokens, param=param)
    return PromptTokens(cut.token_ids, text)


def _cut(token_ids: list[int], last: int | None, *, param: str) -> PromptTokens:
    if not token_ids:
        raise invalid("the prompt is empty", param=param)
    return PromptTokens(tuple(token_ids if last is None else token_ids[-last:]), None)


def _suffix(body: CompletionBody, tools: ModelTools) -> tuple[int, ...]:
    if not body.suffix:
        return ()
    if not tools.info.can_infill:
        raise unsupported("suffix", "this model cannot infill")
    return tuple(tools.tokenizer.encode(body.suffix, add_special_tokens=False))


def _candidates(body: CompletionBody, n: int) -> int:
    if body.best_of is not None and body.best_of < n:
        raise invalid(f"best_of must be at least n ({n}), got {body.best_of}", param="best_of")
    if body.best_of is not None and body.best_of > n and body.stream:
        raise invalid("best_of cannot be streamed", param="best_of")
    per_prompt = body.best_of or n
    if per_prompt * len(body.prompt) > MAX_CHOICES:
        raise invalid(
            f"prompts times choices may be at most {MAX_CHOICES}, "
            f"got {per_prompt * len(body.prompt)}",
            param="n" if body.best_of is None else "best_of",
        )
    return per_prompt


def _fit(
    num_prompt: int,
    asked: int | None,
    info: ModelInfo,
    *,
    fields: tuple[str, str],
    default: int | None,
) -> int:
    """The answer's tokens at most; raises ApiError when prompt and answer do not fit.

    fields: names of the prompt's field and of the limit's
    default: used when the client asked for nothing; None is all that fits
    """
    room = info.context_length - num_prompt
    if room < 1:
        raise _too_long(
            f"the prompt has {num_prompt} tokens, but prompt and answer together may have at "
            f"most {info.context_length}",
            fields[0],
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise _too_long(
            f"the prompt has {num_prompt} tokens and {asked} more are asked for, but prompt and "
            f"answer together may have at most {info.context_length}",
            fields[1],
        )
    return asked


def _too_long(message: str, param: str) -> ApiError:
    return invalid(message, param=param, code="context_length_exceeded")


def _check_stream_options(body: SamplingBody) -> None:
    if body.stream:
        return
    if body.stream_options is not None:
        raise invalid("stream_options needs stream to be true", param="stream_options")
    if body.decoding is not None and body.decoding.stream != "final":
        raise invalid("decoding.stream needs stream to be true", param="decoding.stream")


def _requests(
    id: str,
    prompts: Sequence[PromptTokens],
    all_params: Sequence[SamplingParams],
    *,
    per_prompt: int,
    suffix: tuple[int, ...],
    extras: "_Extras",
    now_s: float,
) -> tuple[Request, ...]:
    return tuple(
        Request(
            id=f"{id}-{prompt_index * per_prompt + candidate}",
            prompt=prompt.token_ids,
            params=_seeded(params, candidate),
            suffix=suffix,
            prediction=extras.prediction,
            cache_salt=extras.cache_salt,
            priority=extras.priority,
            arrived_s=now_s,
        )
        for prompt_index, (prompt, params) in enumerate(zip(prompts, all_params, strict=True))
        for candidate in range(per_prompt)
    )


def _seeded(params: SamplingParams, candidate: int) -> SamplingParams:
    """Candidates of one seed differ: each counts on from it."""
    if params.seed is None or candidate == 0:
        return params
    return replace(params, seed=(params.seed + candidate) & MAX_SEED)
