"""`StepTimeModel`: how long a step takes, from how many rows it runs and what they read.

    time = a + b rows + c scored rows + d cache entries + f latents + sum_j e_j max(rows - k_j, 0)

where latents is 1 for steps with rows that hold latents, which read weights of their own. No
coefficient is negative, so that time never falls with work and is convex in the rows: a
machine that waits for its memory costs nothing per row until a knee, which one of the bends k_j
then shows. Fitted by least squares of the relative error; outliers (a compilation, a pause of
the machine) lose weight by Huber's rule.

From: the non-negative least squares of Lawson and Hanson 1974, Solving Least Squares Problems,
chapter 23, on the normal equations; Huber 1964, Robust Estimation of a Location Parameter.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Where the time per row may bend.
BEND_ROWS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048)
_BENDS: NDArray[np.float64] = np.array(BEND_ROWS, dtype=np.float64)
# No step has more rows than the last.
_KNOTS = np.array((0.0, *BEND_ROWS, 1 << 24))
_NUM_PLAIN = 5
_NUM_FEATURES = _NUM_PLAIN + len(BEND_ROWS)
# Steps are kept by magnitude of their rows, so that a steady load does not push out what is
# known of other loads.
_NUM_BUCKETS = 16
_BUCKET_SIZE = 32
# A kept step counts half after so many newer ones: the machine may have become slower.
_HALF_LIFE_STEPS = 2048
_SMALLEST_WEIGHT = 1e-3
# Relative errors above this count by their size instead of their square.
_HUBER_LIMIT = 0.1
_NUM_REWEIGHTS = 3
_FIT_EVERY_STEPS = 128
# Until anything was measured: a millisecond, and a hundredth of it per row.
_FIRST_GUESS = (1e-3, 1e-5, 0.0, 0.0, 0.0)
# Decides what the kept steps leave open: time that may be due to several things is fixed time, or
# the rows', before it is due to anything else.
_RIDGE = np.full(_NUM_FEATURES, 1e-5)
_RIDGE[:2] = 1e-9
# Bends of less than this share of a row's cost are noise to people.
_SHOWN_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step runs.

    rows:          rows of the network
    scored_rows:   of them, those whose scores are computed
    cache_entries: entries that the sequences of the step see, each counted once
    has_latents:   whether rows hold latents, whose weights are read once for all of them
    """

    rows: float
    scored_rows: float
    cache_entries: float
    has_latents: bool = False


@dataclass(frozen=True, slots=True)
class StepTimeReport:
    """What the model knows, for people: times are seconds, per unit where it says so.

    fixed_s, row_s, scored_row_s, cache_entry_s, latents_s: a, b, c, d, f
    bends:          (rows above which each row costs so much more, seconds per row)
    num_steps:      steps observed so far
    median_error:   of the kept steps, relative
    knots:          (rows, predicted seconds) of steps that score every row of an empty cache
    """

    fixed_s: float
    row_s: float
    scored_row_s: float
    cache_entry_s: float
    latents_s: float
    bends: tuple[tuple[int, float], ...]
    num_steps: int
    median_error: float
    knots: tuple[tuple[int, float], ...]


