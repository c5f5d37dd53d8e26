"""The fields of a body that say how tokens are chosen, as the engine's parameters."""

from collections.abc import Mapping, Sequence

from sampler import DecodingMode, DecodingParams, EvoParams, ModelInfo, SamplingParams
from server.calls.answer_grammar import grammar_of
from server.error_responses import invalid, unsupported
from server.schema.common import DecodingBody, SamplingBody
from server.text.answer_text import TextRules

# Knobs of steps that draft; a model that only goes left to right cannot honour them.
_DRAFTING_FIELDS = (
    "width",
    "block_length",
    "max_steps",
    "rule",
    "confidence",
    "entropy_bound",
    "margin",
    "factor",
    "quota",
    "steps",
    "alpha_0",
    "sub_context_length",
    "infill_length",
    "preference",
    "distance_weight",
    "sub_block_length",
    "edit_confidence",
    "max_edit_steps",
    "cache",
    "remask",
    "verification",
    "branches",
    "evo",
)


def text_rules(body: SamplingBody) -> TextRules:
    """How the answer's tokens become text."""
    return TextRules(
        stop=tuple(body.stop or ()),
        include_stop=bool(body.include_stop_str_in_output),
        min_tokens=body.min_tokens or 0,
        skip_special_tokens=body.skip_special_tokens is not False,
        snapshots=body.decoding is not None and body.decoding.stream == "snapshots",
    )


def sampling_params(
    body: SamplingBody,
    info: ModelInfo,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The engine's parameters; raises ApiError for token ids that the model does not have."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(
            f"min_tokens must be at most max_tokens ({max_tokens}), got {min_tokens}",
            param="min_tokens",
        )
    if body.prompt_logprobs is not None:
        prompt_logprobs = max(body.prompt_logprobs, prompt_logprobs or 0)
    allowed = body.allowed_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=_logit_bias(body.logit_bias or {}, info),
        allowed_token_ids=(
            None if allowed is None else known_ids("allowed_token_ids", allowed, info)
        ),
        stop_token_ids=known_ids("stop_token_ids", body.stop_token_ids or (), info),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar_of(body, info),
        decoding=decoding_params(body.decoding, info),
    )


def decoding_params(body: DecodingBody | None, info: ModelInfo) -> DecodingParams:
    """The engine's decoding parameters; raises ApiError for what the model cannot do."""
    if body is None:
        return DecodingParams()
    can = ", ".join(info.modes)
    looks_up = body.drafts == "ngram" and body.mode == "speculative"
    if body.mode != "auto" and body.mode not in info.modes and not looks_up:
        raise invalid(
            f"decoding.mode: this model cannot decode by {body.mode}; it can by {can}",
            param="decoding.mode",
            code="unsupported_parameter",
        )
    values = {name: getattr(body, name) for name in _DRAFTING_FIELDS}
    for name, value in values.items():
        is_number_of_proposals = name == "width" and body.drafts is not None
        if value is not None and set(info.modes) == {"ar"} and not is_number_of_proposals:
            raise unsupported(f"decoding.{name}", f"this model decodes by {can} only")
    if body.infill_length is not None and not info.can_infill:
        raise unsupported("decoding.infill_length", "this model cannot infill")
    if body.evo is not None:
        values["evo"] = EvoParams(**body.evo.model_dump())
    return DecodingParams(
        mode=DecodingMode(body.mode),
        frames=body.stream != "final",
        trace=body.trace,
        drafts=body.drafts,
        **values,
    )


def known_ids(param: str, token_ids: Sequence[int], info: ModelInfo) -> tuple[int, ...]:
    """Token ids that the model has; raises ApiError for one that it does not."""
    for token_id in token_ids:
        if token_id >= info.vocab_size:
            raise invalid(
                f"{param}: token ids must be below {info.vocab_size}, got {token_id}", param=param
            )
    return tuple(token_ids)


def _logit_bias(bias: Mapping[str, float], info: ModelInfo) -> tuple[tuple[int, float], ...]:
    pairs = []
    for name, value in bias.items():
        # str.isdecimal accepts digits of every script; ids are written in ASCII.
        if not (name.isascii() and name.isdecimal()) or int(name[:12]) >= info.vocab_size:
            raise invalid(
                f"logit_bias: keys must be token ids below {info.vocab_size}, got {name[:32]!r}",
                param="logit_bias",
            )
        pairs.append((int(name), value))
    return tuple(pairs)
