"""How latents move: a pure function from what the network says of open positions to their next t.

Every open position of every canvas moves on its own, so all of a batch are decided at once:

    t*  = g(u)                                   progress at which such uncertainty is normal
    t'  = clip(t*, t - delta_max, t - delta_min)             always falls, unless renoised
    z'  = E[e] + (t' / t) (z - E[e])                         Euler; Heun corrects it once
    renoise where t* > t + hysteresis: t' = t*, z' = (1 - t') E[e] + t' new noise
    a position is ready when it is certain (u below a bound, and t' low enough or u very small),
    or when t' reaches 0

From: our reading of Evo (arXiv 2603.06617). Entropy matching: g inverts the mean entropy by t that
was measured on held-out text and stored with the checkpoint.

Shapes: n open positions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MoveKnobs:
    """A request's knobs, for each position [n].

    delta_min, delta_max: t falls by at least and at most so much in a step
    finalize:    ready below this uncertainty once t' <= t_plan
    jump:        ready below this uncertainty at any t
    t_plan:      above this t a position is still being planned
    hysteresis:  renoised when t* exceeds t by more; infinite for never
    is_heun:     a step is predicted, then corrected with the velocity at its end
    """

    delta_min: Floats
    delta_max: Floats
    finalize: Floats
    jump: Floats
    t_plan: Floats
    hysteresis: Floats
    is_heun: Bools


@dataclass(frozen=True, slots=True)
class Moves:
    """What becomes of the positions: their new t, and how z moves (`LatentTable.set_move`)."""

    progress: Floats
    is_ready: Bools
    is_renoised: Bools
    keep: Floats
    expected: Floats
    start: Floats
    slope: Floats
    noise: Floats
    remembers: Bools


def target_progress(uncertainty: Floats, calibration: tuple[tuple[float, float], ...]) -> Floats:
    """g: the t at which the calibrated mean uncertainty is this one; [n] in [0, 1]."""
    t, mean = np.array(calibration, dtype=np.float64).T
    # Where the mean does not rise, several t fit; the smallest is the most mature reading.
    distinct = np.concatenate(([True], np.diff(mean) > 0))
    found: Floats = np.clip(np.interp(uncertainty, mean[distinct], t[distinct]), 0.0, 1.0)
    return found


def decide_moves(
    progress: Floats,
    previous: Floats,
    corrects: Bools,
    uncertainty: Floats,
    target: Floats,
    knobs: MoveKnobs,
    *,
    num_levels: int,
) -> Moves:
    """Move n latents.

    progress, previous: t now, and before the last predictor step
    corrects:           the last step is to be corrected now; t stays where it is
    uncertainty, target: u, and t* = g(u)
    num_levels:         t' is rounded to multiples of 1 / num_levels
    """
    renoised = target > progress + knobs.hysteresis
    clipped = np.minimum(np.maximum(target, progress - knobs.delta_max), progress - knobs.delta_min)
    moved = _rounded_down(np.maximum(clipped, 0.0), progress, knobs, num_levels)
    moved = np.where(corrects, progress, moved)
    moved = np.where(renoised, np.minimum(_rounded(target, num_levels), 1.0), moved)
    is_certain = (uncertainty < knobs.finalize) & (moved <= knobs.t_plan)
    is_certain |= uncertainty < knobs.jump
    is_ready = ~renoised & (is_certain | (moved <= 0))
    ratio = moved / np.maximum(progress, 1 / num_levels)
    fixes = corrects & ~renoised
    # Corrected: z_0 + (t - t_0) (u_0 + u_1) / 2 with u_1 = (z - E[e]) / t.
    half = (progress - previous) / 2
    over = half / np.maximum(progress, 1 / num_levels)
    return Moves(
        progress=moved,
        is_ready=is_ready,
        is_renoised=renoised,
        keep=np.where(renoised, 0.0, np.where(fixes, over, ratio)),
        expected=np.where(renoised, 1 - moved, np.where(fixes, -over, 1 - ratio)),
        start=np.where(fixes, 1.0, 0.0),
        slope=np.where(fixes, half, 0.0),
        noise=np.where(renoised, moved, 0.0),
        # At t = 0 there is no velocity to correct with.
        remembers=knobs.is_heun & ~corrects & ~renoised & ~is_ready & (moved > 0),
    )


def left_run(seats: IntArray, positions: IntArray, ready: Bools) -> Bools:
    """Those that are ready and have nothing before them on their canvas that is not [n]."""
    own, line = np.unique(seats, return_inverse=True)
    first = np.full(own.size, np.iinfo(np.int64).max)
    np.minimum.at(first, line[~ready], positions[~ready])
    run: Bools = positions < first[line]
    return run


def _rounded(t: Floats, num_levels: int) -> Floats:
    return np.round(t * num_levels) / num_levels


def _rounded_down(t: Floats, progress: Floats, knobs: MoveKnobs, num_levels: int) -> Floats:
    """To a level; one lower than now at least, where t must fall at all."""
    lower = np.where(knobs.delta_min > 0, progress - 1 / num_levels, progress)
    return np.maximum(np.minimum(_rounded(t, num_levels), lower), 0.0)
