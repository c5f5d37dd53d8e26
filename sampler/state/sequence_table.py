"""`SequenceTable`: the running state of every sequence, and the only writer of its columns.

A sequence sits in one seat from its admission to its end, also while it is preempted. Entries
of the cache are counted by rank; `order` maps a rank to its position, and is None for models
that decode left to right, where both are the same.

Invariants (`check`):

    0 <= settled <= final <= canvas_stop <= room
    no final position is open, and none outside the canvas is
    pages cover settled entries
    no position stands twice in the order

Shapes: n seats, or n positions with a seat each.
"""

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request, TokenKind
from sampler.state.decoding import CacheKind, Decoding
from sampler.state.seat_columns import (
    NEVER_EDIT,
    NO_LIMIT,
    TOKEN_KINDS,
    IntArray,
    SeatColumns,
    SeatState,
    Stage,
)

__all__ = [
    "NEVER_EDIT",
    "NO_LIMIT",
    "TOKEN_KINDS",
    "IntArray",
    "SeatState",
    "SequenceTable",
    "Stage",
]

_KIND_NUMBERS = {kind: number for number, kind in enumerate(TOKEN_KINDS)}


class SequenceTable(SeatColumns):
    """What is done to sequences; whoever else needs a column reads it."""

    def seat(
        self, request: Request, decoding: Decoding, *, number: int, seed: int, room: int
    ) -> int:
        """Put a request into an empty seat.

        number: its place in the order of arrival
        room:   where its last canvas may end, in ranks

        Raises RuntimeError when no seat is empty.
        """
        empty = np.flatnonzero(self.state == SeatState.EMPTY)
        if empty.size == 0:
            raise RuntimeError("no seat is empty")
        seat = int(empty[0])
        params = request.params
        length = len(request.prompt)
        wanted = length + params.max_tokens + len(request.suffix) + decoding.block_length
        # Branches of latent rows lie behind the proposals.
        self._reserve(wanted + (0 if self.latents is None else decoding.width * decoding.width))
        for array in (self.is_open, self.is_fixed, self.attempts, self.kinds, self.confidence):
            array[seat] = 0
        self.tokens[seat, :length] = request.prompt
        self.state[seat] = SeatState.RUNNING
        self.prompt_length[seat] = self.emitted[seat] = length
        self.start_at(seat, length)
        self.limit[seat] = length + params.max_tokens
        self.room[seat] = room
        self.min_length[seat] = length + params.min_tokens
        self.settled[seat] = self.num_pages[seat] = self.steps[seat] = 0
        self.kind_counts[seat] = 0
        self.priority[seat] = request.priority
        self.arrival[seat] = number
        self.seeds[seat] = seed
        self._take_sampling(seat, params)
        self._take_decoding(seat, decoding)
        return seat

    def empty(self, seat: int) -> None:
        """The sequence has ended."""
        self.state[seat] = SeatState.EMPTY

    def pause(self, seat: int) -> None:
        """The sequence waits to run again."""
        self.state[seat] = SeatState.PAUSED

    def resume(self, seat: int) -> None:
        """The sequence runs again; what is final counts as its prompt."""
        self.state[seat] = SeatState.RUNNING
        self.prompt_stop[seat] = self.final[seat]
        self.needs_refresh[seat] = True

    # Tokens

    def fill(
        self,
        seats: IntArray,
        positions: IntArray,
        tokens: NDArray[np.integer],
        *,
        kind: TokenKind,
        confidence: NDArray[np.float32] | float,
    ) -> None:
        """Positions [n] take tokens, in place of what stood there before."""
        special = self.is_special[seats]
        if special.any():
            for seat, position, token in _lines(special, seats, positions, tokens):
                self.notes[seat].fill(position, token)
        at = (seats, positions)
        self.tokens[at] = tokens
        self.is_open[at] = False
        self.kinds[at] = _KIND_NUMBERS[kind]
        self.confidence[at] = confidence

    def take_back(self, seats: IntArray, positions: IntArray) -> None:
        """Positions [n] of canvases lose their tokens, if they have any, and are open again."""
        self._forget(seats, positions)
        self.is_open[seats, positions] = True

    def narrow(self, seat: int, stop: int) -> None:
        """The canvas ends at `stop`; what was filled behind loses its tokens."""
        behind = np.arange(stop, int(self.canvas_stop[seat]))
        self._forget(np.full(behind.size, seat), behind)
        self.is_open[seat, behind] = False
        self.canvas_stop[seat] = stop

    def propose(
        self,
        seats: IntArray,
        positions: IntArray,
        tokens: NDArray[np.integer],
        confidence: NDArray[np.float32],
    ) -> None:
        """Open positions [n] take tokens that are to be verified: they stand in no answer yet."""
        at = (seats, positions)
        self.tokens[at] = tokens
        self.confidence[at] = confidence
        self.is_open[at] = False
        self.stage[seats] = Stage.VERIFY

    def propose_behind(
        self, seat: int, tokens: NDArray[np.integer], confidence: NDArray[np.float32] | float
    ) -> None:
        """Tokens [n] behind what is final are to be verified; without any, it only settles."""
        final = int(self.final[seat])
        at = (seat, slice(final, final + tokens.size))
        self.undo.note_part(self, at, "tokens", "confidence")
        self.tokens[at] = tokens
        self.confidence[at] = confidence
        self.canvas_stop[seat] = final + tokens.size
        self.stage[seat] = Stage.VERIFY if tokens.size else Stage.SETTLE

    def place_known(self, seat: int, first: int, tokens: tuple[int, ...]) -> None:
        """Tokens behind the answer are known from the start: no edit changes them."""
        behind = slice(first, first + len(tokens))
        self.tokens[seat, behind] = tokens
        self.is_fixed[seat, behind] = True

    def open_positions(self, seat: int, positions: IntArray | slice) -> None:
        """Positions that have no token yet join a canvas."""
        self.is_open[seat, positions] = True

    def set_order(self, seat: int, first: int, positions: IntArray) -> None:
        """The ranks from `first` on are those of these positions."""
        assert self.order is not None, "the family keeps an order"
        self.order[seat, first : first + positions.size] = positions

    def count_drafts(self, seats: IntArray, positions: IntArray) -> None:
        """Positions [n] were drafted once more."""
        self.attempts[seats, positions] += 1

    # Progress

    def count_forward(self, seats: IntArray) -> None:
        """A forward scored rows of the sequences."""
        self.steps[seats] += 1

    def start_at(self, seat: int, stop: int) -> None:
        """So much is known from the start, and is prompt."""
        self.final[seat] = self.canvas_stop[seat] = self.prompt_stop[seat] = stop

    def skip_prompt(self, seat: int) -> None:
        """Nothing of the sequence counts as prompt work: it never settles."""
        self.prompt_stop[seat] = 0

    def finish(self, seats: IntArray | int, stops: IntArray | int) -> None:
        """What lies before `stops` is final, and there is no canvas behind."""
        self.final[seats] = stops
        self.canvas_stop[seats] = stops

    def finish_part(self, seat: int, stop: int) -> None:
        """What lies before `stop` is final; the canvas goes on behind."""
        self.final[seat] = stop

    def settle(self, seats: IntArray | int, stops: IntArray | int) -> None:
        """The cache has what lies before `stops`."""
        self.settled[seats] = stops

    def cut_backlog(self, seat: int) -> None:
        """More to settle than a canvas ever leaves may be cut to the budget, as a prompt is."""
        backlog = self.final[seat] - self.settled[seat]
        if backlog > self.canvas_stop[seat] - self.final[seat]:
            self.prompt_stop[seat] = self.final[seat]

    def set_stage(self, seats: IntArray | int, stage: Stage) -> None:
        """What the sequences do next."""
        self.stage[seats] = stage

    def emit(self, seats: IntArray | int, stops: IntArray | int, kinds: IntArray) -> None:
        """What lies before `stops` was sent; kinds [n, 3] of the new tokens by `TOKEN_KINDS`."""
        self.emitted[seats] = stops
        self.kind_counts[seats] += kinds

    # Canvases

    def open_canvas(
        self, seat: int, stop: int, *, part_start: int, part_open: int, known: int | None = None
    ) -> None:
        """A canvas from `final` to `stop` is drafted from now on.

        part_start, part_open: where acceptance begins, and how many positions are open there
        known: the position before which tokens of the canvas are known; None for none
        """
        if known is not None:
            self.is_fixed[seat, self.final[seat] : known] = True
        self.begin_canvas(seat, stop)
        self.edit_steps[seat] = self.part_steps[seat] = self.carry[seat] = 0
        self.part_start[seat] = part_start
        self.part_open[seat] = part_open
        self.needs_refresh[seat] = True

    def begin_canvas(self, seat: int, stop: int) -> None:
        """A canvas without parts, from `final` to `stop`, is drafted from now on."""
        self.canvas_stop[seat] = stop
        self.stage[seat] = Stage.DRAFT
        self.canvas_steps[seat] = 0

    def slide_canvas(self, seat: int, stop: int) -> None:
        """The canvas begins at what is not final now, and ends at `stop`, not before its end."""
        self.part_start[seat] = self.final[seat]
        self.canvas_stop[seat] = stop
        self.stage[seat] = Stage.DRAFT

    def open_rounds(self, seats: IntArray, stops: IntArray, *, drafts: NDArray[np.bool_]) -> None:
        """Where `drafts` [n], positions from `final` to `stops` are drafted, then verified."""
        final = self.final[seats]
        lines = _lines(drafts, seats, final, stops)
        # No position outside a canvas is open, and there was none.
        self.undo.note(lambda: self._set_open(lines, is_open=False))
        self._set_open(lines, is_open=True)
        self.canvas_stop[seats] = np.where(drafts, stops, final)
        self.stage[seats] = np.where(drafts, Stage.DRAFT, Stage.SETTLE)
        self.round_width[seats] = np.where(drafts, stops - final + 1, 0)

    def plan_drafts(
        self, seats: IntArray | int, counts: IntArray | int, *, widths: IntArray | int
    ) -> None:
        """So many positions are drafted next; widths of rounds, 0 where nothing verifies them."""
        self.num_drafts[seats] = counts
        self.round_width[seats] = widths

    def set_schedule(self, seat: int, counts: IntArray) -> None:
        """So many positions are drafted in each step of the canvas [steps]."""
        self.draft_counts[seat, : counts.size] = counts
        self.draft_counts[seat, counts.size :] = 0
        self.draft_step[seat] = 0

    def next_scheduled(self, seat: int) -> int:
        """How many positions the schedule drafts now; the next call says the step after."""
        count = int(self.draft_counts[seat, self.draft_step[seat]])
        self.draft_step[seat] += 1
        return count

    def count_steps(self, seats: IntArray, accepted: IntArray, edited: IntArray) -> None:
        """Canvases were drafted once, and so many positions [n] filled, and edited."""
        owed = self.part_open[seats] // self.steps_planned[seats] + self.carry[seats]
        self.carry[seats] = np.maximum(owed - accepted, 0)
        self.canvas_steps[seats] += 1
        self.part_steps[seats] += 1
        self.needs_refresh[seats] = self.cache_kind[seats] == CacheKind.NONE
        self.draws_mask[seats] = accepted + edited == 0

    def count_canvas_step(self, seat: int) -> None:
        """A canvas without parts was drafted once."""
        self.canvas_steps[seat] += 1

    def count_edit_step(self, seat: int) -> None:
        """A full canvas was drafted once more."""
        self.edit_steps[seat] += 1

    def wait(self, seats: IntArray, steps: IntArray) -> None:
        """So many steps [n] have passed since the canvases last took a token."""
        self.part_steps[seats] = steps

    def set_width(self, seat: int, width: int) -> None:
        """The canvas is to be so wide from now on."""
        self.width_now[seat] = width

    def hand_to_ar(self, seat: int, first: int) -> None:
        """Give the canvas up from `first` on: its positions come one by one."""
        stop = int(self.canvas_stop[seat])
        self.narrow(seat, first)
        self.finish(seat, first)
        self.stage[seat] = Stage.SETTLE
        self.ar_until[seat] = stop

    def set_part(self, seat: int, num_open: int) -> None:
        """So many positions of a canvas that is one part are open."""
        self.part_open[seat] = num_open

    def move_part(self, seat: int) -> None:
        """Acceptance goes on in the leftmost part of the canvas that has open positions."""
        start, stop = int(self.part_start[seat]), int(self.canvas_stop[seat])
        length = int(self.sub_block_length[seat])
        while start + length < stop and not self.is_open[seat, start : start + length].any():
            start += length
        if start != self.part_start[seat]:
            self.part_start[seat] = start
            self.part_steps[seat] = 0
            self.needs_refresh[seat] = True
            part_stop = min(start + length, stop)
            self.part_open[seat] = int(self.is_open[seat, start:part_stop].sum())

    def has_open(self, seat: int) -> bool:
        """Whether the canvas has an open position."""
        return bool(self.is_open[seat, self.final[seat] : self.canvas_stop[seat]].any())

    def _forget(self, seats: IntArray, positions: IntArray) -> None:
        special = self.is_special[seats]
        if special.any():
            for seat, position in _lines(special, seats, positions):
                self.notes[seat].take_back(position)

    def _set_open(self, lines: list[tuple[int, ...]], *, is_open: bool) -> None:
        for seat, first, stop in lines:
            self.is_open[seat, first:stop] = is_open

    def text(self, seat: int, stop: int | None = None) -> NDArray[np.int32]:
        """Token ids of positions before `stop` (by default, of all final ones), a view."""
        return self.tokens[seat, : self.final[seat] if stop is None else stop]

    def running(self) -> IntArray:
        """Seats that run, most urgent first: by priority, then by arrival."""
        seats = np.flatnonzero(self.state == SeatState.RUNNING)
        return seats[np.lexsort((self.arrival[seats], self.priority[seats]))]

    def paused(self) -> IntArray:
        """Seats that wait to run again, most urgent first."""
        seats = np.flatnonzero(self.state == SeatState.PAUSED)
        return seats[np.lexsort((self.arrival[seats], self.priority[seats]))]

    def add_page(self, seat: int, page: int) -> None:
        """Append a page to the seat's part of the cache."""
        self.pages[seat, self.num_pages[seat]] = page
        self.num_pages[seat] += 1

    def take_pages(self, seat: int) -> list[int]:
        """Take all pages away from the seat, which then has nothing settled."""
        pages: list[int] = self.pages[seat, : self.num_pages[seat]].tolist()
        self.num_pages[seat] = 0
        self.settled[seat] = 0
        return pages

    @property
    def num_open_pages(self) -> int:
        """Pages that settled entries do not fill, of sequences with an open canvas."""
        is_open = self.canvas_stop > self.final
        return int((self.num_pages - self.settled // self.page_size)[is_open].sum())

    def check(self, seat: int) -> None:
        """Raise AssertionError when an invariant does not hold."""
        settled, final = self.settled[seat], self.final[seat]
        stop, room = self.canvas_stop[seat], self.room[seat]
        assert 0 <= settled <= final <= stop <= room, (settled, final, stop, room)
        assert self.num_pages[seat] * self.page_size >= settled, "pages cover what is settled"
        ranks = np.arange(final) if self.order is None else self.order[seat, :final]
        assert not self.is_open[seat, ranks].any(), "a final position is open"
        if self.order is not None:
            assert np.unique(self.order[seat, :stop]).size == stop, "a position has two ranks"


def _lines(chosen: NDArray[np.bool_], *columns: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """The chosen lines of columns [n], as Python numbers."""
    return list(zip(*(column[chosen].tolist() for column in columns), strict=True))
