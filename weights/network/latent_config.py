"""`LatentConfig`: what a checkpoint says of its latent canvas (Evo, our reading)."""

from dataclasses import dataclass
from itertools import pairwise

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError

_SPEAKS = ("own", "next")
_INPUTS = ("projection", "likelihood")
UNCERTAINTIES = ("entropy", "confidence", "margin")
ORDERS = ("any", "left_to_right")
_MATRICES = ("output", "down")
# (t, normalised entropy) pairs that a calibration needs at least: both ends.
_FEWEST_POINTS = 2
# Steps without any position ready that a request or a checkpoint may ask for.
MOST_REFINE_STEPS = 1024


@dataclass(frozen=True, slots=True)
class LatentDefaults:
    """How latents move where a request does not say: what served a checkpoint best.

    None leaves a field as the reading has it. The fields are those of a request's `decoding.evo`.
    """

    delta_min: float | None = None
    delta_max: float | None = None
    finalize_uncertainty: float | None = None
    jump_uncertainty: float | None = None
    uncertainty: str | None = None
    order: str | None = None
    max_refine_steps: int | None = None


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Sizes of the latent part of a network, and what decoding must know of it.

    size:        width d_z of a latent
    num_levels:  t is rounded to multiples of 1 / num_levels
    speaks_of_next: a latent row's scores are about the next position, as the base's are; else
                 about its own
    width:       rows of a canvas that training had in mind; the default of requests
    max_offset:  offsets in a canvas that have an embedding of their own; 0 for none
    rank:        of the low-rank weights of latent rows, 0 for none
    matrices:    which of output and down have them
    embedding_scale: root mean square of the token table where a latent is a scaled row of it;
                 None where the checkpoint has an embedding of its own for latents
    calibration: (t, mean entropy / log V at t) of the network on held-out text, both ascending
    defaults:    of requests that do not say how latents move
    enters_by_likelihood: a latent row holds the token embeddings in the proportion of its
                 likelihood; else a projection of its latent
    has_output_prior: the exact likelihood of a row's latent is added to its scores
    """

    size: int
    num_levels: int
    speaks_of_next: bool
    width: int
    calibration: tuple[tuple[float, float], ...]
    max_offset: int = 0
    rank: int = 0
    matrices: tuple[str, ...] = ()
    embedding_scale: float | None = None
    defaults: LatentDefaults = LatentDefaults()
    enters_by_likelihood: bool = False
    has_output_prior: bool = False


def parse_latent(fields: ConfigFields) -> LatentConfig:
    """Read the `latent` section of a config; raises CheckpointError naming what is wrong."""
    section = fields.section("latent")
    if section is None:
        raise CheckpointError(f"{fields.where}: the section latent is missing")
    speaks = section.text("speaks_of")
    if speaks not in _SPEAKS:
        raise section.refuse("speaks_of", f"but it must be one of {', '.join(_SPEAKS)}")
    enters = section.text("input", _INPUTS[0])
    if enters not in _INPUTS:
        raise section.refuse("input", f"but it must be one of {', '.join(_INPUTS)}")
    matrices = section.texts("matrices")
    if not set(matrices) <= set(_MATRICES):
        raise section.refuse("matrices", f"but only {' and '.join(_MATRICES)} are known")
    scale = section.number("embedding_scale") if section.has("embedding_scale") else None
    config = LatentConfig(
        size=section.integer("size"),
        num_levels=section.integer("num_levels"),
        speaks_of_next=speaks == "next",
        width=section.integer("width"),
        calibration=_calibration(section),
        max_offset=section.integer("max_offset", 0),
        rank=section.integer("rank", 0),
        matrices=matrices,
        embedding_scale=scale,
        defaults=_defaults(section),
        enters_by_likelihood=enters == "likelihood",
        has_output_prior=section.flag("output_prior", False),
    )
    _check_likelihood(section, config)
    for name in ("size", "num_levels", "width"):
        if getattr(config, name) < 1:
            raise section.refuse(name, "but it must be at least 1")
    if min(config.max_offset, config.rank) < 0 or (config.rank == 0) != (not matrices):
        raise section.refuse("rank", "but low-rank weights need a rank and matrices")
    if scale is not None and not scale > 0:
        raise section.refuse("embedding_scale", "but it must be above 0")
    return config


def _check_likelihood(section: ConfigFields, config: LatentConfig) -> None:
    """Refuse combinations that have no meaning."""
    if config.has_output_prior and config.speaks_of_next:
        raise section.refuse("output_prior", "but then rows must speak of their own position")
    if config.enters_by_likelihood and config.embedding_scale is not None:
        raise section.refuse("input", "but then latents need an embedding of their own")


def _defaults(section: ConfigFields) -> LatentDefaults:
    decoding = section.section("decoding")
    if decoding is None:
        return LatentDefaults()
    unknown = set(decoding.values) - set(LatentDefaults.__slots__)
    if unknown:
        raise decoding.refuse(min(unknown), "but no request has a field of that name in its evo")
    defaults = LatentDefaults(
        delta_min=_share(decoding, "delta_min"),
        delta_max=_share(decoding, "delta_max"),
        finalize_uncertainty=_share(decoding, "finalize_uncertainty"),
        jump_uncertainty=_share(decoding, "jump_uncertainty"),
        uncertainty=_word(decoding, "uncertainty", UNCERTAINTIES),
        order=_word(decoding, "order", ORDERS),
        max_refine_steps=_refine_steps(decoding),
    )
    least, most = defaults.delta_min, defaults.delta_max
    if (least is None) != (most is None):
        raise decoding.refuse("delta_min", "but delta_min and delta_max are said together")
    if least is not None and most is not None and least > most:
        raise decoding.refuse("delta_min", "but it must be at most delta_max")
    return defaults


def _refine_steps(section: ConfigFields) -> int | None:
    if not section.has("max_refine_steps"):
        return None
    steps = section.integer("max_refine_steps")
    if not 1 <= steps <= MOST_REFINE_STEPS:
        raise section.refuse("max_refine_steps", f"but it must be within 1..{MOST_REFINE_STEPS}")
    return steps


def _share(section: ConfigFields, name: str) -> float | None:
    if not section.has(name):
        return None
    value = section.number(name)
    if not 0 <= value <= 1:
        raise section.refuse(name, "but it must be between 0 and 1")
    return value


def _word(section: ConfigFields, name: str, known: tuple[str, ...]) -> str | None:
    if not section.has(name):
        return None
    value = section.text(name)
    if value not in known:
        raise section.refuse(name, f"but it must be one of {', '.join(known)}")
    return value


def _calibration(section: ConfigFields) -> tuple[tuple[float, float], ...]:
    if not section.has("calibration"):
        raise CheckpointError(
            f"{section.where}: latent.calibration is missing; without it no entropy can be read "
            "as a progress"
        )
    points = section.pairs("calibration")
    ascending = all(
        first[0] < second[0] and first[1] <= second[1] for first, second in pairwise(points)
    )
    inside = all(0 <= t <= 1 and 0 <= entropy <= 1 for t, entropy in points)
    if len(points) < _FEWEST_POINTS or not ascending or not inside:
        raise CheckpointError(
            f"{section.where}: latent.calibration must be at least {_FEWEST_POINTS} pairs of t "
            "and normalised entropy, both ascending and within 0..1"
        )
    return points
