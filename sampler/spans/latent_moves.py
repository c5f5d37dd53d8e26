"""How latents move: a pure function from what the network says of open positions to their next t.

Every open position of every canvas moves on its own, so all of a batch are decided at once. Steps
are measured in information: s(t) is the share of the entropy at t = 1 that a latent at t still
has, from 1 down to 0, as measured on held-out text and stored with the checkpoint.

    s*  = u / (uncertainty at t = 1)             share at which such uncertainty is normal
    s'  = clip(s*, s - delta_max, s - delta_min)             always falls, unless renoised
    t'  = t(s'),  z' = E[e] + (t' / t) (z - E[e])            Euler; Heun corrects it once
    renoise where s* > s + hysteresis: t' = t(s*), z' = (1 - t') E[e] + t' new noise
    a position is ready when it is certain (u below a bound, and s' low enough or u very small),
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

# Less of the information, or of a level, is rounding.
_NO_SHARE = 1e-6
_SAME_LEVEL = 1e-6


@dataclass(frozen=True, slots=True)
class MoveKnobs:
    """A request's knobs, for each position [n]; shares are of information.

    delta_min, delta_max: the share falls by at least and at most so much in a step
    finalize:    ready below this uncertainty once s' <= t_plan
    jump:        ready below this uncertainty at any s
    t_plan:      above this share a position is still being planned
    hysteresis:  renoised when s* exceeds s by more; infinite for never
    is_heun:     a step is predicted, then corrected with the velocity at its end
    """

    delta_min: Floats
    delta_max: Floats
    finalize: Floats
    jump: Floats
    t_plan: Floats
    hysteresis: Floats
    is_heun: Bools


class Information:
    """s(t) of a network, and back: the share of the entropy at t = 1 that a latent at t has."""

    def __init__(self, calibration: tuple[tuple[float, float], ...]) -> None:
        """calibration: (t, mean entropy / log V), both ascending from 0 to 1."""
        t, mean = np.array(calibration, dtype=np.float64).T
        self._t = t
        self._last = float(mean[-1])
        self._share = mean / self._last if self._last > 0 else t
        # Where the mean does not rise, several t fit; the smallest is the most mature reading.
        self._rises = np.concatenate(([True], np.diff(self._share) > 0))

    def of(self, progress: Floats) -> Floats:
        """The share at t [n], in [0, 1]."""
        share: Floats = np.interp(progress, self._t, self._share)
        return np.where(progress >= self._t[-1], 1.0, share)

    def progress(self, share: Floats) -> Floats:
        """The t [n] in [0, 1] of a share; 0 of none, the last of all."""
        found = np.interp(share, self._share[self._rises], self._t[self._rises])
        return np.where(share >= 1, 1.0, np.where(share <= 0, 0.0, np.clip(found, 0.0, 1.0)))

    def target(self, uncertainty: Floats) -> Floats:
        """s*: the share at which such an uncertainty [n], within 0..1, is normal."""
        share: Floats = np.clip(uncertainty / max(self._last, 1e-9), 0.0, 1.0)
        return share


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


def decide_moves(
    progress: Floats,
    previous: Floats,
    corrects: Bools,
    uncertainty: Floats,
    information: Information,
    knobs: MoveKnobs,
    *,
    num_levels: int,
) -> Moves:
    """Move n latents.

    progress, previous: t now, and before the last predictor step
    corrects:           the last step is to be corrected now; t stays where it is
    uncertainty:        u, within 0..1
    num_levels:         t' is rounded to multiples of 1 / num_levels
    """
    share, target = information.of(progress), information.target(uncertainty)
    renoised = target > share + knobs.hysteresis
    clipped = np.minimum(np.maximum(target, share - knobs.delta_max), share - knobs.delta_min)
    clipped = np.where(clipped < _NO_SHARE, 0.0, clipped)
    moved = _rounded_down(information.progress(clipped), progress, knobs, num_levels)
    moved = np.where(corrects, progress, moved)
    moved = np.where(renoised, _rounded(information.progress(target), num_levels), moved)
    is_certain = (uncertainty < knobs.finalize) & (information.of(moved) <= knobs.t_plan)
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
    """Down to a level, so that equal steps end in time; one lower than now where t must fall."""
    lower = np.where(knobs.delta_min > 0, progress - 1 / num_levels, progress)
    level = np.floor(t * num_levels + _SAME_LEVEL) / num_levels
    return np.maximum(np.minimum(level, lower), 0.0)
