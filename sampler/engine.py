"""`Engine`: the loop's one step, from the requests that came in to the deltas that go out."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels import KVCache, ProductChoice, allocate_kv_cache, page_bytes
from sampler.balance.balance import Balance
from sampler.balance.step_time import StepShape, StepTimeModel
from sampler.border.engine_config import EngineConfig
from sampler.border.engine_metrics import EngineMetrics
from sampler.border.errors import PromptTooLong, RequestError
from sampler.border.messages import ModelInfo, StepOutput, TokenBatch
from sampler.border.request import Delta, FinishReason, Request
from sampler.grammar_pool import GrammarPool
from sampler.outcome.advance import Advance
from sampler.scheduler import Scheduler
from sampler.seats.constraint import Grammars
from sampler.seats.prediction import check_prediction
from sampler.spans.plan import Plan
from sampler.spans.scored import HostScores
from sampler.spans.span_rule import SpanRule, StepLimits
from sampler.spans.span_rules import span_rule_for
from sampler.state.decoding import resolve_decoding
from sampler.state.sequence_table import SequenceTable
from sampler.step.ratio_acceptance import ratio_step
from sampler.step.runner import StepRunner
from sampler.step.score_spec import Vocabulary, build_score_spec
from sampler.step.step_buffer import StepBuffer
from sampler.step.step_input import StepInput, build_step_input
from sampler.step_failure import NotANumber, StepFailed, check_numbers, leaves_doubt
from weights.families import FamilyRule
from weights.network.interface import Network

log = logging.getLogger(__name__)

_DEFAULT_CPU_CACHE_BYTES = 2 << 30
_GPU_CACHE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What model, settings and memory allow.

    context_length: prompt and answer together, in tokens
    num_pages:      pages of the cache
    """

    context_length: int
    num_pages: int


@dataclass(frozen=True, slots=True)
class _Ran:
    """A step that ran and is not applied yet; times are of the network."""

    plan: Plan
    step: StepInput
    scores: HostScores
    started_s: float
    ended_s: float


