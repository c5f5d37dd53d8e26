"""`Family`: what a checkpoint of a family is called and holds; `FamilyRule`: how it decodes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.network.config import NetworkConfig
from weights.network.latent_config import LatentDefaults
from weights.network.tensor_reader import Parts, TensorNames


class Settle(StrEnum):
    """The limit of a settling row of rank r.

    CAUSAL: r + 1
    BLOCK:  the end of its block
    NEVER:  nothing settles before the answer is done
    """

    CAUSAL = "causal"
    BLOCK = "block"
    NEVER = "never"


class Order(StrEnum):
    """In which order positions may become final."""

    LEFT_TO_RIGHT = "left_to_right"
    ANY = "any"


class DraftLimit(StrEnum):
    """What a drafted row sees: entries up to its own, to the canvas end, or everything."""

    OWN_ENTRY = "own_entry"
    CANVAS_END = "canvas_end"
    EVERYTHING = "everything"


class Speaks(StrEnum):
    """Which position the scores of a row are about."""

    NEXT = "next"
    OWN = "own"
    NOTHING = "nothing"


class Grid(StrEnum):
    """Where blocks begin: at multiples of the block length, or counted from the prompt's end."""

    NONE = "none"
    ABSOLUTE = "absolute"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class AcceptanceDefaults:
    """How a family's authors accept drafts; a request may say otherwise.

    rule:              threshold | threshold_or_quota | quota | time_quota | first_hitting |
                       entropy_distance | rank_order | verified | latent
    confidence:        accept from this probability on
    entropy_bound:     nats
    distance_weight:   nats added per position of distance (entropy_distance)
    steps:             denoising steps of a block or of the answer
    edit_confidence:   a filled token is replaced from this probability on (edit)
    max_edit_steps:    steps that only edit, per block
    alpha_0:           share of tokens decoded by diffusion (rank_order)
    """

    rule: str = "threshold"
    confidence: float | None = None
    entropy_bound: float | None = None
    distance_weight: float | None = None
    steps: int | None = None
    edit_confidence: float | None = None
    max_edit_steps: int | None = None
    alpha_0: float | None = None


@dataclass(frozen=True, slots=True)
class LatentRule:
    """Of families whose drafted rows hold latents with a progress t of their own (Evo).

    num_levels:  t is rounded to multiples of 1 / num_levels
    calibration: (t, mean entropy / log V at t), both ascending
    defaults:    how latents move where a request does not say
    """

    num_levels: int
    calibration: tuple[tuple[float, float], ...]
    defaults: LatentDefaults


@dataclass(frozen=True, slots=True)
class FamilyRule:
    """The facts about decoding in which models differ; the engine needs no other branch.

    modes:             of ar, diffusion, speculative
    settle, order:     see the types
    draft_limit:       what a drafted row sees
    settled_speaks_of: what the scores of settled and proposed rows are about
    draft_speaks_of:   what the scores of drafted rows are about
    grid:              where blocks begin
    block_length:      positions in a block; None without blocks
    sub_block_length:  drafts are accepted inside the leftmost part of this length, or None
    width:             positions the authors draft in a step, where there are no blocks, or None
    seeded:            the first token of a block is what the row before it says
    mask_token_id:     the token drafted positions hold; None without drafts
    suppresses_mask:   the mask token counts in no probability (its logit is minus infinity)
    can_infill:        text after the answer can be given
    acceptance:        the authors' way to accept drafts
    latent:            drafted rows hold latents; None where they hold the mask token
    """

    modes: tuple[str, ...] = ("ar",)
    settle: Settle = Settle.CAUSAL
    order: Order = Order.LEFT_TO_RIGHT
    draft_limit: DraftLimit = DraftLimit.OWN_ENTRY
    settled_speaks_of: Speaks = Speaks.NEXT
    draft_speaks_of: Speaks = Speaks.NOTHING
    grid: Grid = Grid.NONE
    block_length: int | None = None
    sub_block_length: int | None = None
    width: int | None = None
    seeded: bool = False
    mask_token_id: int | None = None
    suppresses_mask: bool = False
    can_infill: bool = False
    acceptance: AcceptanceDefaults = AcceptanceDefaults()
    latent: LatentRule | None = None

    @property
    def drafts(self) -> bool:
        """Whether the family drafts positions at all."""
        return self.draft_speaks_of is not Speaks.NOTHING


