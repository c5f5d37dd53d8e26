"""`Balance`: for every sequence and round, one token by AR or a window of drafts, and how wide.

A round of width w drafts w rows in one step and verifies them in the next. It gains E(w) tokens
(`AcceptanceModel`), where AR gains two in the same two steps. Over the whole batch we maximise

    tokens gained per step / seconds per step (`StepTimeModel`).

At the best choice every sequence maximises its own gain less a price per row, the same for all:
what the tokens of one more row must be worth. The price follows from the load: near zero on an
idle machine, above what any draft is worth on a saturated one. It changes which rows are
evaluated, never which drafts are accepted. docs/balance.md has the derivation.

Shapes: N seats, n sequences, W widths, P candidate prices, L levels of hazard.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sampler.balance.acceptance_model import LEVELS, AcceptanceModel
from sampler.balance.step_time import FloatArray, StepTimeModel

IntArray = NDArray[np.int64]

# Width 0 is AR; a window of one row drafts nothing.
WIDTHS = (0, 2, 4, 8, 16, 32, 64, 128)
# Levels of hazard of texts drafted by latents: the default model's adapter on held-out prompts, on
# which four first drafts in ten are confirmed.
_LATENT_MIX = (0.2, 0.2, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02)
# Of latent branches, whose rows grow with the square of the width.
BRANCH_WIDTHS = (0, 2, 3, 4, 5, 6, 8, 12, 16)
# Tokens per row; below the first no row is worth the electricity, and at the last every
# sequence decodes by AR, as no draft is confirmed more often than always.
_NUM_PRICES = 64
_PRICE_STEP = 512 ** (1 / (_NUM_PRICES - 1))
_PRICES = _PRICE_STEP ** -np.arange(_NUM_PRICES, dtype=np.float64)
# Each sequence pays a little more or less than the price, always by the same factor, so that equal
# sequences do not all change their widths at once: the steps that they fill would overshoot the
# knee of the machine or fall short of it. In steps of the price, to either side.
_SPREAD_STEPS = 1.5
_GOLDEN = (5**0.5 - 1) / 2
# What a request with a seed pays, at any load: that of a lightly loaded machine.
_PRICE_OF_SEEDED = 1 / 32
# What a batch gains at each price changes slowly when it is large: it is looked up again after as
# many choices as the batch has times so many sequences; the price itself, while no prompt runs.
_LOOKUP_SEQUENCES = 32
_STEADY_SEQUENCES = 128
# Differences of this share of the gain are not worth a difference in price.
_INDIFFERENCE = 1e-5
_LEVEL_NUMBERS = np.arange(len(LEVELS))
# A sequence keeps its width unless another gains so much more, as a share of its gain.
_STICKINESS = 0.04
# A sequence that decodes by AR drafts again after so many tokens, to see whether the text has
# changed; the stretch doubles with every failure.
_FIRST_QUIET_TOKENS = 64
_LONGEST_QUIET_TOKENS = 512
_PROBE_COLUMN = 2
_PROBE_SUCCESS = 2


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What a round costs per step, by width: each is [W], the first entry is AR.

    widths:      ascending; the first is 0
    rows:        rows of the network
    scored_rows: rows whose scores are computed
    most_rows:   rows of the larger one of its two steps, [W] int64
    num_certain: first drafts that see all that their verifying rows see, and are always confirmed
    steps:       of a round: drafts are verified in the step after, or in the one that drafts on
    has_latents: drafting rows hold latents, whose own weights cost a step time once
    first_mix:   share of texts at each level of hazard, as far as is known at first; None for equal
                 shares
    """

    widths: tuple[int, ...]
    rows: FloatArray
    scored_rows: FloatArray
    most_rows: IntArray
    num_certain: int = 0
    steps: int = 2
    has_latents: bool = False
    first_mix: tuple[float, ...] | None = None


def canvas_costs() -> RoundCosts:
    """Left to right: a window of w rows is drafted, then the same w rows verify it."""
    widths = np.array(WIDTHS, dtype=np.float64)
    rows, scored = widths.copy(), widths - 0.5
    rows[0] = scored[0] = 1.0
    return RoundCosts(WIDTHS, rows=rows, scored_rows=scored, most_rows=rows.astype(np.int64))


def rank_costs() -> RoundCosts:
    """Any order: w masks are drafted, then w tokens and w masks behind them verify; one settles."""
    widths = np.array(WIDTHS, dtype=np.float64)
    rows, scored = (3 * widths + 1) / 2, widths.copy()
    rows[0], scored[0] = 2.0, 1.0
    most = (2 * widths + 1).astype(np.int64)
    most[0] = 2
    return RoundCosts(WIDTHS, rows=rows, scored_rows=scored, most_rows=most, num_certain=1)


