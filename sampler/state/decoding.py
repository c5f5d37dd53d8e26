"""`Decoding`: how one sequence is decoded, resolved from its request and the family's rule.

This is where a `decoding` object is checked: what it returns can be done, and what it refuses
names the field and what the model can do.
"""

from dataclasses import dataclass
from enum import IntEnum

from sampler.border.errors import RequestError
from sampler.border.request import DecodingMode, DecodingParams, SamplingParams
from sampler.state.acceptance import RULES, Preference, Rule
from sampler.state.latent_knobs import Branches, LatentKnobs, resolve_latent
from sampler.state.latent_table import LARGEST_LATENT_WIDTH
from weights.families import FamilyRule, Order, Settle, Speaks

DEFAULT_CONFIDENCE = 0.9
DEFAULT_ENTROPY_BOUND = 0.15
DEFAULT_FACTOR = 1.0
DEFAULT_MARGIN = 0.5
DEFAULT_WIDTH = 16
LARGEST_WIDTH = 1024
# Of verified latent canvases, whose branches take width times width rows.
LARGEST_BRANCH_WIDTH = 16
DEFAULT_BRANCH_WIDTH = 4
# Of any-order drafts, whose number no block limits.
LARGEST_AUTO_WIDTH = 32


class Mode(IntEnum):
    """The resolved mode of a sequence, as it stands in arrays."""

    AR = 0
    DIFFUSION = 1
    SPECULATIVE = 2


class Schedule(IntEnum):
    """How the quota of a step follows from the number of steps.

    EVEN:      the block length split evenly over the steps, the remainder to the first ones
    REMAINING: what is open split evenly over the steps that are left, rounded up
    TIME:      the share (t - s) / t of what is open, t falling evenly from 1 (Dream)
    FIXED:     the request's own quota
    """

    EVEN = 0
    REMAINING = 1
    TIME = 2
    FIXED = 3


class Lookup(IntEnum):
    """What the tokens that followed the text's ending before are proposed for (prompt lookup).

    NEVER:  nothing
    ALONE:  rounds in which nothing is drafted
    BESIDE: instead of a latent canvas's proposals, in the rounds that draft on
    """

    NEVER = 0
    ALONE = 1
    BESIDE = 2


class CacheKind(IntEnum):
    """What a bidirectional family keeps between refreshes. From: Fast-dLLM, arXiv 2505.22618."""

    NONE = 0
    PREFIX = 1
    DUAL = 2


@dataclass(frozen=True, slots=True)
class Decoding:
    """Everything about the decoding of one sequence that does not change while it runs.

    is_auto:          the balance chooses between AR and verified drafts, and their width
    width:            rows drafted in a step, in a family that is free to choose; at most so many
                      where the balance chooses
    block_length:     positions of a canvas
    sub_block_length: acceptance is limited to the leftmost open part of this length
    threshold:        of the rule, in its own unit
    steps:            denoising steps of a canvas, for schedules
    edit_confidence:  None: filled tokens never change
    alpha_0:          share decoded by diffusion (any-order families)
    sub_context:      length of the stretches decoded in parallel, 0 for the random order
    remask:           largest share of the filled positions that a step reopens; 0 for none
    by_ratio:         drafts are verified by ratio and not by coupled draws
    """

    mode: Mode
    is_auto: bool
    width: int
    block_length: int
    sub_block_length: int
    rule: Rule
    preference: Preference
    schedule: Schedule
    threshold: float
    distance_weight: float
    quota: int
    steps: int
    edit_confidence: float | None
    max_edit_steps: int
    max_steps: int | None
    cache: CacheKind
    alpha_0: float
    sub_context: int
    remask: float
    by_ratio: bool
    branches: Branches
    lookup: Lookup
    latent: LatentKnobs