@dataclass(frozen=True, slots=True)
class RuleOverrides:
    """What an operator says where a checkpoint is silent or wrong; None leaves it as it is."""

    mask_token_id: int | None = None
    block_length: int | None = None


def take_parts_as_they_are(
    parts: Parts,
    config: NetworkConfig,  # noqa: ARG001
    fields: ConfigFields,  # noqa: ARG001
) -> Parts:
    """Hand the checkpoint's parts to the network unchanged."""
    return parts


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a network, a table of checkpoint names and a decoding rule.

    architectures, model_types: what config.json says; architectures decide where they are known
    parse:           config.json to sizes and switches; raises CheckpointError for what the
                     network cannot do
    names:           checkpoint names of the parts
    rule:            how it decodes; of a loaded model, with its own mask id and block length
    mask_id_fields, block_length_fields: where config.json may say them, first found wins
    mask_tokens:     how the tokenizer may spell the mask
    mask_is_last:    without any word on it, the mask is the last id of the vocabulary
    prepare:         what becomes of the parts before the network takes them
    temperature:     of checkpoints and requests that say none, as the authors' own code has it
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    parse: Callable[[ConfigFields], NetworkConfig]
    names: TensorNames
    rule: FamilyRule = FamilyRule()
    mask_id_fields: tuple[str, ...] = ("mask_token_id",)
    block_length_fields: tuple[str, ...] = ()
    mask_tokens: tuple[str, ...] = ()
    mask_is_last: bool = False
    prepare: Callable[[Parts, NetworkConfig, ConfigFields], Parts] = take_parts_as_they_are
    temperature: float = 1.0


def resolve_rule(
    family: Family,
    fields: ConfigFields,
    *,
    vocab_size: int,
    tokenizer_mask_id: int | None,
    overrides: RuleOverrides,
) -> FamilyRule:
    """Fill in mask id and block length: operator, config.json, tokenizer, the family's constant.

    And the share decoded by diffusion (alpha_0), where config.json says it.
    Raises CheckpointError when no mask id fits the vocabulary, a block length is below 1, one
    of them is set for a family that has neither, or alpha_0 is no share.
    """
    rule = family.rule
    if not rule.drafts or rule.latent is not None:
        _refuse_overrides(family, overrides)
        return rule
    mask_id = _first(
        overrides.mask_token_id,
        _field(fields, family.mask_id_fields),
        vocab_size - 1 if family.mask_is_last else None,
        tokenizer_mask_id,
        rule.mask_token_id,
    )
    if mask_id is None or not 0 <= mask_id < vocab_size:
        raise CheckpointError(
            f"the mask token of this {family.name} checkpoint would be {mask_id}, outside its "
            f"vocabulary of {vocab_size}; name the right one (mask_token_id)"
        )
    block_length = _first(
        overrides.block_length, _field(fields, family.block_length_fields), rule.block_length
    )
    if block_length is not None and block_length < 1:
        raise CheckpointError(f"a block length must be at least 1, got {block_length}")
    return replace(
        rule,
        mask_token_id=mask_id,
        block_length=block_length,
        acceptance=_with_alpha_0(rule.acceptance, fields),
    )


def _with_alpha_0(acceptance: AcceptanceDefaults, fields: ConfigFields) -> AcceptanceDefaults:
    """The share decoded by diffusion that a checkpoint was trained for, where it names one."""
    if acceptance.alpha_0 is None or not fields.has("alpha_0"):
        return acceptance
    alpha_0 = fields.number("alpha_0")
    if not 0 <= alpha_0 <= 1:
        raise fields.refuse("alpha_0", "but it must be between 0 and 1")
    return replace(acceptance, alpha_0=alpha_0)


def _refuse_overrides(family: Family, overrides: RuleOverrides) -> None:
    if overrides != RuleOverrides():
        raise CheckpointError(
            f"{family.name} models have no mask token and no blocks: mask_token_id and "
            "block_length cannot be set"
        )


def _field(fields: ConfigFields, names: tuple[str, ...]) -> int | None:
    return next((fields.integer(name) for name in names if fields.has(name)), None)


def _first(*candidates: int | None) -> int | None:
    return next((candidate for candidate in candidates if candidate is not None), None)
