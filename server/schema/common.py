"""Fields that chat and text completions share, and how plain values are checked.

Bodies are parsed strictly: a number in quotes is a wrong type. Unknown fields are kept aside in
`model_extra`; `server/read_body.py` decides about them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
)

from sampler.border.knob_ranges import MAX_ENTROPY_BOUND, MAX_FACTOR, MAX_MARGIN
from server.limits import (
    MAX_BAD_WORDS,
    MAX_CACHE_SALT_CHARACTERS,
    MAX_CHOICES_PER_PROMPT,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TIMEOUT_S,
    MAX_TOKENS,
    MIN_TIMEOUT_S,
)
from server.schema.body import Body
from server.schema.grammar import (
    Choices,
    GrammarText,
    Pattern,
    ResponseFormat,
    StructuredOutputs,
)
from server.schema.numbers import Float32, Temperature

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Timeout = Annotated[float, Field(ge=MIN_TIMEOUT_S, le=MAX_TIMEOUT_S)]
BadWord = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]


def content_tag(value: object) -> str:
    """Which member of a union of text and parts a value is of."""
    return "<text>" if isinstance(value, str) else "<parts>"


def as_list(value: object) -> object:
    """A string alone stands for a list of one."""
    return [value] if isinstance(value, str) else value


class StreamOptions(Body):
    """How a stream reports usage."""

    include_usage: bool | None = Field(
        None, description="Send one more chunk with the usage of the whole answer."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="Carry the usage so far in every chunk."
    )
    include_obfuscation: bool | None = Field(None, description="Accepted; has no effect.")


class EvoBody(BaseModel):
    """How latents move on the canvas of a model that has one (Evo, our reading)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )

    delta_min: Float32 | None = Field(
        None, ge=0, le=1, description="Progress falls by at least so much in a step."
    )
    delta_max: Float32 | None = Field(
        None, ge=0, le=1, description="Progress falls by at most so much in a step."
    )
    finalize_uncertainty: Float32 | None = Field(
        None, ge=0, le=1, description="A position is ready below this uncertainty."
    )
    jump_uncertainty: Float32 | None = Field(
        None, ge=0, le=1, description="Below this it is ready at any progress."
    )
    uncertainty: Literal["entropy", "confidence", "margin"] | None = Field(
        None, description="What stands for uncertainty."
    )
    t_ar: Float32 | None = Field(
        None, ge=0, le=1, description="Below this mean uncertainty the canvas narrows to one."
    )
    t_plan: Float32 | None = Field(
        None, ge=0, le=1, description="Above this progress or mean uncertainty it is planned."
    )
    max_refine_steps: int | None = Field(
        None, ge=1, le=1024, description="Steps without a ready position until one is drawn."
    )
    renoise: bool = Field(False, description="Whether uncertain positions may go back.")
    hysteresis: Float32 | None = Field(
        None, ge=0, le=1, description="By how much the wanted progress must exceed the present."
    )
    ode: Literal["euler", "heun"] | None = Field(None, description="How the flow is followed.")
    order: Literal["any", "left_to_right"] | None = Field(
        None, description="Whether a ready position waits for all before it."
    )


