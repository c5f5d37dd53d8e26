"""`LatentKnobs`: how the latents of one request move, resolved from its `decoding.evo`."""

import math
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

from sampler.border.errors import RequestError
from sampler.border.request import EvoParams
from weights.network.latent_config import MOST_REFINE_STEPS, ORDERS, UNCERTAINTIES, LatentDefaults

# From: our reading of Evo; each is a default of a request's field of that name, where the
# checkpoint has none of its own.
DELTA_MIN, DELTA_MAX = 1 / 32, 1 / 4
FINALIZE_UNCERTAINTY, JUMP_UNCERTAINTY = 0.1, 0.02
T_AR, T_PLAN = 0.0, 0.6
HYSTERESIS = 0.2
MAX_REFINE_STEPS = 8


class Uncertainty(IntEnum):
    """What stands for a position's uncertainty, always within 0..1; in the order of UNCERTAINTIES.

    ENTROPY:    entropy / log V
    CONFIDENCE: 1 - p of the most likely token
    MARGIN:     1 - (p1 - p2)
    """

    ENTROPY = 0
    CONFIDENCE = 1
    MARGIN = 2


class Branches(IntEnum):
    """For which numbers of accepted proposals a verifying step drafts on.

    ALL:  each of them: the next step always has proposals
    FULL: all accepted; after a rejection the next step drafts without proposals
    NONE: none: drafting and verifying take turns
    """

    ALL = 0
    FULL = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class LatentKnobs:
    """`latent_moves.MoveKnobs` of one request, and when its canvas narrows.

    t_ar, t_plan: where the mean uncertainty of the left half of the canvas is below t_ar, one
                  position is run at a time; above t_plan the whole width; between, a share of it
    max_refine_steps: steps without any position ready, after which the first one is drawn
    is_left_to_right: a position waits until all before it are ready
    """

    delta_min: float = DELTA_MIN
    delta_max: float = DELTA_MAX
    finalize: float = FINALIZE_UNCERTAINTY
    jump: float = JUMP_UNCERTAINTY
    t_ar: float = T_AR
    t_plan: float = T_PLAN
    hysteresis: float = math.inf
    is_heun: bool = False
    max_refine_steps: int = MAX_REFINE_STEPS
    uncertainty: Uncertainty = Uncertainty.ENTROPY
    is_left_to_right: bool = False


def resolve_latent(params: EvoParams | None, own: LatentDefaults | None = None) -> LatentKnobs:
    """Check a request's knobs; raises RequestError naming the field and its limits.

    own: what the checkpoint says of knobs that the request does not name
    """
    params = _filled(params or EvoParams(), own or LatentDefaults())
    knobs = LatentKnobs(
        delta_min=_share("delta_min", params.delta_min, DELTA_MIN),
        delta_max=_share("delta_max", params.delta_max, DELTA_MAX),
        finalize=_share("finalize_uncertainty", params.finalize_uncertainty, FINALIZE_UNCERTAINTY),
        jump=_share("jump_uncertainty", params.jump_uncertainty, JUMP_UNCERTAINTY),
        t_ar=_share("t_ar", params.t_ar, T_AR),
        t_plan=_share("t_plan", params.t_plan, T_PLAN),
        hysteresis=_hysteresis(params),
        is_heun=_named("ode", params.ode, ("euler", "heun")) == 1,
        max_refine_steps=_refine_steps(params.max_refine_steps),
        uncertainty=Uncertainty(_named("uncertainty", params.uncertainty, UNCERTAINTIES)),
        is_left_to_right=_named("order", params.order, ORDERS) == 1,
    )
    if knobs.delta_min > knobs.delta_max:
        raise _refusal(
            "delta_min", f"must be at most delta_max ({knobs.delta_max}), got {knobs.delta_min}"
        )
    if knobs.t_ar > knobs.t_plan:
        raise _refusal("t_ar", f"must be at most t_plan ({knobs.t_plan}), got {knobs.t_ar}")
    return knobs


def _filled(params: EvoParams, own: LatentDefaults) -> EvoParams:
    """The request's knobs, and the checkpoint's where the request has none."""
    said = {name: value for name, value in asdict(own).items() if value is not None}
    return replace(params, **{n: v for n, v in said.items() if getattr(params, n) is None})


def _hysteresis(params: EvoParams) -> float:
    if params.hysteresis is not None and not params.renoise:
        raise _refusal("hysteresis", "has no meaning without renoise")
    return _share("hysteresis", params.hysteresis, HYSTERESIS) if params.renoise else math.inf


def _refine_steps(value: int | None) -> int:
    if value is None:
        return MAX_REFINE_STEPS
    if not 1 <= value <= MOST_REFINE_STEPS:
        raise _refusal("max_refine_steps", f"must be within 1..{MOST_REFINE_STEPS}, got {value}")
    return value


def _share(field: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not 0 <= value <= 1:
        raise _refusal(field, f"must be between 0 and 1, got {value}")
    return value


def _named(field: str, value: str | None, names: tuple[str, ...]) -> int:
    if value is None:
        return 0
    if value not in names:
        raise _refusal(field, f"must be one of {', '.join(names)}, got {value!r}")
    return names.index(value)


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(f"decoding.evo.{field} {message}", field=f"decoding.evo.{field}")
