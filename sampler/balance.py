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

import numpy as np
from numpy.typing import NDArray

from sampler.acceptance_model import LEVELS, AcceptanceModel
from sampler.step_time import FloatArray, StepTimeModel

IntArray = NDArray[np.int64]

# Width 0 is AR; a window of one row drafts nothing.
WIDTHS = (0, 2, 4, 8, 16, 32, 64, 128)
WIDEST = WIDTHS[-1]
_STEPS_OF_A_ROUND = 2
# Tokens per row; below the first no row is worth the electricity, and at the last every
# sequence decodes by AR, as no draft is confirmed more often than always.
_PRICES = np.geomspace(1.0, 1 / 512, 40)
# What a request with a seed pays, at any load: that of a lightly loaded machine.
_PRICE_OF_SEEDED = 1 / 32
_PRICE_EVERY_CALLS = 4
# A sequence keeps its width unless another gains so much more, as a share of its gain.
_STICKINESS = 0.04
# A sequence that decodes by AR drafts again after so many tokens, to see whether the text has
# changed; the stretch doubles with every failure.
_FIRST_QUIET_TOKENS = 64
_LONGEST_QUIET_TOKENS = 512
_PROBE_COLUMN = 2
_PROBE_SUCCESS = 2
_LOAD_RATE = 0.1


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What a round costs per step, by width: each is [W], the first entry is AR.

    rows:        rows of the network
    scored_rows: rows whose scores are computed
    most_rows:   rows of the larger one of its two steps, [W] int64
    """

    rows: FloatArray
    scored_rows: FloatArray
    most_rows: IntArray


def canvas_costs() -> RoundCosts:
    """Left to right: a window of w rows is drafted, then the same w rows verify it."""
    widths = np.array(WIDTHS, dtype=np.float64)
    rows, scored = widths.copy(), widths - 0.5
    rows[0] = scored[0] = 1.0
    return RoundCosts(rows=rows, scored_rows=scored, most_rows=rows.astype(np.int64))


def rank_costs() -> RoundCosts:
    """Any order: w masks are drafted, then w tokens and w masks behind them verify; one settles."""
    widths = np.array(WIDTHS, dtype=np.float64)
    rows, scored = (3 * widths + 1) / _STEPS_OF_A_ROUND, widths.copy()
    rows[0], scored[0] = 2.0, 1.0
    most = (2 * widths + 1).astype(np.int64)
    most[0] = 2
    return RoundCosts(rows=rows, scored_rows=scored, most_rows=most)


@dataclass(frozen=True, slots=True)
class Load:
    """What the batch looks like when widths are chosen.

    running:       seats that run
    budget_rows:   rows that the sequences which start a round may take in this step
    cache_entries: entries that all running sequences see
    """

    running: IntArray
    budget_rows: int
    cache_entries: int


@dataclass(slots=True)
class BalanceCounts:
    """Counted up from the start; `chosen` by width, in the order of `WIDTHS`."""

    chosen: list[int]
    num_switches: int = 0
    num_handed_to_ar: int = 0
    num_probes: int = 0


class Balance:
    """Chooses widths, and learns from what rounds and steps turned out to be."""

    def __init__(
        self, *, num_seats: int, costs: RoundCosts, step_time: StepTimeModel | None = None
    ) -> None:
        self.step_time = step_time if step_time is not None else StepTimeModel()
        self.acceptance = AcceptanceModel(num_seats=num_seats, widths=WIDTHS, learns=True)
        self.price = float(_PRICES[-1])
        self.counts = BalanceCounts(chosen=[0] * len(WIDTHS))
        self._costs = costs
        # A request with a seed sees tables and a price that nobody else can change.
        self._fixed = AcceptanceModel(num_seats=num_seats, widths=WIDTHS, learns=False)
        self._is_auto = np.zeros(num_seats, dtype=np.bool_)
        self._is_seeded = np.zeros(num_seats, dtype=np.bool_)
        self._cap = np.zeros(num_seats, dtype=np.int64)
        self._column = np.zeros(num_seats, dtype=np.int64)
        self._quiet = np.zeros(num_seats, dtype=np.int64)
        self._patience = np.zeros(num_seats, dtype=np.int64)
        self._other_rows = 0.0
        self._num_calls = 0
        self._widths = np.array(WIDTHS)
        # Of every candidate price: rows of a sequence, by choice.
        self._paid = _PRICES[:, None, None] * costs.rows

    def seat(self, seat: int, *, cap: int, is_seeded: bool) -> None:
        """Begin a sequence whose rounds may be up to `cap` rows wide."""
        self._is_auto[seat] = True
        self._is_seeded[seat] = is_seeded
        self._cap[seat] = cap
        self._column[seat] = self._quiet[seat] = 0
        self._patience[seat] = _FIRST_QUIET_TOKENS
        self.acceptance.seat(seat)
        self._fixed.seat(seat)

    def leave(self, seat: int) -> None:
        """Forget a sequence; also one whose widths were never chosen here."""
        self._is_auto[seat] = False

    def choose(self, starting: IntArray, load: Load) -> IntArray:
        """Widths [n] for the sequences that start a round, most urgent first; 0 is AR."""
        seeded = self._is_seeded[starting]
        if not seeded.any():
            columns = self._columns(self.acceptance, starting, self._current_price(load))
        else:
            columns = np.empty(starting.size, dtype=np.int64)
            columns[seeded] = self._columns(self._fixed, starting[seeded], _PRICE_OF_SEEDED)
            if not seeded.all():
                columns[~seeded] = self._columns(
                    self.acceptance, starting[~seeded], self._current_price(load)
                )
        columns = self._within_budget(columns, load.budget_rows)
        self._note(starting, columns)
        widths: IntArray = np.minimum(self._widths[columns], self._cap[starting])
        return widths

    def observe_rounds(
        self, seats: IntArray, offered: IntArray, confirmed: IntArray, uncertainty: FloatArray
    ) -> None:
        """Take in how the rounds of sequences ended (`AcceptanceModel.observe_rounds`)."""
        self._patience[seats[confirmed >= _PROBE_SUCCESS]] = _FIRST_QUIET_TOKENS
        seeded = self._is_seeded[seats]
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

    def observe_plan(self, seats: IntArray, rows: IntArray) -> None:
        """Take in what a step will run, `rows` of each of `seats`: the load that is not ours."""
        is_ours = self._is_auto[seats] & ~self._is_seeded[seats]
        self._other_rows += _LOAD_RATE * (float(rows[~is_ours].sum()) - self._other_rows)

    def _columns(self, model: AcceptanceModel, seats: IntArray, price: float) -> IntArray:
        """The best choice of each sequence at a price per row, an index of `WIDTHS`."""
        gains = self._gains(model, seats)
        values = gains - price * self._costs.rows
        values[self._widths >= 2 * self._cap[seats][:, None]] = -np.inf
        lines = np.arange(seats.size)
        values[lines, self._column[seats]] += _STICKINESS
        columns: IntArray = values.argmax(1)
        self._probe(model, seats, columns, price)
        return columns

    def _gains(self, model: AcceptanceModel, seats: IntArray) -> FloatArray:
        """Expected tokens per step [n, W]."""
        gains = model.expected_tokens(seats)
        gains *= 1 / _STEPS_OF_A_ROUND
        gains[:, 0] = 1.0
        return gains

    def _probe(
        self, model: AcceptanceModel, seats: IntArray, columns: IntArray, price: float
    ) -> None:
        """Let sequences that have been quiet for long draft once, where easy text would pay."""
        due = (columns == 0) & (self._quiet[seats] >= self._patience[seats])
        if not due.any():
            return
        rows = self._costs.rows
        best = model.best_expected(_PROBE_COLUMN) / _STEPS_OF_A_ROUND
        due &= self._cap[seats] >= WIDTHS[_PROBE_COLUMN]
        if best - 1 <= price * (rows[_PROBE_COLUMN] - rows[0]):
            return
        columns[due] = _PROBE_COLUMN
        chosen = seats[due]
        self._patience[chosen] = np.minimum(2 * self._patience[chosen], _LONGEST_QUIET_TOKENS)
        self.counts.num_probes += int(chosen.size)

    def _current_price(self, load: Load) -> float:
        """The price per row at which the batch gains most per second; looked up now and then."""
        if self._num_calls % _PRICE_EVERY_CALLS == 0:
            ours = load.running[self._is_auto[load.running] & ~self._is_seeded[load.running]]
            if ours.size:
                self.price = self._best_price(ours, load.cache_entries)
        self._num_calls += 1
        return self.price

    def _best_price(self, seats: IntArray, cache_entries: int) -> float:
        # Sequences of the same level are counted together, with the mean of their gains.
        member = self.acceptance.levels(seats) == np.arange(len(LEVELS))[:, None]  # [L, n]
        count = member.sum(1)
        gains = member @ self._gains(self.acceptance, seats)
        gains /= np.maximum(count, 1)[:, None]  # [L, W]
        columns = (gains - self._paid).argmax(2)  # [P, L]
        levels = np.arange(len(LEVELS))
        gained = gains[levels, columns] @ count
        rows = self._costs.rows[columns] @ count
        scored = self._costs.scored_rows[columns] @ count
        other = self._other_rows
        seconds = self.step_time.predict(rows + other, scored, float(cache_entries))
        return float(_PRICES[(gained / seconds).argmax()])

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
        for column, count in enumerate(np.bincount(columns, minlength=len(WIDTHS)).tolist()):
            counts.chosen[column] += count
