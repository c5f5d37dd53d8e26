"""What crosses the border between the API process and the engine: requests in, deltas out.

All types are frozen, hold plain values only and are encoded with msgspec.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class DecodingMode(StrEnum):
    """Which steps may produce a request's tokens."""

    AUTO = "auto"
    AR = "ar"
    DIFFUSION = "diffusion"
    SPECULATIVE = "speculative"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenKind(StrEnum):
    """How a token came to be final."""

    AR = "ar"
    DIFFUSION = "diffusion"
    VERIFIED = "verified"


class FrameState(StrEnum):
    """What has become of a position of a canvas.

    DRAFT: filled, and may still change or is not reached from the left yet; FINAL: past changing
    """

    DRAFT = "draft"
    FINAL = "final"


class GrammarKind(StrEnum):
    """What a grammar is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must be an example of; the whole answer, up to its end of text.

    text: a JSON schema, a regular expression or a Lark grammar (llguidance's dialect)
    """

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True)
class EvoParams:
    """The `decoding.evo` object: how latents move (`latent_moves.py`); None is the default.

    delta_min, delta_max: progress falls by at least and at most so much in a step, in [0, 1]
    finalize_uncertainty: a position is ready below this once its progress is at most t_plan
    jump_uncertainty:     a position is ready below this at any progress
    uncertainty:          entropy, confidence or margin
    t_ar, t_plan:         mean uncertainty at which the canvas narrows to one, and is whole
    max_refine_steps:     steps without any position ready, until the first one is drawn
    renoise:              uncertain positions may go back to a higher progress
    hysteresis:           by how much the wanted progress must exceed the present one for that
    ode:                  euler or heun
    order:                any, or left_to_right: a position waits until all before it are ready
    """

    delta_min: float | None = None
    delta_max: float | None = None
    finalize_uncertainty: float | None = None
    jump_uncertainty: float | None = None
    uncertainty: str | None = None
    t_ar: float | None = None
    t_plan: float | None = None
    max_refine_steps: int | None = None
    renoise: bool = False
    hysteresis: float | None = None
    ode: str | None = None
    order: str | None = None


@dataclass(frozen=True, slots=True)
class DecodingParams:
    """The `decoding` object of a request; None means the family's default.

    width:          rows drafted in a step
    block_length:   grid of a block family, in positions
    max_steps:      denoising steps a canvas may take before it is handed to AR
    rule:           name of the rule that accepts drafted tokens (sampler/state/acceptance.py)
    preference:     what a rule ranks positions by: confidence, margin, entropy, random or
                    left_to_right
    confidence:     accept a draft with at least this probability, in (0, 1]
    entropy_bound:  nats of dependence allowed per step
    margin:         accept a draft whose two best probabilities differ by at least this
    factor:         the factor rule's f
    distance_weight: nats added per position of distance (entropy_distance)
    quota:          tokens accepted per step
    steps:          denoising steps of a schedule
    alpha_0:        share of tokens decoded by diffusion (Eso-LM), in [0, 1]
    sub_context_length: decode one token of every stretch of so many positions at a time (Eso-LM)
    sub_block_length: drafts are accepted in the leftmost part of this length that is open
    edit_confidence: replace a filled token of the canvas by one at least this probable
    max_edit_steps: steps in which a full canvas may still be edited
    cache:          what a bidirectional family keeps between refreshes: none, prefix or dual
    remask:         largest share of a canvas's filled positions that a step reopens (ReMDM),
                    in [0, 1)
    infill_length:  positions to fill before a given suffix
    verification:   coupled or ratio: how proposals are verified
    branches:       all, full or none: for which acceptances a verifying step drafts on
    evo:            how latents move
    drafts:         ngram: proposals come from the text so far and not from a canvas
    frames:         report the canvas as it stands after every step
    trace:          report step, kind and uncertainty of every token
    """

    mode: DecodingMode = DecodingMode.AUTO
    width: int | None = None
    block_length: int | None = None
    max_steps: int | None = None
    rule: str | None = None
    preference: str | None = None
    confidence: float | None = None
    entropy_bound: float | None = None
    margin: float | None = None
    factor: float | None = None
    distance_weight: float | None = None
    quota: int | None = None
    steps: int | None = None
    alpha_0: float | None = None
    sub_context_length: int | None = None
    sub_block_length: int | None = None
    edit_confidence: float | None = None
    max_edit_steps: int | None = None
    cache: str | None = None
    remask: float | None = None
    infill_length: int | None = None
    verification: str | None = None
    branches: str | None = None
    evo: EvoParams | None = None
    drafts: str | None = None
    frames: bool = False
    trace: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen; ranges are checked by `check_sampling_params`.

    max_tokens:         answer tokens at most, at least 1
    min_tokens:         no stop token is drawn before so many
    temperature:        0 takes the most likely token
    top_k:              0 keeps every token
    top_p, min_p:       kept probability mass; smallest probability relative to the best
    seed:               int64, or None for one that differs from request to request
    presence_penalty, frequency_penalty: subtracted from logits, counted over answer tokens
    repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or
                        answer; 1 is off
    logit_bias:         (token id, value added to its logit)
    allowed_token_ids:  only these may be drawn, or None for all
    stop_token_ids:     end the answer like the model's own end-of-text tokens
    ignore_eos:         the model's own end-of-text tokens do not end the answer
    logprobs:           so many best alternatives with each token; 0 reports the token alone,
                        None nothing
    prompt_logprobs:    the same for the prompt's tokens
    grammar:            what the answer must be an example of, or None for any text
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None
    decoding: DecodingParams = field(default_factory=DecodingParams)


