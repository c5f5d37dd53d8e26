"""`AcceptanceModel`: how many tokens a sequence will gain from a round of drafts of some width.

A draft at distance d behind the last known token is confirmed, given that those before it were,
with a probability (its hazard) that depends on the text. Each sequence carries a belief over a
few levels of hazard, a hidden Markov filter: what a round confirmed and how uncertain the
network was of the next token are evidence, and with every token the text may change its level.
A global table corrects the hazards by distance, another says how uncertainty goes with level;
both are learned from all sequences with forgetting and start from plain priors.

From: Rabiner 1989, A tutorial on hidden Markov models, section III (the forward filter); Kaplan
and Meier 1958 for hazards under censoring: a round says nothing of drafts behind its first miss.

Shapes: n sequences, L levels, W widths, D distances.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Probability that the first draft is confirmed, by level; finer where runs are long.
LEVELS = (0.03, 0.2, 0.4, 0.6, 0.75, 0.86, 0.94, 0.98)
LARGEST_DISTANCE = 128
# Upper edges of the buckets of uncertainty (entropy / log V): those of single tokens of text
# spread over three magnitudes.
_UNCERTAINTY_EDGES = np.array((0.002, 0.006, 0.02, 0.05, 0.1, 0.2, 0.35))
_NUM_BUCKETS = _UNCERTAINTY_EDGES.size + 1
# A stretch of text keeps its level for so many tokens on average.
_MEAN_STRETCH_TOKENS = 32.0
# Uncertainties of neighbouring tokens go together, so that each is worth part of a sighting.
_EVIDENCE_POWER = 0.5
_MOST_CERTAIN_HAZARD, _LEAST_HAZARD = 0.995, 0.005
# Weights of the priors, in sightings.
_PRIOR_TRIALS = 40.0
_PRIOR_SIGHTINGS = 20.0
_PRIOR_MIX = 8.0
# Share of the changes that lead to a level of which nothing was known.
_SURPRISE = 0.1
_FORGETTING = 0.98
_LEARN_ROUNDS = 16
_LEARN_EVERY = 8
_REFRESH_EVERY = 4
_SINGLES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class AcceptanceReport:
    """What the model has learned, for people.

    mix:          share of the text at each level of `LEVELS`
    by_distance:  factor by which hazards at distances 1, 2, 4, ... differ from their level
    num_rounds:   rounds observed
    """

    mix: tuple[float, ...]
    by_distance: tuple[tuple[int, float], ...]
    num_rounds: int


class AcceptanceModel:
    """Beliefs of every seat over the levels, and the tables that turn them into expectations.

    widths: the widths that are asked about; a round of width w gains up to w tokens: w - 1
            drafts and the token of the verifying row behind the last confirmed one
    learns: whether the tables follow what is observed; a request with a seed is held to tables
            that no other request can change
    first_mix: share of texts at each level, as far as is known at first; None for equal shares
    """

    def __init__(
        self,
        *,
        num_seats: int,
        widths: tuple[int, ...],
        learns: bool,
        first_mix: tuple[float, ...] | None = None,
    ) -> None:
        self.num_rounds = 0
        self._learns = learns
        self._widths = np.array(widths)
        self._levels = np.array(LEVELS)
        shares = np.ones(self._levels.size) if first_mix is None else np.array(first_mix)
        self._prior_mix = shares / shares.sum()
        self._mix = self._prior_mix
        self._sightings = np.zeros(self._levels.size)
        self._beliefs = np.tile(self._mix, (num_seats, 1))
        self._successes = np.zeros(LARGEST_DISTANCE + 1)
        self._predicted = np.zeros(LARGEST_DISTANCE + 1)
        # [B, L] sightings; at first uncertainty says nothing of the level.
        self._uncertainties = np.full((_NUM_BUCKETS, self._levels.size), 1.0)
        self._num_learned = self._num_calls = self._turn = 0
        # Share of the belief that stays after so many tokens.
        tokens = np.arange(LARGEST_DISTANCE + 2)
        self._stays = (1 - 1 / _MEAN_STRETCH_TOKENS) ** tokens[:, None]
        self._refresh()

    def seat(self, seat: int) -> None:
        """Begin a sequence: nothing is known but what texts are like in general."""
        self._beliefs[seat] = self._mix

    def expected_tokens(self, seats: IntArray) -> FloatArray:
        """Tokens gained by a round of each width: [n, W], at least 1."""
        tokens: FloatArray = self._beliefs[seats] @ self._expected
        return tokens

    def group_tokens(
        self, seats: IntArray, caps: IntArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Sequences of the same likeliest level, taken together.

        Returns how many there are [L], the mean of their caps [L], and the mean of the tokens
        that their rounds of each width gain [L, W].
        """
        beliefs = self._beliefs[seats]
        level = beliefs.argmax(1)
        member = np.zeros((self._levels.size, seats.size))
        member[level, np.arange(seats.size)] = 1.0
        counts = member.sum(1)
        divisor = np.maximum(counts, 1.0)
        tokens: FloatArray = (member @ beliefs / divisor[:, None]) @ self._expected
        return counts, member @ caps / divisor, tokens

    def best_expected(self, column: int) -> float:
        """Tokens that a round of the width in this column gains from the easiest text."""
        return float(self._expected[-1, column])

    def observe_rounds(
        self, seats: IntArray, offered: IntArray, confirmed: IntArray, uncertainty: FloatArray
    ) -> None:
        """Take in what rounds confirmed.

        offered, confirmed: drafts put forward, and confirmed before the first miss: [n]
        uncertainty:        of the first verified position, in [0, 1]: [n]
        """
        self.num_rounds += seats.size
        confirmed = np.minimum(confirmed, LARGEST_DISTANCE)
        missed = (confirmed < offered).astype(np.int64)
        before = self._beliefs[seats]
        beliefs = before * self._round_likelihood[missed, confirmed]
        buckets = _UNCERTAINTY_EDGES.searchsorted(uncertainty)
        beliefs *= self._uncertainty_likelihood[buckets]
        beliefs /= beliefs.sum(1, keepdims=True)
        if self._learns:
            self._num_calls += 1
            # Rounds of one step are many and alike; a few of them keep the cost bounded.
            if seats.size <= _LEARN_ROUNDS or self._num_calls % _LEARN_EVERY == 0:
                self._learn(before, beliefs, missed, confirmed, buckets)
        self._store(seats, beliefs, confirmed + 1)

    def observe_singles(self, seats: IntArray, uncertainty: FloatArray) -> None:
        """Take in the uncertainty of tokens that came one by one: [n]."""
        # Neighbouring tokens say much the same: in a large batch, a part of them is looked at.
        stride = 1 + seats.size // _SINGLES_AT_ONCE
        if stride > 1:
            self._turn += 1
            seats = seats[self._turn % stride :: stride]
            uncertainty = uncertainty[self._turn % stride :: stride]
        buckets = _UNCERTAINTY_EDGES.searchsorted(uncertainty)
        beliefs = self._beliefs[seats] * self._uncertainty_likelihood[buckets]
        beliefs /= beliefs.sum(1, keepdims=True)
        self._store(seats, beliefs, np.array([stride]))

    def report(self) -> AcceptanceReport:
        """The learned tables in plain values."""
        distances = [2**k for k in range(LARGEST_DISTANCE.bit_length())]
        return AcceptanceReport(
            mix=tuple(self._mix.tolist()),
            by_distance=tuple((d, float(self._by_distance[d])) for d in distances),
            num_rounds=self.num_rounds,
        )

    def _store(self, seats: IntArray, beliefs: FloatArray, tokens: IntArray) -> None:
        """The text goes on: with each token it may have changed its level."""
        stays = self._stays[tokens]
        beliefs *= stays
        beliefs += (1 - stays) * self._after_change
        self._beliefs[seats] = beliefs

    def _learn(
        self,
        before: FloatArray,
        after: FloatArray,
        missed: IntArray,
        confirmed: IntArray,
        buckets: IntArray,
    ) -> None:
        """Move the tables towards a sample of the rounds."""
        if before.shape[0] > _LEARN_ROUNDS:
            start = self._num_learned % (before.shape[0] // _LEARN_ROUNDS)
            sample = slice(start, None, before.shape[0] // _LEARN_ROUNDS)
            before, after = before[sample], after[sample]
            missed, confirmed, buckets = missed[sample], confirmed[sample], buckets[sample]
        self._num_learned += 1
        self._sightings += after.sum(0)
        np.add.at(self._uncertainties, buckets, after)
        self._count_hazards(before, missed, confirmed)
        if self._num_learned % _REFRESH_EVERY == 0:
            self._refresh()

    def _count_hazards(self, before: FloatArray, missed: IntArray, confirmed: IntArray) -> None:
        """Add confirmations by distance, and how many the levels alone would have predicted."""
        tried = confirmed + missed
        # A text that got so far is easier than it was believed to be: [n, D].
        survival = self._survival[:, : int(tried.max()) + 1]
        expected = (before * self._levels) @ survival / (before @ survival)
        distance = np.arange(1, survival.shape[1])
        was_tried = distance <= tried[:, None]
        self._successes[distance] += (distance <= confirmed[:, None]).sum(0)
        self._predicted[distance] += (expected[:, :-1] * was_tried).sum(0)

    def _refresh(self) -> None:
        """Recompute what follows from the learned tables, and forget a little."""
        self._by_distance = _chained_ratios(self._successes, self._predicted)
        self._successes *= _FORGETTING
        self._predicted *= _FORGETTING
        self._uncertainties *= _FORGETTING
        self._hazards = np.clip(
            self._levels[:, None] * self._by_distance, _LEAST_HAZARD, _MOST_CERTAIN_HAZARD
        )
        # [L, D + 1] probability that at least the first d drafts are confirmed.
        survival = np.ones((self._levels.size, LARGEST_DISTANCE + 1))
        np.cumprod(self._hazards[:, 1:-1], axis=1, out=survival[:, 1:])
        self._survival = survival
        tokens = np.cumsum(survival, axis=1)
        self._expected = tokens[:, np.clip(self._widths, 1, LARGEST_DISTANCE + 1) - 1]
        ends = survival * (1 - self._hazards[:, 1:])
        self._round_likelihood = np.stack((survival.T, ends.T))  # [2, D + 1, L]
        # A level that was hardly seen is taken to be like all of the text.
        seen = self._uncertainties
        everywhere = seen.sum(1, keepdims=True) / seen.sum()
        of_level = (seen + _PRIOR_SIGHTINGS * everywhere) / (seen.sum(0) + _PRIOR_SIGHTINGS)
        self._uncertainty_likelihood = of_level**_EVIDENCE_POWER
        self._sightings *= _FORGETTING
        seen_levels = self._sightings + _PRIOR_MIX * self._prior_mix
        self._mix = seen_levels / seen_levels.sum()
        self._after_change = (1 - _SURPRISE) * self._mix + _SURPRISE / self._levels.size


def _chained_ratios(successes: FloatArray, predicted: FloatArray) -> FloatArray:
    """Observed over predicted confirmations by distance [D + 2]; each is the prior of the next.

    At the first distance it is 1: there, the level itself is the hazard.
    """
    ratios = [1.0, 1.0]
    for success, expected in zip(successes[2:].tolist(), predicted[2:].tolist(), strict=True):
        ratios.append((success + _PRIOR_TRIALS * ratios[-1]) / (expected + _PRIOR_TRIALS))
    return np.array([*ratios, ratios[-1]])