class DecodingBody(BaseModel):
    """How the answer is decoded; every field has the model family's default."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True
    )

    mode: Literal["auto", "ar", "diffusion", "speculative"] = Field(
        "auto", description="Which steps may produce tokens; auto lets the server choose."
    )
    width: int | None = Field(None, ge=1, le=1024, description="Rows drafted in a step.")
    block_length: int | None = Field(
        None, ge=1, le=1024, description="Grid of a block family, in positions."
    )
    max_steps: int | None = Field(
        None, ge=1, le=4096, description="Denoising steps of a canvas before AR takes over."
    )
    rule: str | None = Field(
        None, min_length=1, max_length=64, description="Name of the acceptance rule."
    )
    confidence: Float32 | None = Field(
        None, gt=0, le=1, description="Accept a draft with at least this probability."
    )
    entropy_bound: Float32 | None = Field(
        None,
        ge=0,
        le=MAX_ENTROPY_BOUND,
        description="Nats of dependence allowed per step.",
    )
    margin: Float32 | None = Field(
        None,
        ge=0,
        le=MAX_MARGIN,
        description="Accept a draft whose two best probabilities differ so much.",
    )
    factor: Float32 | None = Field(None, gt=0, le=MAX_FACTOR, description="The factor rule's f.")
    quota: int | None = Field(None, ge=1, le=1024, description="Tokens accepted per step.")
    steps: int | None = Field(None, ge=1, le=65536, description="Denoising steps of a schedule.")
    alpha_0: Float32 | None = Field(
        None, ge=0, le=1, description="Share of tokens decoded by diffusion (Eso-LM)."
    )
    sub_context_length: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Decode one token of every stretch of so many positions at a time (Eso-LM).",
    )
    preference: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="What a rule ranks positions by: confidence, margin, entropy, random or "
        "left_to_right.",
    )
    distance_weight: Float32 | None = Field(
        None, ge=0, le=100, description="Nats added per position of distance."
    )
    sub_block_length: int | None = Field(
        None, ge=1, le=1024, description="Drafts are accepted in the leftmost open part so long."
    )
    edit_confidence: Float32 | None = Field(
        None, gt=0, le=1, description="Replace a filled token by one at least this probable."
    )
    max_edit_steps: int | None = Field(
        None, ge=1, le=4096, description="Steps in which a full canvas may still be edited."
    )
    cache: Literal["none", "prefix", "dual"] | None = Field(
        None, description="What a bidirectional family keeps between refreshes."
    )
    remask: Float32 | None = Field(
        None, ge=0, lt=1, description="Largest share of filled positions that a step reopens."
    )
    infill_length: int | None = Field(
        None, ge=1, le=65536, description="Positions to fill before a suffix."
    )
    verification: Literal["coupled", "ratio"] | None = Field(
        None,
        description="How drafts are verified: coupled draws give the tokens of ar with the same "
        "seed (the default), ratio keeps more drafts and gives tokens of the same distribution.",
    )
    branches: Literal["all", "full", "none"] | None = Field(
        None,
        description="For which numbers of accepted proposals a verifying step drafts on: all in "
        "one forward, full acceptance only, or none (drafting and verifying take turns).",
    )
    evo: EvoBody | None = Field(None, description="How latents move (latent canvases).")
    drafts: Literal["ngram", "canvas"] | None = Field(
        None,
        description="Where proposals come from: ngram looks up what followed the same tokens "
        "before, canvas takes what a canvas drafted; both when left out, where there is one.",
    )
    stream: Literal["final", "steps", "snapshots"] = Field(
        "final",
        description="What a stream carries: tokens that can no longer change, or these and the "
        "canvas as it stands after a step, or these and the whole answer at every change.",
    )
    trace: bool = Field(
        default=False, description="Report step, kind and uncertainty of every token."
    )


class PredictedPart(Body):
    """A piece of a predicted text."""

    type: Literal["text"]
    text: str


class Prediction(Body):
    """Text that is mostly known, such as a file that is to be edited."""

    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[PredictedPart], Tag("<parts>")],
        Discriminator(content_tag),
    ]

    @property
    def text(self) -> str:
        """All of it."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TokenChoiceBody(Body):
    """How tokens are chosen: what chat, text completions and responses have in common."""

    temperature: Temperature | None = Field(
        None, ge=0, le=2, description="0 takes the most likely token; the model's own by default."
    )
    top_p: Float32 | None = Field(None, gt=0, le=1, description="Kept probability mass.")
    top_k: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Kept tokens; 0 or -1 keeps all."
    )
    min_p: Float32 | None = Field(
        None, ge=0, le=1, description="Smallest probability kept, relative to the best."
    )
    seed: int | None = Field(
        None, ge=-MAX_SEED - 1, le=MAX_SEED, description="Makes the answer repeatable."
    )
    presence_penalty: Float32 | None = Field(None, ge=-2, le=2)
    frequency_penalty: Float32 | None = Field(None, ge=-2, le=2)
    repetition_penalty: Float32 | None = Field(None, gt=0, le=100, description="1 is off.")
    logit_bias: Mapping[str, Annotated[Float32, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="Token id to what is added to its logit."
    )
    stop: Annotated[
        list[StopString] | None,
        BeforeValidator(as_list, json_schema_input_type=StopString | list[StopString] | None),
    ] = Field(
        None, max_length=MAX_STOP_STRINGS, description="Texts that end the answer; not part of it."
    )
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = Field(None, description="End-of-text tokens do not end the answer.")
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="Nothing ends the answer before so many tokens."
    )
    skip_special_tokens: bool | None = Field(None, description="True by default.")
    allowed_token_ids: list[TokenId] | None = Field(
        None, min_length=1, description="Only these tokens may be drawn."
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Keep only so many of the prompt's last tokens."
    )
    add_special_tokens: bool | None = None
    priority: int | None = Field(
        None, ge=-1_000_000, le=1_000_000, description="Lower runs first; 0 by default."
    )
    structured_outputs: StructuredOutputs | None = None
    prediction: Prediction | None = Field(
        None, description="Text that the answer is likely to repeat; never changes the answer."
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CACHE_SALT_CHARACTERS,
        description="Cached prompts are shared only with requests of the same salt.",
    )
    timeout: Timeout | None = Field(
        None, description="Seconds after which the answer is given up with 504."
    )
    decoding: DecodingBody | None = None
    bad_words: list[BadWord] | None = Field(
        None, max_length=MAX_BAD_WORDS, description="Words of a single token, never drawn."
    )
    guided_json: dict[str, JsonValue] | str | None = Field(
        None, description="The same as structured_outputs.json; an older name."
    )
    guided_regex: Pattern | None = Field(
        None, description="The same as structured_outputs.regex; an older name."
    )
    guided_choice: Choices | None = Field(
        None, description="The same as structured_outputs.choice; an older name."
    )
    guided_grammar: GrammarText | None = Field(
        None, description="The same as structured_outputs.grammar; an older name."
    )


