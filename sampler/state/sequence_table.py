"""`SequenceTable`: the running state of every sequence, as arrays with one line per seat.

A sequence sits in one seat from its admission to its end, also while it is preempted. Entries
of the cache are counted by rank; `order` maps a rank to its position, and is None for models
that decode left to right, where both are the same.

Invariants (`check`):

    0 <= settled <= final <= canvas_stop <= room
    no final position is open, and none outside the canvas is
    pages cover settled entries
    no position stands twice in the order
"""

from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request, TokenKind, is_special
from sampler.state.decoding import Decoding
from sampler.state.latent_table import LatentTable

IntArray = NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

TOKEN_KINDS = (TokenKind.AR, TokenKind.DIFFUSION, TokenKind.VERIFIED)

NO_LIMIT = 1 << 62
NEVER_EDIT = 2.0

_FIRST_COLUMNS = 512


class SeatState(IntEnum):
    """What a seat is used for."""

    EMPTY = 0
    RUNNING = 1
    PAUSED = 2  # preempted: gave up its pages, waits to run again


class Stage(IntEnum):
    """What a running sequence does next.

    SETTLE: settle what is final; the last row draws the next token
    DRAFT:  draft the canvas, settling what is final on the way where the family allows it
    VERIFY: settle, and run the proposals of the canvas to confirm them
    """

    SETTLE = 0
    DRAFT = 1
    VERIFY = 2