def resolve_decoding(sampling: SamplingParams, rule: FamilyRule) -> Decoding:
    """Check a request's decoding object against what the family can do, and fill in the rest.

    Raises RequestError naming the field, its limits and its value.
    """
    params = sampling.decoding
    mode = _mode(params, rule)
    if sampling.grammar is not None and rule.order is Order.ANY and rule.settle is Settle.CAUSAL:
        # A grammar is parsed from left to right, and what is settled in another order is final.
        mode = Mode.AR
    block_length = _block_length(params, rule, sampling.max_tokens)
    name = _rule_name(params, rule)
    known = RULES[name]
    steps = _positive("steps", params.steps or rule.acceptance.steps) or block_length
    quota = _positive("quota", params.quota)
    edit = params.edit_confidence
    if edit is None:
        edit = rule.acceptance.edit_confidence
    _check_probability("edit_confidence", edit)
    is_auto = params.mode is DecodingMode.AUTO and mode is Mode.SPECULATIVE
    return Decoding(
        mode=mode,
        is_auto=is_auto,
        width=_width(params, rule, block_length, mode, is_auto=is_auto),
        block_length=block_length,
        sub_block_length=_sub_block_length(params, rule, block_length),
        rule=known.rule,
        preference=_preference(params, known.preference),
        schedule=_schedule(known.rule, quota, rule),
        threshold=_threshold(name, params, rule),
        distance_weight=_or(params.distance_weight, rule.acceptance.distance_weight, 0.0),
        quota=quota or 1,
        steps=steps,
        # What a grammar has taken cannot be taken back.
        edit_confidence=None if sampling.grammar is not None else edit,
        max_edit_steps=_positive("max_edit_steps", params.max_edit_steps)
        or rule.acceptance.max_edit_steps
        or block_length,
        max_steps=_positive("max_steps", params.max_steps),
        cache=_cache(params, rule),
        alpha_0=_alpha_0(params, rule),
        sub_context=_sub_context(params, rule),
        remask=_remask(sampling, rule),
        by_ratio=_by_ratio(params, rule, mode),
        branches=_branches(params, rule),
        lookup=_lookup(params, rule, is_auto=is_auto),
        latent=_latent(params, rule),
    )


def _lookup(params: DecodingParams, rule: FamilyRule, *, is_auto: bool) -> Lookup:
    if params.drafts == "ngram":
        return Lookup.ALONE
    if rule.latent is None or params.drafts is not None:
        return Lookup.NEVER
    return Lookup.ALONE if is_auto else Lookup.BESIDE


def _branches(params: DecodingParams, rule: FamilyRule) -> Branches:
    if params.branches is None:
        return Branches.ALL
    names = {branches.name.lower(): branches for branches in Branches}
    if rule.latent is None or Mode.SPECULATIVE.name.lower() not in rule.modes:
        raise _refusal("branches", "needs a model whose latent canvas drafts for itself")
    if params.branches not in names:
        raise _refusal(
            "branches", f"must be one of {_listed(tuple(names))}, got {params.branches!r}"
        )
    return names[params.branches]


def _latent(params: DecodingParams, rule: FamilyRule) -> LatentKnobs:
    if params.evo is not None and rule.latent is None:
        raise _refusal("evo", "needs a model with a latent canvas")
    return resolve_latent(params.evo, None if rule.latent is None else rule.latent.defaults)


def _mode(params: DecodingParams, rule: FamilyRule) -> Mode:
    if params.drafts == "canvas" and rule.latent is None:
        raise _refusal("drafts", "canvas needs a model whose latent canvas drafts for itself")
    if params.drafts not in (None, "canvas"):
        return _looked_up(params, rule)
    if params.mode is DecodingMode.AUTO:
        return Mode[_default_mode(rule).upper()]
    if params.mode.value not in rule.modes:
        raise _refusal("mode", f"must be one of {_listed(('auto', *rule.modes))} for this model")
    return Mode[params.mode.value.upper()]