class SamplingBody(TokenChoiceBody):
    """What chat and text completions have in common."""

    model: str | None = Field(
        None, max_length=512, description="A served model name; may be left out."
    )
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES_PER_PROMPT, description="Answers per prompt; 1 by default."
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Log-probabilities of the prompt's tokens."
    )
    return_token_ids: bool | None = Field(
        None, description="Report the token ids of prompt and answer."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Write tokens in log-probabilities as token_id:NUMBER."
    )


class CompletionTokensDetails(BaseModel):
    """Of a prediction's tokens: how many the answer confirmed, and how many were run in vain."""

    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    reasoning_tokens: Literal[0] = 0


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens, how many were found in the prefix cache."""

    cached_tokens: int = 0


class DecodingUsage(BaseModel):
    """What the decoding of an answer took.

    forward_passes:  runs of the network that had rows of this answer
    ar_tokens, diffusion_tokens, verified_tokens: tokens by how they became final
    revised_tokens:  tokens reopened or replaced after they were first filled
    """

    forward_passes: int = 0
    ar_tokens: int = 0
    diffusion_tokens: int = 0
    verified_tokens: int = 0
    revised_tokens: int = 0


class Usage(BaseModel):
    """Tokens of prompt and answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    decoding: DecodingUsage


class TokenTraceBody(BaseModel):
    """How a token of the answer came: its step, kind, and uncertainty in [0, 1]."""

    token_id: int
    text: str
    step: int
    kind: str
    uncertainty: float


class FrameBody(BaseModel):
    """A canvas as it stands after a step; each frame is complete, so that some may be left out.

    step:   forward passes with rows of this answer so far; a gap tells of frames left out
    base:   offset of the canvas from the start of the answer, in tokens
    length: positions of the canvas
    set:    filled positions as [offset, token id, text, probability, kind, state]; state is
            draft (may change) or final
    text:   of a snapshot: the text of all filled positions
    progress: of a canvas of latents: open positions as [offset, t]
    """

    step: int
    base: int
    length: int
    text: str | None = None
    progress: list[tuple[int, float]] | None = None
    set: list[tuple[int, int, str, float, str, str]]


class DecodingExtra(BaseModel):
    """The `decoding` object of a chunk, for requests that ask for a trace or for steps."""

    v: Literal[1] = 1
    index: int
    tokens: list[TokenTraceBody] | None = None
    frame: FrameBody | None = None


class PromptLogprobEntry(BaseModel):
    """One token of the prompt, or an alternative to it; rank 1 is the most likely one."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprob = Mapping[str, PromptLogprobEntry]