class StepTimeModel:
    """Learns from every step; a bounded number of them is kept and fitted now and then."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.coefficients: FloatArray = np.zeros(_NUM_FEATURES)
        self.coefficients[:_NUM_PLAIN] = _FIRST_GUESS
        self._row_seconds = _KNOTS * 0.0
        self._tabulate()
        self._features = np.zeros((_NUM_BUCKETS, _BUCKET_SIZE, _NUM_FEATURES))
        self._seconds = np.zeros((_NUM_BUCKETS, _BUCKET_SIZE))
        self._numbers = np.zeros((_NUM_BUCKETS, _BUCKET_SIZE), dtype=np.int64)
        self._counts = [0] * _NUM_BUCKETS

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Take in how long a step took; every so many steps, fit again."""
        if seconds <= 0:
            return
        bucket = min(int(shape.rows).bit_length(), _NUM_BUCKETS - 1)
        place = self._counts[bucket] % _BUCKET_SIZE
        self._features[bucket, place] = _features(shape)
        self._seconds[bucket, place] = seconds
        self._numbers[bucket, place] = self.num_steps
        self._counts[bucket] += 1
        self.num_steps += 1
        if self.num_steps % _FIT_EVERY_STEPS == 0:
            self.fit()

    @property
    def fixed_s(self) -> float:
        """Seconds of a step before its first row."""
        return float(self.coefficients[0])

    @property
    def entry_s(self) -> float:
        """Seconds for each cache entry that is seen."""
        return float(self.coefficients[3])

    def fit(self) -> None:
        """Find the coefficients that explain the kept steps best."""
        features, seconds, weights = self._kept()
        if seconds.size == 0:
            return
        # Dividing a line by its time makes the error relative.
        lines = features / seconds[:, None]
        scale = np.maximum(np.abs(lines).max(0), 1e-30)
        lines = lines / scale
        target = np.ones(seconds.size)
        coefficients = _nonnegative_least_squares(lines, target, weights)
        for _ in range(_NUM_REWEIGHTS):
            error = np.abs(lines @ coefficients - 1)
            huber = _HUBER_LIMIT / np.maximum(error, _HUBER_LIMIT)
            coefficients = _nonnegative_least_squares(lines, target, weights * huber)
        self.coefficients = coefficients / scale
        self._tabulate()

    def predict(
        self,
        rows: FloatArray,
        scored_rows: FloatArray,
        cache_entries: float,
        latents: FloatArray | None = None,
    ) -> FloatArray:
        """Seconds of steps with so many rows [n] and scored rows [n], over the same cache.

        latents: [n], which share of such steps has rows that hold latents; None for no step
        """
        fixed, _, scored_row, entry, of_latents = self.coefficients[:_NUM_PLAIN].tolist()
        seconds: FloatArray = np.interp(rows, _KNOTS, self._row_seconds)
        seconds += scored_row * scored_rows
        seconds += fixed + entry * cache_entries
        if latents is not None:
            seconds += of_latents * latents
        return seconds

    def row_price(self, rows: float) -> float:
        """Seconds that one more row costs, scored, in a step of so many rows."""
        return self._row_prices[bisect_right(BEND_ROWS, rows)]

    def report(self) -> StepTimeReport:
        """The model in plain values."""
        a, b, c, d, f = (float(value) for value in self.coefficients[:_NUM_PLAIN])
        extra = self.coefficients[_NUM_PLAIN:]
        features, seconds, _ = self._kept()
        errors = np.abs(features @ self.coefficients / seconds - 1) if seconds.size else np.zeros(1)
        shown = _SHOWN_SHARE * (b + float(extra.sum()))
        knots = np.array((1, *BEND_ROWS), dtype=np.float64)
        return StepTimeReport(
            fixed_s=a,
            row_s=b,
            scored_row_s=c,
            cache_entry_s=d,
            latents_s=f,
            bends=tuple(
                (rows, float(cost))
                for rows, cost in zip(BEND_ROWS, extra, strict=True)
                if cost > shown
            ),
            num_steps=self.num_steps,
            median_error=float(np.median(errors)),
            knots=tuple(
                (int(rows), float(seconds))
                for rows, seconds in zip(knots, self.predict(knots, knots, 0.0), strict=True)
            ),
        )

    def _tabulate(self) -> None:
        """Time of the rows alone where it bends, and what a row costs between two bends."""
        beyond = np.maximum(_KNOTS[:, None] - _BENDS, 0.0)
        self._row_seconds = self.coefficients[1] * _KNOTS + beyond @ self.coefficients[_NUM_PLAIN:]
        bends = np.concatenate(((0.0,), self.coefficients[_NUM_PLAIN:])).cumsum()
        self._row_prices: list[float] = (self.coefficients[1:3].sum() + bends).tolist()

    def _kept(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Features [n, F], seconds [n] and weights [n] of the kept steps."""
        places = np.arange(_BUCKET_SIZE)[None, :]
        held = places < np.array(self._counts)[:, None]
        age = self.num_steps - self._numbers[held]
        weights = np.maximum(0.5 ** (age / _HALF_LIFE_STEPS), _SMALLEST_WEIGHT)
        return self._features[held], self._seconds[held], weights


def _features(shape: StepShape) -> FloatArray:
    """[F], in the order of the coefficients."""
    plain = (1.0, shape.rows, shape.scored_rows, shape.cache_entries, float(shape.has_latents))
    features = np.empty(_NUM_FEATURES)
    features[:_NUM_PLAIN] = plain
    np.maximum(shape.rows - _BENDS, 0.0, out=features[_NUM_PLAIN:])
    return features


def _nonnegative_least_squares(
    lines: FloatArray, target: FloatArray, weights: FloatArray
) -> FloatArray:
    """The x >= 0 [F] that minimises the weighted squares of lines [n, F] x - target [n]."""
    weighted = lines * weights[:, None]
    gram = weighted.T @ lines
    gram[np.diag_indices_from(gram)] += _RIDGE * max(float(np.trace(gram)), 1.0)
    moment = weighted.T @ target
    size = moment.size
    active = np.zeros(size, dtype=np.bool_)
    solution = np.zeros(size)
    tolerance = 1e-9 * float(np.abs(moment).max(initial=0.0))
    for _ in range(3 * size):
        gradient = moment - gram @ solution
        gradient[active] = 0.0
        best = int(gradient.argmax())
        if gradient[best] <= tolerance:
            break
        active[best] = True
        solution = _shrink_to_feasible(gram, moment, solution, active)
    return solution


def _shrink_to_feasible(
    gram: FloatArray, moment: FloatArray, solution: FloatArray, active: NDArray[np.bool_]
) -> FloatArray:
    """Solve for the active coefficients, dropping those that would become negative."""
    while active.any():
        chosen = np.flatnonzero(active)
        wanted = np.linalg.solve(gram[np.ix_(chosen, chosen)], moment[chosen])
        if (wanted > 0).all():
            solution = np.zeros_like(solution)
            solution[chosen] = wanted
            return solution
        now = solution[chosen]
        falls = wanted <= 0
        share = (now[falls] / np.maximum(now[falls] - wanted[falls], 1e-300)).min()
        moved = now + share * (wanted - now)
        solution = np.zeros_like(solution)
        solution[chosen] = np.maximum(moved, 0.0)
        spent = falls & (moved <= 1e-12 * max(float(np.abs(moved).max()), 1e-300))
        # At least the one that limited the move leaves, whatever rounding says.
        limiting = int(np.flatnonzero(falls)[(moved[falls]).argmin()])
        spent[limiting] = True
        active[chosen[spent]] = False
        solution[chosen[spent]] = 0.0
    return np.zeros_like(solution)