def branch_costs() -> RoundCosts:
    """Latent branches: w rows verify, and w branches of w - 1 rows draft on in the same step."""
    rows = np.array(BRANCH_WIDTHS, dtype=np.float64) ** 2
    rows[0] = 1.0
    most = rows.astype(np.int64)
    return RoundCosts(
        BRANCH_WIDTHS,
        rows=rows,
        scored_rows=rows,
        most_rows=most,
        steps=1,
        has_latents=True,
        first_mix=_LATENT_MIX,
    )


@dataclass(frozen=True, slots=True)
class Load:
    """What the batch looks like when widths are chosen.

    running:       seats past their prompts whose widths are chosen here
    budget_rows:   rows that the sequences which start a round may take in this step
    pending_rows:  rows of this step's verifying sequences, whose widths were chosen before
    prompt_rows:   rows of this step that run prompts
    other_rows:    rows of sequences that are past their prompts and not among `running`
    num_others:    how many those are
    cache_entries: entries that all running sequences see
    """

    running: IntArray
    budget_rows: int
    pending_rows: int
    prompt_rows: int
    other_rows: int
    num_others: int
    cache_entries: int


@dataclass(slots=True)
class BalanceCounts:
    """Counted up from the start; `chosen` by width, in the order of `widths`."""

    widths: tuple[int, ...]
    chosen: IntArray
    num_switches: int = 0
    num_handed_to_ar: int = 0
    num_probes: int = 0

    def by_width(self) -> dict[int, int]:
        """Choices by width."""
        return dict(zip(self.widths, self.chosen.tolist(), strict=True))