class SequenceTable:
    """Arrays [seats] and [seats, positions]; written by `Scheduler` only.

    tokens [N, C] int32:   token ids by position
    is_open [N, C] bool:   the position has no token yet
    attempts [N, C] int32: how often the position has been drafted; numbers its draft noise
    order [N, C] int32:    position of each rank, or None
    pages [N, P] int32:    page numbers in cache order
    prompt_length, limit:  tokens of the prompt; prompt and answer together at most
    final, settled:        ranks that are final; ranks whose keys and values are in the cache
    prompt_stop:           rank up to which settling counts as prompt work: what was final when
                           the sequence was admitted or resumed
    canvas_stop:           end of the canvas in ranks; equals `final` when there is none
    emitted:               positions already sent to the client, prompt included
    steps:                 forwards with rows of the sequence after its prompt
    kind_counts [N, 3]:    sent answer tokens by how they came, in the order of `TOKEN_KINDS`

    Of sequences that draft (`Decoding` explains the knobs):

    kinds [N, C] int8:     how each token came, an index of `TOKEN_KINDS`
    is_fixed [N, C] bool:  a known token inside the canvas that no edit may change
    confidence [N, C]:     probability of each token when it was accepted
    stage:                 `Stage`
    room:                  end of the last canvas in ranks, at least `limit`
    canvas_steps:          drafting steps of the canvas so far
    edit_steps:            of them, those after its last position was filled
    part_steps:            drafting steps since acceptance moved to its present part
    part_start, part_open: that part's first position; its open positions when it began
    carry:                 positions a schedule still owes (threshold_in_quota)
    num_drafts:            masks that the next step drafts (any-order families)
    ar_until:              end of the canvas that was handed to AR; its positions come one by one
    round_width:           rows of the window that is drafted and verified now; 0 decodes by AR
    width_now:             positions of the canvas at present (latent canvases)
    branches:              `Branches`: for which acceptances a verifying step drafts on
    most_entries:          of one sequence, what all pages together hold
    latents:               `LatentTable` of a family with latent canvases, or None
    draws_mask:            a row drew the mask token and nothing was accepted: it is forbidden
                           in the next step
    """

    def __init__(
        self, *, num_seats: int, max_context: int, page_size: int, any_order: bool
    ) -> None:
        self.num_seats = num_seats
        self.max_context = max_context
        self.page_size = page_size
        self.most_entries = NO_LIMIT
        self.latents: LatentTable | None = None
        self._allocate_texts(any_order)
        self._allocate_progress()
        self._allocate_sampling()
        self._allocate_decoding()

    def _allocate_texts(self, any_order: bool) -> None:
        """Arrays by position, widened as longer requests come."""
        num_seats = self.num_seats
        columns = min(self.max_context, _FIRST_COLUMNS)
        self.tokens = np.zeros((num_seats, columns), dtype=np.int32)
        self.is_open = np.zeros((num_seats, columns), dtype=np.bool_)
        self.attempts = np.zeros((num_seats, columns), dtype=np.int32)
        self.order = np.zeros((num_seats, columns), dtype=np.int32) if any_order else None
        self.pages = np.zeros((num_seats, -(-columns // self.page_size)), dtype=np.int32)
        self.kinds = np.zeros((num_seats, columns), dtype=np.int8)
        self.is_fixed = np.zeros((num_seats, columns), dtype=np.bool_)
        self.confidence = np.zeros((num_seats, columns), dtype=np.float32)

    def _allocate_progress(self) -> None:
        """How far each sequence is."""
        num_seats = self.num_seats
        self.num_pages = _zeros(num_seats)
        self.state = np.full(num_seats, SeatState.EMPTY, dtype=np.int8)
        self.prompt_length = _zeros(num_seats)
        self.limit = _zeros(num_seats)
        self.final = _zeros(num_seats)
        self.settled = _zeros(num_seats)
        self.prompt_stop = _zeros(num_seats)
        self.canvas_stop = _zeros(num_seats)
        self.emitted = _zeros(num_seats)
        self.steps = _zeros(num_seats)
        self.kind_counts = np.zeros((num_seats, len(TOKEN_KINDS)), dtype=np.int64)
        self.stage = np.zeros(num_seats, dtype=np.int8)
        self.room = _zeros(num_seats)
        self.canvas_steps = _zeros(num_seats)
        self.edit_steps = _zeros(num_seats)
        self.part_steps = _zeros(num_seats)
        self.part_start = _zeros(num_seats)
        self.part_open = _zeros(num_seats)
        self.carry = _zeros(num_seats)
        self.num_drafts = _zeros(num_seats)
        self.round_width = _zeros(num_seats)
        self.ar_until = _zeros(num_seats)
        self.draws_mask = np.zeros(num_seats, dtype=np.bool_)
        self.needs_refresh = np.zeros(num_seats, dtype=np.bool_)
        self.priority = _zeros(num_seats)
        self.arrival = _zeros(num_seats)

    def _allocate_sampling(self) -> None:
        """How tokens are drawn."""
        num_seats = self.num_seats
        self.seeds = _zeros(num_seats)
        self.min_length = _zeros(num_seats)
        self.temperature = np.zeros(num_seats, dtype=np.float32)
        self.top_k = np.zeros(num_seats, dtype=np.int32)
        self.top_p = np.ones(num_seats, dtype=np.float32)
        self.min_p = np.zeros(num_seats, dtype=np.float32)
        self.ignores_eos = np.zeros(num_seats, dtype=np.bool_)
        self.has_stop_ids = np.zeros(num_seats, dtype=np.bool_)
        # Seats whose scores or deltas need more than the vectorised path (`is_special`).
        self.is_special = np.zeros(num_seats, dtype=np.bool_)

    def _allocate_decoding(self) -> None:
        """How drafts are made and accepted (`Decoding`)."""
        num_seats = self.num_seats
        self.mode = np.zeros(num_seats, dtype=np.int8)
        self.is_auto = np.zeros(num_seats, dtype=np.bool_)
        self.width = _zeros(num_seats)
        self.block_length = _zeros(num_seats)
        self.sub_block_length = _zeros(num_seats)
        self.rule = _zeros(num_seats)
        self.preference = _zeros(num_seats)
        self.schedule = _zeros(num_seats)
        self.quota = _zeros(num_seats)
        self.steps_planned = _zeros(num_seats)
        self.max_edit_steps = _zeros(num_seats)
        self.max_steps = _zeros(num_seats)
        self.cache_kind = _zeros(num_seats)
        self.threshold = np.zeros(num_seats, dtype=np.float32)
        self.distance_weight = np.zeros(num_seats, dtype=np.float32)
        self.edit_confidence = np.zeros(num_seats, dtype=np.float32)
        self.alpha_0 = np.zeros(num_seats, dtype=np.float64)
        self.remask = np.zeros(num_seats, dtype=np.float32)
        self.by_ratio = np.zeros(num_seats, dtype=np.bool_)
        self.sub_context = _zeros(num_seats)
        self.branches = _zeros(num_seats)
        self.width_now = _zeros(num_seats)

    def seat(self, request: Request, decoding: Decoding, *, number: int, seed: int) -> int:
        """Put a request into an empty seat; `number` is its place in the order of arrival.

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
        self.prompt_length[seat] = self.final[seat] = self.canvas_stop[seat] = length
        self.prompt_stop[seat] = self.emitted[seat] = length
        self.limit[seat] = self.room[seat] = length + params.max_tokens
        self.min_length[seat] = length + params.min_tokens
        self.settled[seat] = self.num_pages[seat] = self.steps[seat] = 0
        self.kind_counts[seat] = 0
        self.priority[seat] = request.priority
        self.arrival[seat] = number
        self.seeds[seat] = seed
        self.temperature[seat] = params.temperature
        self.top_k[seat] = params.top_k
        self.top_p[seat] = params.top_p
        self.min_p[seat] = params.min_p
        self.ignores_eos[seat] = params.ignore_eos
        self.has_stop_ids[seat] = bool(params.stop_token_ids)
        self.is_special[seat] = is_special(params)
        self._take_decoding(seat, decoding)
        return seat

    def _take_decoding(self, seat: int, decoding: Decoding) -> None:
        self.stage[seat] = Stage.SETTLE
        for array in (self.canvas_steps, self.edit_steps, self.part_steps, self.part_start):
            array[seat] = 0
        self.ar_until[seat] = 0
        for array in (self.part_open, self.carry, self.num_drafts, self.round_width):
            array[seat] = 0
        self.draws_mask[seat] = False
        self.needs_refresh[seat] = True
        self.mode[seat] = decoding.mode
        self.is_auto[seat] = decoding.is_auto
        self.width[seat] = decoding.width
        self.block_length[seat] = decoding.block_length
        self.sub_block_length[seat] = decoding.sub_block_length
        self.rule[seat] = decoding.rule
        self.preference[seat] = decoding.preference
        self.schedule[seat] = decoding.schedule
        self.quota[seat] = decoding.quota
        self.steps_planned[seat] = decoding.steps
        self.max_edit_steps[seat] = decoding.max_edit_steps
        self.max_steps[seat] = decoding.max_steps or NO_LIMIT
        self.cache_kind[seat] = decoding.cache
        self.threshold[seat] = decoding.threshold
        self.distance_weight[seat] = decoding.distance_weight
        self.alpha_0[seat] = decoding.alpha_0
        self.remask[seat] = decoding.remask
        self.by_ratio[seat] = decoding.by_ratio
        self.sub_context[seat] = decoding.sub_context
        self.branches[seat] = decoding.branches
        self.width_now[seat] = decoding.width
        if self.latents is not None:
            self.latents.take_knobs(seat, decoding.latent)
        # Probabilities never exceed 1, so that this threshold never edits.
        edit = decoding.edit_confidence
        self.edit_confidence[seat] = NEVER_EDIT if edit is None else edit

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

    def _reserve(self, length: int) -> None:
        """Make room for `length` positions in every seat, doubling what there is."""
        columns = self.tokens.shape[1]
        if length <= columns:
            return
        columns = min(max(2 * columns, length), max(self.max_context, length))
        self.tokens = _widened(self.tokens, columns)
        self.is_open = _widened(self.is_open, columns)
        self.is_fixed = _widened(self.is_fixed, columns)
        self.attempts = _widened(self.attempts, columns)
        self.kinds = _widened(self.kinds, columns)
        self.confidence = _widened(self.confidence, columns)
        if self.order is not None:
            self.order = _widened(self.order, columns)
        self.pages = _widened(self.pages, -(-columns // self.page_size))


def _zeros(length: int) -> IntArray:
    return np.zeros(length, dtype=np.int64)


def _widened(array: NDArray[_T], columns: int) -> NDArray[_T]:
    wider = np.zeros((array.shape[0], columns), dtype=array.dtype)
    wider[:, : array.shape[1]] = array
    return wider
