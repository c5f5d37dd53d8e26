"""`Scheduler`: which sequences run next, over which entries, in which pages.

A step first serves the sequences that are past their prompt, then prompt chunks up to the row
budget, both in order of urgency (priority, then arrival). When pages run out, the least urgent
sequence is preempted: it gives up its pages and what it had settled, and nothing else.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from sampler.balance.balance import Balance, Load
from sampler.border.engine_config import EngineConfig
from sampler.border.request import Request
from sampler.pages.page_pool import PagePool
from sampler.pages.prefix_cache import PrefixCache
from sampler.seats.constraint import Constraint, Grammars
from sampler.seats.prediction import begin_proposals, endings_for, proposer_for
from sampler.seats.seat_record import SeatRecord
from sampler.seats.waiting_queue import WaitingQueue
from sampler.spans.canvas_spans import CanvasSpans
from sampler.spans.latent_spans import LatentSpans
from sampler.spans.plan import Plan
from sampler.spans.rank_spans import RankSpans
from sampler.spans.span_rule import SpanRule
from sampler.state.decoding import Lookup, resolve_decoding
from sampler.state.sequence_table import IntArray, SeatState, SequenceTable
from weights.families import FamilyRule

log = logging.getLogger(__name__)

# Part of the row budget that drafts leave to waiting prompts: one in so many rows.
_PROMPT_SHARE = 4


class Scheduler:
    """Owns the seats, the queue in front of them, and who holds which page."""

    def __init__(
        self,
        *,
        table: SequenceTable,
        rule: SpanRule,
        family: FamilyRule,
        config: EngineConfig,
        num_pages: int,
        eos_ids: frozenset[int],
        grammars: Grammars | None = None,
        balance: Balance | None = None,
    ) -> None:
        self.table = table
        self.balance = balance
        self.rule = rule
        self.family = family
        cached = config.prefix_caching
        self.prefix_cache = PrefixCache(page_size=table.page_size) if cached else None
        self.pool = PagePool(
            num_pages=num_pages, page_size=table.page_size, on_evict=self._forget_page
        )
        self.max_rows = config.max_rows
        self.eos_ids = eos_ids
        self.waiting = WaitingQueue()
        self.records: list[SeatRecord | None] = [None] * table.num_seats
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._seat_of: dict[str, int] = {}
        self._grammars = grammars
        self._seeds = np.random.default_rng(config.seed)

    @property
    def has_work(self) -> bool:
        """Whether any request waits or sits."""
        return bool(self._seat_of) or len(self.waiting) > 0

    @property
    def num_seated(self) -> int:
        """Requests that have a seat, running or preempted."""
        return len(self._seat_of)

    def record(self, seat: int) -> SeatRecord:
        """The record of an occupied seat."""
        record = self.records[seat]
        assert record is not None, f"seat {seat} is empty"
        return record

    def add(self, request: Request) -> None:
        """Put a request in line."""
        self.waiting.push(request)

    def seat_of(self, request_id: str) -> int | None:
        """The seat of a request, or None when it has none (yet, or any more)."""
        return self._seat_of.get(request_id)

    def release(self, seat: int) -> None:
        """End a sequence: every page and the seat are given back. The only way out of a seat."""
        record = self.record(seat)
        self._give_back_pages(seat)
        self.table.state[seat] = SeatState.EMPTY
        self.records[seat] = None
        del self._seat_of[record.request.id]

    def plan(self, *, now_s: float) -> Plan | None:
        """The next step, with pages for every row of it; None when nothing can run."""
        self._resume()
        self._admit(now_s)
        seats = self.table.running()
        if seats.size == 0:
            return None
        self._begin_rounds(seats, self._propose(seats))
        plan = self._cut_to_budget(self.rule.spans(self.table, seats))
        return self._with_pages(plan)

    def settle(self, plan: Plan) -> None:
        """Record that a step ran: what it settled is in the cache, complete pages get keys."""
        table = self.table
        settles = plan.settle_stop > plan.first
        table.settled[plan.seats[settles]] = plan.settle_stop[settles]
        if self.prefix_cache is None:
            return
        complete = plan.settle_stop // table.page_size
        grown = complete > plan.first // table.page_size
        for seat in plan.seats[grown].tolist():
            self._key_pages(seat)

    def _propose(self, seats: IntArray) -> list[int]:
        """Let sequences that can guess how they go on have their guesses verified; which do."""
        table = self.table
        guessing = [
            (seat, record.proposer)
            for seat in seats.tolist()
            if (record := self.records[seat]) is not None and record.proposer is not None
        ]
        if not guessing:
            return []
        budget = self.max_rows - seats.size
        if (table.settled[seats] < table.prompt_stop[seats]).any():
            budget -= self.max_rows // _PROMPT_SHARE
        # Guesses never take the last pages, which would pause another sequence.
        free_entries = (self.pool.num_available - seats.size) * table.page_size
        prices = np.zeros(table.num_seats)
        if self.balance is not None:
            prices[seats] = np.where(table.is_auto[seats], self.balance.prices(seats), 0.0)
        return begin_proposals(
            table, guessing, budget_rows=min(budget, free_entries), prices=prices
        )

    def _begin_rounds(self, seats: IntArray, guessed: list[int]) -> None:
        """Let sequences that verify drafts draft again, as wide as asked or as balanced.

        guessed: seats that verify guesses and draft nothing
        """
        rule, table = self.rule, self.table
        if self.balance is None or not isinstance(rule, CanvasSpans | RankSpans | LatentSpans):
            return
        starts = rule.starts_round(table, seats) & ~np.isin(seats, guessed)
        starting = seats[starts]
        if starting.size == 0:
            return
        widths = table.width[starting]
        is_auto = table.is_auto[starting]
        if is_auto.any():
            widths[is_auto] = self.balance.choose(starting[is_auto], self._load(seats, starts))
        rule.begin_rounds(table, starting, widths)

    def _load(self, seats: IntArray, starts: NDArray[np.bool_]) -> Load:
        """What the balance must know of the batch: running `seats`, of which some start a round."""
        table = self.table
        settled, prompt_stop = table.settled[seats], table.prompt_stop[seats]
        is_prompt = (settled < prompt_stop) & ~starts
        is_auto = table.is_auto[seats]
        goes_on = ~is_prompt & ~starts
        rows = np.maximum(table.canvas_stop[seats] - settled, 1)
        pending = int(rows[goes_on & is_auto].sum())
        others = int(rows[goes_on & ~is_auto].sum())
        others += int(table.width[seats[starts & ~is_auto]].sum())
        budget = self.max_rows - pending - others
        prompts = int((prompt_stop - settled)[is_prompt].sum())
        if prompts:
            # Drafts leave room for prompts, which otherwise wait for the narrowest widths.
            prompts = min(prompts, max(budget, 0))
            budget -= min(prompts, self.max_rows // _PROMPT_SHARE)
        # So that widening never takes the last pages, which would pause another sequence.
        free_entries = (self.pool.num_available - seats.size) * table.page_size
        return Load(
            running=seats[is_auto & ~is_prompt],
            budget_rows=min(budget, free_entries),
            pending_rows=pending,
            prompt_rows=prompts,
            other_rows=others,
            num_others=int((~is_auto & ~is_prompt).sum()),
            cache_entries=int(settled.sum()),
        )

    def _resume(self) -> None:
        """Let preempted sequences run again while there is room for what they had settled."""
        table = self.table
        for seat in table.paused().tolist():
            if not self._has_room(int(table.canvas_stop[seat])):
                return
            table.state[seat] = SeatState.RUNNING
            self._reuse_prefix(seat)
            table.prompt_stop[seat] = table.final[seat]
            table.needs_refresh[seat] = True

    def _admit(self, now_s: float) -> None:
        """Seat waiting requests while there are seats and room for their prompts."""
        table = self.table
        while (entry := self.waiting.first()) is not None:
            request = entry.request
            if len(self._seat_of) == table.num_seats or (table.state == SeatState.PAUSED).any():
                return
            if not self._has_room(len(request.prompt)):
                return
            self.waiting.pop()
            seed = request.params.seed
            if seed is None:
                seed = int(self._seeds.integers(0, 1 << 62))
            decoding = resolve_decoding(request.params, self.family)
            seat = table.seat(request, decoding, number=entry.number, seed=seed)
            table.room[seat] = self.rule.room(
                request,
                block_length=decoding.block_length,
                context_length=table.max_context,
            )
            self._seat_of[request.id] = seat
            is_beside = decoding.lookup is Lookup.BESIDE
            self.records[seat] = SeatRecord(
                request=request,
                seed=seed,
                stop_ids=self._stop_ids(request),
                page_key=b"",
                constraint=self._constraint(request),
                proposer=proposer_for(request, decoding),
                endings=endings_for(decoding) if is_beside else None,
                scheduled_s=now_s,
            )
            if self.balance is not None:
                cap, is_seeded = decoding.width, request.params.seed is not None
                self.balance.seat(seat, cap=cap, is_seeded=is_seeded)
            self.rule.open_sequence(table, seat, request)
            self.record(seat).cached_tokens = self._reuse_prefix(seat)

    def _constraint(self, request: Request) -> Constraint | None:
        spec = request.params.grammar
        if spec is None:
            return None
        assert self._grammars is not None, "the engine refuses grammars it cannot keep"
        return self._grammars.constraint(spec)

    def _stop_ids(self, request: Request) -> frozenset[int]:
        own = frozenset() if request.params.ignore_eos else self.eos_ids
        return own | frozenset(request.params.stop_token_ids)

    def _has_room(self, length: int) -> bool:
        """Whether pages for so many entries and one more are left, or nobody else runs.

        Pages that running sequences still need for their prompts count as taken.
        """
        table = self.table
        running = np.flatnonzero(table.state == SeatState.RUNNING)
        if running.size == 0:
            return True
        wanted = np.maximum(table.prompt_stop[running], table.canvas_stop[running])
        promised = wanted // table.page_size + 1 - table.num_pages[running]
        needed = length // table.page_size + 1
        return needed + int(promised.clip(min=0).sum()) <= self.pool.num_available

    def _reuse_prefix(self, seat: int) -> int:
        """Share the pages that hold the beginning of the seat's text; how many entries that is."""
        table, record = self.table, self.record(seat)
        record.num_keyed = 0
        if self.prefix_cache is None:
            return 0
        sharing = self.rule.sharing_length(table, seat)
        salt = record.request.cache_salt
        record.page_key = self.prefix_cache.root(sharing, salt)
        if record.request.params.prompt_logprobs is not None:
            return 0
        text = self.rule.shareable_text(table, seat)
        pages, key = self.prefix_cache.match(text, sharing, salt)
        for page in pages:
            self.pool.share(page)
            table.add_page(seat, page)
        record.page_key, record.num_keyed = key, len(pages)
        table.settled[seat] = len(pages) * table.page_size
        self.prefix_queries += len(text)
        self.prefix_hits += int(table.settled[seat])
        return int(table.settled[seat])

    def _cut_to_budget(self, plan: Plan) -> Plan:
        """Fit the spans into the row budget: sequences past their prompt first, then prompts."""
        table = self.table
        is_prompt = table.settled[plan.seats] < table.prompt_stop[plan.seats]
        rows = plan.draft_stop - plan.first
        if not is_prompt.any() and rows.sum() <= self.max_rows:
            return plan
        chosen = np.concatenate((np.flatnonzero(~is_prompt), np.flatnonzero(is_prompt)))
        keep = np.zeros(plan.num_spans, dtype=np.bool_)
        plan = _writable(plan)
        left = self.max_rows
        for span in chosen.tolist():
            if rows[span] <= left:
                keep[span] = True
                left -= int(rows[span])
            elif is_prompt[span]:
                keep[span] = self._cut_span(plan, span, left)
                left = 0
            if left <= 0:
                break
        return plan.keep(keep)

    def _cut_span(self, plan: Plan, span: int, left: int) -> bool:
        """Cut one span's settling part to `left` rows; False when no allowed edge is inside."""
        stop = self.rule.cut(
            self.table,
            int(plan.seats[span]),
            settle_stop=int(plan.settle_stop[span]),
            rows=left,
        )
        if stop <= plan.first[span]:
            return False
        if stop < plan.settle_stop[span]:
            plan.is_cut[span] = True
            plan.settle_stop[span] = stop
        # Only the settling part fits: drafts wait for a step of their own.
        plan.propose_stop[span] = plan.draft_stop[span] = plan.settle_stop[span]
        return True

    def _with_pages(self, plan: Plan) -> Plan | None:
        """Take pages for the plan, preempting the least urgent where they do not suffice."""
        table = self.table
        missing = -(-plan.draft_stop // table.page_size) - table.num_pages[plan.seats]
        if missing.max(initial=0) <= 0:
            return plan if plan.num_spans else None
        for span in np.flatnonzero(missing > 0).tolist():
            seat = int(plan.seats[span])
            while (
                table.state[seat] == SeatState.RUNNING and self.pool.num_available < missing[span]
            ):
                self._preempt(int(table.running()[-1]))
            if table.state[seat] == SeatState.RUNNING:
                self._take_pages(seat, int(missing[span]))
        plan = plan.keep(table.state[plan.seats] == SeatState.RUNNING)
        return plan if plan.num_spans else None

    def _take_pages(self, seat: int, count: int) -> None:
        table = self.table
        if table.num_pages[seat] == 0:
            near = self.pool.find_run(-(-int(table.room[seat]) // table.page_size))
        else:
            near = int(table.pages[seat, table.num_pages[seat] - 1]) + 1
        for _ in range(count):
            page = self.pool.take(near=near)
            table.add_page(seat, page)
            near = page + 1

    def _preempt(self, seat: int) -> None:
        record = self.record(seat)
        log.info("preempting request %s to free its pages", record.request.id)
        self._give_back_pages(seat)
        self.table.state[seat] = SeatState.PAUSED
        record.num_preemptions += 1
        self.num_preemptions += 1

    def _give_back_pages(self, seat: int) -> None:
        # Last pages first, so that the beginning of a text is the last that is forgotten.
        for page in reversed(self.table.take_pages(seat)):
            self.pool.give_back(page, keep=self._is_findable(page))

    def _is_findable(self, page: int) -> bool:
        return self.prefix_cache is not None and self.prefix_cache.holds(page)

    def _forget_page(self, page: int) -> None:
        if self.prefix_cache is not None:
            self.prefix_cache.forget(page)

    def _key_pages(self, seat: int) -> None:
        """Make the seat's complete pages findable."""
        cache, table, record = self.prefix_cache, self.table, self.record(seat)
        assert cache is not None, "only called with a prefix cache"
        text = self.rule.keyed_text(table, seat)
        sharing = self.rule.sharing_length(table, seat)
        while cache.covers(record.num_keyed, sharing) <= len(text):
            key = cache.key(record.page_key, text, record.num_keyed, sharing)
            cache.register(key, int(table.pages[seat, record.num_keyed]))
            record.page_key = key
            record.num_keyed += 1


def _writable(plan: Plan) -> Plan:
    """A copy whose arrays may be cut; plans are not changed once they are handed out."""
    return plan.keep(np.ones(plan.num_spans, dtype=np.bool_))