class Balance:
    """Chooses widths, and learns from what rounds and steps turned out to be."""

    def __init__(
        self, *, num_seats: int, costs: RoundCosts, step_time: StepTimeModel | None = None
    ) -> None:
        self.step_time = step_time if step_time is not None else StepTimeModel()
        widths = tuple(max(width - costs.num_certain, 0) for width in costs.widths)
        acceptance_model = partial(
            AcceptanceModel, num_seats=num_seats, widths=widths, first_mix=costs.first_mix
        )
        self.acceptance = acceptance_model(learns=True)
        self.price = float(_PRICES[-1])
        self.counts = BalanceCounts(costs.widths, np.zeros(len(costs.widths), dtype=np.int64))
        self._costs = costs
        # A request with a seed sees tables and a price that nobody else can change.
        self._fixed = acceptance_model(learns=False)
        self._is_seeded = np.zeros(num_seats, dtype=np.bool_)
        self._cap = np.zeros(num_seats, dtype=np.int64)
        self._column = np.zeros(num_seats, dtype=np.int64)
        self._quiet = np.zeros(num_seats, dtype=np.int64)
        self._patience = np.zeros(num_seats, dtype=np.int64)
        self._is_probe = np.zeros(num_seats, dtype=np.bool_)
        self._first_patience = float(_FIRST_QUIET_TOKENS)
        self._num_calls = 0
        self._had_prompts = False
        self._by_price = np.zeros((4, _NUM_PRICES))
        self._row_worth = 0.0
        self._widths = np.array(costs.widths)
        # A width above the cap stands for the cap if the next narrower one lies below it.
        self._narrower = np.concatenate(([-1], self._widths[:-1]))
        self._num_seated = 0
        self._own_price = np.ones(num_seats)
        self._allowed = np.ones((num_seats, len(costs.widths)))
        # Of every candidate price: rows of a sequence, by choice.
        self._paid = _PRICES[:, None, None] * costs.rows

    def seat(self, seat: int, *, cap: int, is_seeded: bool) -> None:
        """Begin a sequence whose rounds may be up to `cap` rows wide."""
        self._is_seeded[seat] = is_seeded
        self._cap[seat] = cap
        self._allowed[seat] = self._narrower < cap
        shift = (self._num_seated * _GOLDEN + 0.5) % 1 - 0.5
        self._own_price[seat] = _PRICE_STEP ** (shift * 2 * _SPREAD_STEPS)
        if is_seeded:
            self._own_price[seat] = 1.0
        else:
            self._num_seated += 1
        self._column[seat] = self._quiet[seat] = 0
        self._patience[seat] = _FIRST_QUIET_TOKENS if is_seeded else self._first_patience
        self._is_probe[seat] = False
        self.acceptance.seat(seat)
        self._fixed.seat(seat)

    def choose(self, starting: IntArray, load: Load) -> IntArray:
        """Widths [n] for the sequences that start a round, most urgent first; 0 is AR."""
        seeded = self._is_seeded[starting]
        num_seeded = int(np.count_nonzero(seeded))
        if num_seeded < starting.size:
            self.price = self._current_price(starting.size - num_seeded, load)
        if num_seeded == 0:
            columns = self._columns(self.acceptance, starting, self.price, self._row_worth)
        else:
            columns = np.empty(starting.size, dtype=np.int64)
            fixed, own = _PRICE_OF_SEEDED, ~seeded
            columns[seeded] = self._columns(self._fixed, starting[seeded], fixed, fixed)
            columns[own] = self._columns(
                self.acceptance, starting[own], self.price, self._row_worth
            )
        columns = self._within_budget(columns, load.budget_rows)
        self._note(starting, columns)
        widths: IntArray = np.minimum(self._widths[columns], self._cap[starting])
        return widths

    def prices(self, seats: IntArray) -> FloatArray:
        """What one more row must gain to be worth its time, in tokens, for each seat [n].

        In a step as it is: the price of a choice may lie above it, where all of a wider one's rows
        are not worth theirs.
        """
        return np.where(self._is_seeded[seats], _PRICE_OF_SEEDED, self._row_worth)

    def observe_rounds(
        self, seats: IntArray, offered: IntArray, confirmed: IntArray, uncertainty: FloatArray
    ) -> None:
        """Take in how the rounds of sequences ended (`AcceptanceModel.observe_rounds`)."""
        seeded = self._is_seeded[seats]
        offered = np.maximum(offered - self._costs.num_certain, 0)
        confirmed = np.maximum(confirmed - self._costs.num_certain, 0)
        self._end_probes(seats, confirmed)
        if not seeded.any():
            self.acceptance.observe_rounds(seats, offered, confirmed, uncertainty)
            return
        for model, own in ((self._fixed, seeded), (self.acceptance, ~seeded)):
            if own.any():
                model.observe_rounds(seats[own], offered[own], confirmed[own], uncertainty[own])

    def observe_singles(self, seats: IntArray, uncertainty: FloatArray) -> None:
        """Take in tokens that came one by one: their uncertainty in [0, 1]."""
        seeded = self._is_seeded[seats]
        if not seeded.any():
            self.acceptance.observe_singles(seats, uncertainty)
            return
        for model, own in ((self._fixed, seeded), (self.acceptance, ~seeded)):
            if own.any():
                model.observe_singles(seats[own], uncertainty[own])

    def _columns(
        self, model: AcceptanceModel, seats: IntArray, price: float, row_worth: float
    ) -> IntArray:
        """The best choice of each sequence, an index of the widths.

        price, row_worth: tokens per row, for choices and for probes
        """
        gains = self._gains(model, seats)
        values = gains - (price * self._own_price[seats])[:, None] * self._costs.rows
        values[np.arange(seats.size), self._column[seats]] += _STICKINESS
        columns: IntArray = values.argmax(1)
        self._probe(seats, columns, gains, best=model.best_expected(_PROBE_COLUMN), price=row_worth)
        return columns

    def _gains(self, model: AcceptanceModel, seats: IntArray) -> FloatArray:
        """Expected tokens per step [n, W]."""
        gains = model.expected_tokens(seats)
        gains += self._costs.num_certain
        gains *= 1 / self._costs.steps
        gains *= self._allowed[seats]
        gains[:, 0] = 1.0
        return gains

    def _probe(
        self, seats: IntArray, columns: IntArray, gains: FloatArray, *, best: float, price: float
    ) -> None:
        """Let sequences that have been quiet for long draft once, where easy text would pay.

        gains: expected tokens per step [n, W]; best: tokens of a probe's round in the easiest text
        """
        due = (columns == 0) & (self._quiet[seats] >= self._patience[seats])
        if not due.any():
            return
        rows = self._costs.rows
        best = (best + self._costs.num_certain) / self._costs.steps
        due &= self._cap[seats] >= self._widths[_PROBE_COLUMN]
        # Only where drafts seem useless; where they are but too expensive, all is known.
        due &= (gains <= 1.0 + _STICKINESS).all(1)
        if best - 1 <= price * (rows[_PROBE_COLUMN] - rows[0]):
            return
        columns[due] = _PROBE_COLUMN
        chosen = seats[due]
        self._is_probe[chosen] = True
        self.counts.num_probes += int(chosen.size)

    def _end_probes(self, seats: IntArray, confirmed: IntArray) -> None:
        """Be more patient after a probe that found nothing, in this sequence and in new ones."""
        found = confirmed >= _PROBE_SUCCESS
        self._patience[seats[found]] = _FIRST_QUIET_TOKENS
        probes = self._is_probe[seats]
        if not probes.any():
            return
        failed = seats[probes & ~found]
        self._patience[failed] = np.minimum(2 * self._patience[failed], _LONGEST_QUIET_TOKENS)
        self._is_probe[seats[probes]] = False
        num_found = int((found & probes & ~self._is_seeded[seats]).sum())
        num_failed = int((~found & probes & ~self._is_seeded[seats]).sum())
        patience = self._first_patience * 1.1**num_failed / 2.0**num_found
        self._first_patience = min(max(patience, _FIRST_QUIET_TOKENS), _LONGEST_QUIET_TOKENS)

    def _current_price(self, num_starting: int, load: Load) -> float:
        """The price per row at which the batch gains most for the time it takes."""
        ours = load.running[~self._is_seeded[load.running]]
        if self._num_calls % (1 + ours.size // _LOOKUP_SEQUENCES) == 0:
            self._by_price = self._look_up(ours)
        had_prompts, self._had_prompts = self._had_prompts, load.prompt_rows > 0
        is_due = self._num_calls % (1 + ours.size // _STEADY_SEQUENCES) == 0
        self._num_calls += 1
        if not (is_due or had_prompts or self._had_prompts):
            return self.price
        gained, rows, scored = self._by_price[:3]
        latents = self._by_price[3] if self._costs.has_latents else None
        entries, pending = float(load.cache_entries), float(load.pending_rows)
        other = float(load.other_rows)
        seconds = self.step_time.predict(rows + other, scored + other, entries, latents)
        # The time of prompts is the same for every choice, in the long run: it counts only where
        # it meets drafts in one step.
        rates = (gained + load.num_others) / seconds
        steady = int(rates.argmax())
        # Those that start draft in this step and verify in the next, when the others start, which
        # pay the steady price. Which ones start is taken to be chance.
        share = num_starting / max(ours.size, 1)
        own_rows, own_scored = share * rows, share * scored
        rest_rows = other + (1 - share) * float(rows[steady])
        rest_scored = other + (1 - share) * float(scored[steady])
        time = self.step_time.predict(
            own_rows + (other + load.prompt_rows + pending),
            own_scored + (other + pending),
            entries,
            latents,
        )
        time += self.step_time.predict(
            own_rows + rest_rows, own_scored + rest_scored, entries, latents
        )
        return self._chosen_price(2 * share * gained, time, float(rates[steady]), rows)

    def _look_up(self, ours: IntArray) -> FloatArray:
        """Of all of ours, at every price [4, P]: tokens gained per step, rows, scored rows.

        And whether any holds latents.
        """
        counts, caps, tokens = self.acceptance.group_tokens(ours, self._cap[ours])
        tokens += self._costs.num_certain
        tokens *= 1 / self._costs.steps
        tokens[:, 0] = 1.0
        tokens[self._narrower >= caps[:, None]] = 0.0
        columns = (tokens - self._paid).argmax(2)  # [P, L]
        chosen = np.stack(
            (
                tokens[_LEVEL_NUMBERS, columns],
                self._costs.rows[columns],
                self._costs.scored_rows[columns],
            )
        )
        sums = np.zeros((4, _NUM_PRICES))
        sums[:3] = chosen @ counts
        if self._costs.has_latents:
            sums[3] = ((columns > 0) & (counts > 0)).any(1)
        # Our sequences pay prices around each price.
        sums[:, 1:-1] = (sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]) / 3
        return sums

    def _chosen_price(
        self, gained: FloatArray, seconds: FloatArray, rate: float, rows: FloatArray
    ) -> float:
        """The price at which what is gained outweighs most what its time is worth: all are [P]."""
        value = gained - rate * seconds
        best = int(value.argmax())
        self._row_worth = rate * self.step_time.row_price(float(rows[best]))
        # Prices that lead to the same choices are equally good; what a row is worth by itself is
        # the one among them that also suits a sequence unlike the others.
        good = _PRICES[value >= value[best] - _INDIFFERENCE * gained[best]]
        return float(min(max(self._row_worth, good[-1]), good[0]))

    def _within_budget(self, columns: IntArray, budget_rows: int) -> IntArray:
        """Narrow the widest rounds until their rows fit; the least urgent ones first."""
        most = self._costs.most_rows
        while (over := int(most[columns].sum()) - budget_rows) > 0 and columns.any():
            top = int(columns.max())
            widest = np.flatnonzero(columns == top)
            needed = -(-over // int(most[top] - most[top - 1]))
            columns[widest[-needed:]] -= 1
        return columns

    def _note(self, seats: IntArray, columns: IntArray) -> None:
        before = self._column[seats]
        self._column[seats] = columns
        is_single = columns == 0
        self._quiet[seats] = np.where(is_single, self._quiet[seats] + 1, 0)
        counts = self.counts
        counts.num_switches += int((before != columns).sum())
        counts.num_handed_to_ar += int((is_single & (before > 0)).sum())
        counts.chosen += np.bincount(columns, minlength=self._widths.size)