def _looked_up(params: DecodingParams, rule: FamilyRule) -> Mode:
    """One token after another, with proposals from the text (`sampler/seats/prediction.py`)."""
    if params.drafts != "ngram":
        raise _refusal("drafts", f"must be ngram or canvas, got {params.drafts!r}")
    if rule.settle is not Settle.CAUSAL or rule.settled_speaks_of is not Speaks.NEXT:
        raise _refusal("drafts", "needs a model that has a distribution of the next token")
    if params.mode not in (DecodingMode.AUTO, DecodingMode.SPECULATIVE):
        raise _refusal("drafts", f"cannot be combined with mode {params.mode}")
    return Mode.AR


def _default_mode(rule: FamilyRule) -> str:
    """Verified drafts where the model can do them: the same tokens as AR in fewer forwards."""
    for mode in ("speculative", "diffusion", "ar"):
        if mode in rule.modes:
            return mode
    raise ValueError("a family can do at least one mode")


def _block_length(params: DecodingParams, rule: FamilyRule, max_tokens: int) -> int:
    asked = _positive("block_length", params.block_length)
    if asked is not None and not rule.drafts:
        raise _refusal("block_length", "has no meaning for a model without drafts")
    if asked is not None and asked > LARGEST_WIDTH and rule.settle is Settle.BLOCK:
        raise _refusal("block_length", f"must be at most {LARGEST_WIDTH}, got {asked}")
    return asked or rule.block_length or max_tokens


def _width(
    params: DecodingParams, rule: FamilyRule, block_length: int, mode: Mode, *, is_auto: bool
) -> int:
    asked = _positive("width", params.width)
    largest = LARGEST_WIDTH
    if rule.latent is not None:
        largest = LARGEST_LATENT_WIDTH if mode is not Mode.SPECULATIVE else LARGEST_BRANCH_WIDTH
    if asked is not None and asked > largest:
        raise _refusal("width", f"must be at most {largest}, got {asked}")
    if asked is None and rule.latent is not None and mode is Mode.SPECULATIVE:
        return LARGEST_BRANCH_WIDTH if is_auto else DEFAULT_BRANCH_WIDTH
    if asked is not None or rule.width is not None:
        return asked or rule.width or DEFAULT_WIDTH
    if rule.order is Order.LEFT_TO_RIGHT:
        return block_length
    return min(block_length, LARGEST_AUTO_WIDTH if is_auto else DEFAULT_WIDTH)


def _sub_block_length(params: DecodingParams, rule: FamilyRule, block_length: int) -> int:
    asked = _positive("sub_block_length", params.sub_block_length)
    return min(asked or rule.sub_block_length or block_length, block_length)


def _rule_name(params: DecodingParams, rule: FamilyRule) -> str:
    name = params.rule or _implied_rule(params) or rule.acceptance.rule
    if name in ("verified", "latent"):
        return "threshold"
    if name not in RULES:
        raise _refusal("rule", f"must be one of {_listed(tuple(RULES))}, got {name!r}")
    return name


def _implied_rule(params: DecodingParams) -> str | None:
    """The rule that a knob belongs to, when only the knob was given."""
    knobs = {
        "entropy_bound": params.entropy_bound,
        "margin": params.margin,
        "factor": params.factor,
        "quota": params.quota,
    }
    given = [name for name, value in knobs.items() if value is not None]
    if len(given) > 1:
        raise _refusal(given[1], f"cannot be combined with {given[0]}")
    return given[0] if given else None


def _threshold(name: str, params: DecodingParams, rule: FamilyRule) -> float:
    _check_probability("confidence", params.confidence)
    for knob in ("entropy_bound", "margin", "factor"):
        value = {
            "entropy_bound": params.entropy_bound,
            "margin": params.margin,
            "factor": params.factor,
        }[knob]
        if value is not None and not 0 <= value <= 1e3:
            raise _refusal(knob, f"must be between 0 and 1000, got {value}")
    match name:
        case "entropy_bound" | "entropy_distance":
            return _or(params.entropy_bound, rule.acceptance.entropy_bound, DEFAULT_ENTROPY_BOUND)
        case "margin":
            return _or(params.margin, None, DEFAULT_MARGIN)
        case "factor":
            return _or(params.factor, None, DEFAULT_FACTOR)
        case _:
            return _or(params.confidence, rule.acceptance.confidence, DEFAULT_CONFIDENCE)