def is_special(params: SamplingParams) -> bool:
    """Whether a request's rows need more than temperature, top-k, top-p and min-p."""
    return bool(
        params.min_tokens
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.logit_bias
        or params.allowed_token_ids is not None
        or params.logprobs is not None
        or params.decoding.trace
        or params.decoding.frames
        or params.grammar is not None
        or params.prompt_logprobs is not None
    )


def has_penalties(params: SamplingParams) -> bool:
    """Whether the request's logits depend on the tokens before."""
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, as token ids; made by `server/translate/requests.py`, never changed.

    id:        unique among all requests of the process
    prompt:    token ids, at least one
    suffix:    token ids that follow the answer (infill), empty for none
    prediction: token ids that the answer may repeat; they are proposed for verification
    cache_salt: pages are shared only with requests of the same salt
    priority:  lower runs first; equal ones in order of arrival
    arrived_s: monotonic seconds
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    suffix: tuple[int, ...] = ()
    prediction: tuple[int, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    arrived_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was when it was accepted.

    logprob: nats, of the untempered distribution after penalties and bias
    top:     the best alternatives as (token id, logprob), best first
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """How a token came: step of its sequence (from 0), kind, uncertainty in [0, 1]."""

    step: int
    kind: TokenKind
    uncertainty: float


@dataclass(frozen=True, slots=True)
class FramePosition:
    """A filled position of a canvas.

    offset:      from the start of the answer
    probability: of its token when it was filled, in (0, 1]; 0 of a proposal that was looked up
    kind:        how it came; of a proposal, how it will have come if it is confirmed
    """

    offset: int
    token_id: int
    probability: float
    kind: TokenKind
    state: FrameState


@dataclass(frozen=True, slots=True)
class Frame:
    """A canvas as it stands after a step; each frame is complete, so that any may be dropped.

    step:      forwards with rows of this sequence so far
    base:      offset of the canvas from the start of the answer
    length:    positions of the canvas
    positions: those that are filled, by offset
    progress:  (offset, t) of those that are open, in a canvas of latents; t in [0, 1], 1 is noise
    """

    step: int
    base: int
    length: int
    positions: tuple[FramePosition, ...]
    progress: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What a finished request cost; times are monotonic seconds of the machine.

    cached_tokens:  prompt tokens found in the prefix cache when it was first scheduled
    steps:          forwards in which the sequence had rows after its prompt was settled
    ar_tokens, diffusion_tokens, verified_tokens: answer tokens by how they came
    revised_tokens: tokens reopened or replaced after they were first filled
    accepted_prediction_tokens, rejected_prediction_tokens: proposals from the request's
                    prediction that came true, or were run and did not
    """

    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    steps: int
    ar_tokens: int
    diffusion_tokens: int
    verified_tokens: int
    revised_tokens: int
    num_preemptions: int
    scheduled_s: float
    first_token_s: float
    finished_s: float
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens of one request that became final with no gap before them, in text order.

    A request gets any number of deltas; the last one, and only it, has `finish`. A stop token
    that ended the answer is in `token_ids` as the last one and `stop_token_id` names it.

    logprobs:        one per token when asked for, else empty
    trace:           one per token when asked for, else empty
    prompt_logprobs: with the first delta when asked for: one per prompt token after the first
    frame:           the canvas after this step, when asked for
    error:           what went wrong, when finish is ERROR
    is_refusal:      the error is the request's own: it can never be served
    error_field:     the parameter at fault, in the API's words, where there is one
    stats:           with the last delta
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    trace: tuple[TokenTrace, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stop_token_id: int | None = None
    frame: Frame | None = None
    error: str | None = None
    is_refusal: bool = False
    error_field: str | None = None
    stats: RequestStats | None = None