class Engine:
    """Continuous batching over one network.

    vocabulary: token ids that end an answer or are never drawn
    clock:      monotonic seconds; a parameter so that tests need no time
    """

    def __init__(
        self,
        *,
        runner: StepRunner,
        rule: FamilyRule,
        vocabulary: Vocabulary,
        config: EngineConfig,
        limits: EngineLimits,
        device: torch.device,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.context_length = limits.context_length
        self.vocabulary = vocabulary
        self.family = rule
        self.rule = span_rule_for(rule)
        self.table = _table_for(self.rule, config, limits)
        self.step_time = StepTimeModel()
        self.scheduler = Scheduler(
            table=self.table,
            rule=self.rule,
            family=rule,
            config=config,
            num_pages=limits.num_pages,
            eos_ids=vocabulary.eos_ids,
            balance=self._new_balance(),
        )
        self.runner = runner
        self.metrics = EngineMetrics(pages_total=limits.num_pages, page_size=config.page_size)
        self.advance = Advance(self.scheduler, vocabulary, self.metrics)
        self._compiling = None if grammars is None else GrammarPool(grammars)
        self._buffer = StepBuffer(device)
        self._clock = clock
        self._answers: list[Delta] = []

    @property
    def has_work(self) -> bool:
        """Whether another step has anything to do."""
        return self.scheduler.has_work or bool(self._answers) or self.num_compiling > 0

    @property
    def num_compiling(self) -> int:
        """Requests that wait for their grammars to be compiled."""
        return 0 if self._compiling is None else len(self._compiling)

    @property
    def has_compiled(self) -> bool:
        """Whether a request has waited long enough for its grammar."""
        return self._compiling is not None and self._compiling.has_compiled

    @property
    def can_constrain(self) -> bool:
        """Whether answers can be held to grammars."""
        return self._compiling is not None

    @property
    def is_only_compiling(self) -> bool:
        """Whether another step would have nothing to do before a grammar is compiled."""
        return self.num_compiling > 0 and not self.scheduler.has_work and not self._answers

    def submit(self, request: Request) -> None:
        """Take a request in; one that cannot be served is answered with an error delta."""
        try:
            self._check(request)
            self._put_in_line(request)
        except Exception as error:
            # Nothing was written but the place in the queue, which is taken last.
            log.debug("request %s is not taken in", request.id, exc_info=error)
            self._answers.append(_refusal(request, error))

    def cancel(self, request_id: str, *, reports: bool = False) -> None:
        """Forget a request; its pages are free when this returns.

        reports: a last delta says what it cost, if it is still here
        """
        seat = self.scheduler.seat_of(request_id)
        if seat is not None:
            delta = self.advance.deltas.abort(seat, now_s=self._clock())
            self._answers += [delta] if reports else []
        elif self._forget_waiting(request_id) and reports:
            self._answers.append(Delta(request_id=request_id, finish=FinishReason.ABORT))

    def _put_in_line(self, request: Request) -> None:
        """Let a request wait for a seat, and before that for its grammar."""
        spec = request.params.grammar
        if spec is None:
            self.scheduler.add(request)
            return
        if self._compiling is None:
            raise RequestError("this model has no tokenizer", field="response_format")
        if self._compiling.holds(request.id):
            raise ValueError(f"a request with the id {request.id!r} is waiting already")
        self._compiling.add(request, spec)

    def _forget_waiting(self, request_id: str) -> bool:
        """Forget a request that has no seat; whether there was one."""
        if self._compiling is not None and self._compiling.remove(request_id):
            return True
        return self.scheduler.waiting.remove(request_id) is not None

    def _take_compiled(self) -> None:
        """Put requests whose grammars are compiled in line, and answer those whose are not."""
        for ended in () if self._compiling is None else self._compiling.take_compiled():
            if ended.grammar is not None:
                self.scheduler.add(ended.request, ended.grammar)
            else:
                self._answers.append(_refusal(ended.request, ended.error))

    def reset(self) -> None:
        """Forget the metrics and every page that nobody owns, as after warming up."""
        # What steps take is kept; what texts are like is not, as warming up has none.
        self.scheduler.begin_anew(self._new_balance())
        self.metrics = EngineMetrics(
            pages_total=self.metrics.pages_total, page_size=self.metrics.page_size
        )
        self.advance = Advance(self.scheduler, self.vocabulary, self.metrics)

    def step(self) -> StepOutput:
        """Plan, run and apply one step; without work, only report.

        A step that fails before anything of it was applied is taken back, and its requests run
        apart: those that cause the failure end with an error, the others go on as if nothing had
        been. What else is raised leaves the engine in an unknown state.
        """
        self._take_compiled()
        tokens, deltas = TokenBatch(), self._answers
        self._answers = []
        try:
            self._run_step(None, tokens, deltas)
        except StepFailed as failure:
            self._run_apart(failure, tokens, deltas)
        self._gauge()
        return StepOutput(tokens=tokens, deltas=deltas, metrics=self.metrics)

    def _run_apart(self, failure: StepFailed, tokens: TokenBatch, deltas: list[Delta]) -> None:
        """Run the requests of a failed step in ever smaller groups, and end those that fail."""
        groups: deque[list[str]] = deque()
        while True:
            self.metrics.steps_taken_back += 1
            deltas.extend(self._fail(name, failure.reason) for name in failure.culprits)
            groups.extendleft(reversed(failure.groups))
            found = self._next_failure(groups, tokens, deltas)
            if found is None:
                return
            failure = found

    def _next_failure(
        self, groups: deque[list[str]], tokens: TokenBatch, deltas: list[Delta]
    ) -> StepFailed | None:
        """Run groups until one fails; None when none is left."""
        while groups:
            try:
                self._run_step(frozenset(groups.popleft()), tokens, deltas)
            except StepFailed as failure:
                return failure
        return None

    def _run_step(
        self, only: Collection[str] | None, tokens: TokenBatch, deltas: list[Delta]
    ) -> None:
        """One step of the requests in `only`, or of all; adds to what clients are told.

        Raises StepFailed when it was taken back.
        """
        started_s = self._clock()
        ran = self._attempt(only, now_s=started_s)
        if ran is None:
            return
        plan, step, scores = ran.plan, ran.step, ran.scores
        batch, more = self.advance.apply(plan, step.scored, scores, now_s=ran.ended_s)
        ended_s = self._clock()
        self.metrics.network_time_s += ran.ended_s - ran.started_s
        self.metrics.host_time_s += (ran.started_s - started_s) + (ended_s - ran.ended_s)
        self._count(plan, scores, more, num_tokens=len(batch.token_ids))
        self.metrics.step_time_s.observe(ended_s - started_s)
        shape = StepShape(
            plan.num_rows,
            scores.token.size,
            int(plan.draft_stop.sum()),
            has_latents=step.network.latents is not None,
        )
        self.step_time.observe(shape, ended_s - started_s)
        self.metrics.step_row_s = self.step_time.row_price(shape.rows)
        tokens.request_ids.extend(batch.request_ids)
        tokens.token_ids.extend(batch.token_ids)
        deltas.extend(more)

    def _attempt(self, only: Collection[str] | None, *, now_s: float) -> _Ran | None:
        """Plan and run a step, or leave everything as it was and raise StepFailed.

        None when there is nothing to run.
        """
        undo = self.scheduler.undo
        self.scheduler.begin_step()
        try:
            ran = self._plan_and_run(only, now_s=now_s)
        except Exception as error:
            suspects = self.scheduler.requests_of_step(only)
            if leaves_doubt(error) or not suspects:
                raise
            log.exception("a step failed and is taken back; its requests run apart")
            failure = StepFailed(
                f"{type(error).__name__} in the step",
                suspects=suspects,
                guilty=self._guilty_of(error),
            )
            self.runner.take_back()
            undo.take_back()
            raise failure from error
        undo.keep_changes()
        return ran

    def _plan_and_run(self, only: Collection[str] | None, *, now_s: float) -> _Ran | None:
        plan = self.scheduler.plan(now_s=now_s, only=only)
        if plan is None:
            return None
        self._buffer.reset()
        step = self._build(plan)
        spec = build_score_spec(
            step.scored,
            self.table,
            self.scheduler.records,
            self.vocabulary,
            buffer=self._buffer,
        )
        self._buffer.flush()
        built_s = self._clock()
        scores = self.runner.run(step, spec)
        check_numbers(scores, step.scored.seats)
        return _Ran(plan, step, scores, started_s=built_s, ended_s=self._clock())

    def _guilty_of(self, error: Exception) -> list[str]:
        """Requests that a failure names as its causes."""
        if not isinstance(error, NotANumber):
            return []
        self.metrics.requests_not_a_number += error.seats.size
        return [self.scheduler.record(seat).request.id for seat in error.seats.tolist()]

    def _fail(self, request_id: str, reason: str) -> Delta:
        """End a request that makes steps fail; nothing of what it stored is found again."""
        self.metrics.requests_failed += 1
        seat = self.scheduler.seat_of(request_id)
        if seat is not None:
            return self.advance.deltas.fail(seat, reason, now_s=self._clock())
        self.scheduler.waiting.remove(request_id)
        return Delta(request_id=request_id, finish=FinishReason.ERROR, error=reason)

    def _check(self, request: Request) -> None:
        """Refuse what could never run; the API has checked this too, in its own words."""
        length, params = len(request.prompt), request.params
        if length == 0:
            raise RequestError("the prompt is empty", field="prompt")
        if params.max_tokens < 1:
            raise RequestError(
                f"max_tokens must be at least 1, got {params.max_tokens}", field="max_tokens"
            )
        if length + params.max_tokens + len(request.suffix) > self.context_length:
            raise PromptTooLong(
                prompt_tokens=length + len(request.suffix),
                max_tokens=params.max_tokens,
                limit_tokens=self.context_length,
            )
        if request.suffix and not self.family.can_infill:
            raise RequestError("this model cannot fill in text before a suffix", field="suffix")
        self._check_decoding(request)
        check_prediction(
            request.prediction, params, self.family, context_length=self.context_length
        )
        ids = np.asarray(request.prompt + request.suffix + request.prediction, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self.vocabulary.size:
            raise RequestError(
                f"token ids must be between 0 and {self.vocabulary.size - 1}", field="prompt"
            )

    def _check_decoding(self, request: Request) -> None:
        decoding = resolve_decoding(request.params, self.family)
        limits = StepLimits(
            max_rows=self.config.max_rows,
            max_entries=self.scheduler.pool.num_pages * self.table.page_size,
        )
        self.rule.check(request, decoding, limits)

    def _new_balance(self) -> Balance | None:
        """The balance of a family that can verify drafts; others have nothing to choose."""
        costs = self.rule.round_costs
        if costs is None:
            return None
        return Balance(num_seats=self.config.max_sequences, costs=costs, step_time=self.step_time)

    def _build(self, plan: Plan) -> StepInput:
        wants = [
            record is not None and record.request.params.prompt_logprobs is not None
            for record in self.scheduler.records
        ]
        step = build_step_input(
            plan,
            self.table,
            self.rule,
            mask_token_id=self.vocabulary.mask_id or 0,
            wants_prompt=np.array(wants) if any(wants) else None,
            buffer=self._buffer,
        )
        ratio = ratio_step(step.scored, self.table)
        return step if ratio is None else replace(step, ratio=ratio)

    def _count(
        self, plan: Plan, scores: HostScores, deltas: list[Delta], *, num_tokens: int
    ) -> None:
        metrics = self.metrics
        metrics.steps += 1
        metrics.step_rows.observe(plan.num_rows)
        metrics.rows_settled += int((plan.settle_stop - plan.first).sum())
        metrics.rows_verified += int((plan.propose_stop - plan.settle_stop).sum())
        metrics.rows_drafted += int((plan.draft_stop - plan.propose_stop).sum())
        metrics.rows_scored += scores.token.size
        metrics.drafting_steps += int((plan.draft_stop > plan.propose_stop).any())
        metrics.generation_tokens += num_tokens + sum(len(delta.token_ids) for delta in deltas)
        for delta in deltas:
            if delta.stats is not None:
                metrics.prompt_tokens += delta.stats.prompt_tokens

    def _gauge(self) -> None:
        metrics, scheduler = self.metrics, self.scheduler
        metrics.num_running = scheduler.num_seated
        metrics.num_waiting = len(scheduler.waiting) + self.num_compiling
        metrics.pages_used = scheduler.pool.num_held
        metrics.pages_open = self.table.num_open_pages
        metrics.num_preemptions = scheduler.num_preemptions
        metrics.prefix_queries = scheduler.prefix_queries
        metrics.prefix_hits = scheduler.prefix_hits
        metrics.step_fixed_s = self.step_time.fixed_s
        metrics.step_entry_s = self.step_time.entry_s
        balance = scheduler.balance
        if balance is not None:
            metrics.row_price_tokens = balance.price
            metrics.widths_chosen = balance.counts.by_width()
            metrics.width_switches = balance.counts.num_switches
            metrics.width_probes = balance.counts.num_probes
            metrics.width_handovers = balance.counts.num_handed_to_ar


def _table_for(rule: SpanRule, config: EngineConfig, limits: EngineLimits) -> SequenceTable:
    """Seats for what the span rule keeps of a sequence."""
    return SequenceTable(
        num_seats=config.max_sequences,
        max_context=limits.context_length,
        page_size=config.page_size,
        has_order=rule.has_order,
        latents=rule.new_latents(config.max_sequences),
        most_entries=limits.num_pages * config.page_size,
    )


def _refusal(request: Request, error: Exception | None) -> Delta:
    """The answer to a request that was not taken in."""
    if isinstance(error, RequestError):
        return Delta(
            request_id=request.id,
            finish=FinishReason.ERROR,
            error=str(error),
            is_refusal=True,
            error_field=error.field,
        )
    log.error("request %s cannot be taken in", request.id, exc_info=error)
    reason = f"{type(error).__name__} while it was taken in"
    return Delta(request_id=request.id, finish=FinishReason.ERROR, error=reason)


def cache_for(
    network: Network, *, config: EngineConfig, context_length: int, device: torch.device
) -> KVCache:
    """The cache that the configuration asks for, no larger than all seats could use.

    Raises ValueError when not even one page fits.
    """
    dtype = network.token_table.dtype
    one_page = page_bytes(
        num_layers=network.num_layers,
        page_size=config.page_size,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=dtype,
    )
    budget = config.cache_bytes or _default_cache_bytes(device)
    pages_of_a_sequence = -(-context_length // config.page_size)
    num_pages = min(budget // one_page, pages_of_a_sequence * config.max_sequences)
    if num_pages < 1:
        raise ValueError(f"cache_bytes must be at least one page ({one_page} bytes), got {budget}")
    return allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=num_pages,
        page_size=config.page_size,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=dtype,
        device=device,
        is_zeroed=network.is_row_exact,
    )


def _default_cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _DEFAULT_CPU_CACHE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _GPU_CACHE_SHARE)


def model_info(
    *,
    name: str,
    rule: FamilyRule,
    family: str,
    engine: Engine,
    load_s: float,
    choice: ProductChoice | None = None,
) -> ModelInfo:
    """What the API process is told once the engine is ready; choice: of int8 products."""
    return ModelInfo(
        name=name,
        family=family,
        modes=tuple(rule.modes),
        context_length=engine.context_length,
        vocab_size=engine.vocabulary.size,
        eos_ids=tuple(sorted(engine.vocabulary.eos_ids)),
        mask_token_id=rule.mask_token_id,
        block_length=rule.block_length,
        can_infill=rule.can_infill,
        can_constrain=engine.can_constrain,
        load_s=load_s,
        linear_format=None if choice is None else choice.format.value,
        linear_products=None if choice is None else choice.describe(),
    )
