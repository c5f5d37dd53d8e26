"""The fields of a body that say how tokens are chosen, as the engine's parameters."""

from collections.abc import Mapping, Sequence

from sampler import DecodingMode, DecodingParams, EvoParams, ModelInfo, SamplingParams
from server.calls.answer_grammar import grammar_of
from server.error_responses import invalid, unsupported
from server.schema.common import DecodingBody, SamplingBody
from server.text.answer_text import TextRules
from server.translate.model_text import SAMPLING_DEFAULTS, ServedModel
from weights.text.tokenizer import Tokenizer

# Of a token id; no model has more.
_MOST_DIGITS = 12
# Added to a logit: far below all others, and finite.
_NEVER = -1e9
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
    model: ServedModel,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The engine's parameters, from the model's own defaults where the body is silent.

    Raises ApiError for token ids that the model does not have.
    """
    info = model.info
    asked = {name: getattr(body, name) for name in SAMPLING_DEFAULTS}
    sampling = model.default_sampling | {
        name: value for name, value in asked.items() if value is not None
    }
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
        temperature=sampling["temperature"],
        top_k=max(int(sampling["top_k"]), 0),
        top_p=sampling["top_p"],
        min_p=sampling["min_p"],
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=sampling["repetition_penalty"],
        logit_bias=_logit_bias(body, model),
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


def _logit_bias(body: SamplingBody, model: ServedModel) -> tuple[tuple[int, float], ...]:
    """What is added to logits: what the body says, and all there is against its bad words."""
    pairs = _asked_bias(body.logit_bias or {}, model.info)
    for word in body.bad_words or ():
        for token_id in _tokens_of_word(word, model.text.tokenizer):
            pairs[token_id] = _NEVER
    return tuple(pairs.items())


def _tokens_of_word(word: str, tokenizer: Tokenizer) -> set[int]:
    """The tokens that write a word, at the beginning of a text and behind a space.

    Raises ApiError for a word of several tokens: each of them may stand in other words.
    """
    found = set()
    for text in (word, f" {word.lstrip()}"):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        if len(token_ids) == 1:
            found.add(token_ids[0])
    if not found:
        raise unsupported("bad_words", f"{word[:32]!r} is more than one token")
    return found


def _asked_bias(bias: Mapping[str, float], info: ModelInfo) -> dict[int, float]:
    pairs: dict[int, float] = {}
    for name, value in bias.items():
        token_id = _token_id(name)
        if token_id is None or token_id >= info.vocab_size:
            raise invalid(
                f"logit_bias: keys must be token ids below {info.vocab_size}, got {name[:32]!r}",
                param="logit_bias",
            )
        if token_id in pairs:
            raise invalid(
                f"logit_bias: token id {token_id} is given more than once", param="logit_bias"
            )
        pairs[token_id] = value
    return pairs


def _token_id(name: str) -> int | None:
    """The number that a key writes, leading zeros or not; None when it writes none."""
    # str.isdecimal accepts digits of every script; ids are written in ASCII.
    if not (name.isascii() and name.isdecimal()):
        return None
    digits = name.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else None