def _preference(params: DecodingParams, own: Preference | None) -> Preference:
    if params.preference is None:
        return own if own is not None else Preference.CONFIDENCE
    names = {preference.name.lower(): preference for preference in Preference}
    if params.preference not in names:
        raise _refusal(
            "preference", f"must be one of {_listed(tuple(names))}, got {params.preference!r}"
        )
    if own is not None and names[params.preference] is not own:
        raise _refusal("preference", "cannot be combined with this rule")
    return names[params.preference]


def _schedule(rule: Rule, quota: int | None, family: FamilyRule) -> Schedule:
    if quota is not None:
        return Schedule.FIXED
    if rule is Rule.TIME_QUOTA:
        return Schedule.TIME
    return Schedule.REMAINING if family.settle is Settle.CAUSAL else Schedule.EVEN


def _cache(params: DecodingParams, rule: FamilyRule) -> CacheKind:
    if params.cache is None:
        return CacheKind.NONE
    names = {kind.name.lower(): kind for kind in CacheKind}
    if rule.settle is not Settle.NEVER:
        raise _refusal("cache", "is a choice of bidirectional models only; this one's is exact")
    if params.cache not in names:
        raise _refusal("cache", f"must be one of {_listed(tuple(names))}, got {params.cache!r}")
    return names[params.cache]


def _alpha_0(params: DecodingParams, rule: FamilyRule) -> float:
    value = params.alpha_0
    if value is not None and not 0 <= value <= 1:
        raise _refusal("alpha_0", f"must be between 0 and 1, got {value}")
    if value is None and params.rule not in (None, "rank_order") and rule.order is Order.ANY:
        # Adaptive: masks are queried from left to right unless an order is asked for.
        return 0.0
    return _or(value, rule.acceptance.alpha_0, 1.0)


def _sub_context(params: DecodingParams, rule: FamilyRule) -> int:
    length = _positive("sub_context_length", params.sub_context_length)
    if length is not None and (rule.order is not Order.ANY or rule.settle is not Settle.CAUSAL):
        raise _refusal("sub_context_length", "is an order of any-order models only")
    return length or 0


def _remask(sampling: SamplingParams, rule: FamilyRule) -> float:
    value = sampling.decoding.remask
    if value is None:
        return 0.0
    if not 0 <= value < 1:
        raise _refusal("remask", f"must be at least 0 and below 1, got {value}")
    if value and (rule.settle is Settle.CAUSAL or not rule.drafts):
        raise _refusal("remask", "needs a canvas in which filled tokens are not final at once")
    if value and sampling.grammar is not None:
        raise _refusal("remask", "cannot be combined with a grammar")
    return value


def _by_ratio(params: DecodingParams, rule: FamilyRule, mode: Mode) -> bool:
    value = params.verification
    if value not in (None, "coupled", "ratio"):
        raise _refusal("verification", f"must be one of coupled, ratio, got {value!r}")
    if value != "ratio":
        return False
    if mode is not Mode.SPECULATIVE:
        raise _refusal("verification", "ratio needs drafts that the model itself verifies")
    if rule.latent is not None:
        raise _refusal("verification", "ratio cannot be combined with drafts in branches")
    return True


def _positive(field: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise _refusal(field, f"must be at least 1, got {value}")
    return value


def _check_probability(field: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise _refusal(field, f"must be above 0 and at most 1, got {value}")


def _or(asked: float | None, own: float | None, default: float) -> float:
    if asked is not None:
        return asked
    return own if own is not None else default


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(f"decoding.{field} {message}", field=f"decoding.{field}")
