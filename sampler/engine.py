"""`Engine`: the loop's one step, from the requests that came in to the deltas that go out."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels import KVCache, allocate_kv_cache, page_bytes
from sampler.balance.balance import Balance, branch_costs, canvas_costs, rank_costs
from sampler.balance.step_time import StepShape, StepTimeModel
from sampler.border.engine_config import EngineConfig
from sampler.border.engine_metrics import EngineMetrics
from sampler.border.errors import PromptTooLong, RequestError
from sampler.border.messages import ModelInfo, StepOutput, TokenBatch
from sampler.border.request import Delta, FinishReason, Request
from sampler.outcome.advance import Advance
from sampler.scheduler import Scheduler
from sampler.seats.constraint import Grammars
from sampler.seats.prediction import check_prediction
from sampler.spans.canvas_spans import CanvasSpans
from sampler.spans.latent_spans import LatentSpans
from sampler.spans.plan import Plan
from sampler.spans.rank_spans import RankSpans
from sampler.spans.span_rules import span_rule_for
from sampler.spans.whole_spans import WholeSpans
from sampler.spans.window_spans import WindowSpans
from sampler.state.decoding import Mode, resolve_decoding
from sampler.state.latent_table import LatentTable
from sampler.state.sequence_table import SequenceTable
from sampler.step.ratio_acceptance import ratio_step
from sampler.step.runner import HostScores, StepRunner
from sampler.step.score_spec import Vocabulary, build_score_spec
from sampler.step.step_buffer import StepBuffer
from sampler.step.step_input import StepInput, build_step_input
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
        self.table = SequenceTable(
            num_seats=config.max_sequences,
            max_context=limits.context_length,
            page_size=config.page_size,
            any_order=isinstance(self.rule, RankSpans | WindowSpans),
        )
        if isinstance(self.rule, LatentSpans):
            self.table.latents = LatentTable(config.max_sequences)
            self.table.most_entries = limits.num_pages * config.page_size
        self.step_time = StepTimeModel()
        self.scheduler = Scheduler(
            table=self.table,
            rule=self.rule,
            family=rule,
            config=config,
            num_pages=limits.num_pages,
            eos_ids=vocabulary.eos_ids,
            grammars=grammars,
            balance=self._new_balance(),
        )
        self.runner = runner
        self.metrics = EngineMetrics(pages_total=limits.num_pages, page_size=config.page_size)
        self.advance = Advance(self.scheduler, vocabulary, self.metrics)
        self.grammars = grammars
        self._buffer = StepBuffer(device)
        self._clock = clock
        self._answers: list[Delta] = []

    @property
    def has_work(self) -> bool:
        """Whether another step has anything to do."""
        return self.scheduler.has_work or bool(self._answers)

    def submit(self, request: Request) -> None:
        """Take a request in; one that cannot be served is answered with an error delta."""
        try:
            self._check(request)
            self.scheduler.add(request)
        except RequestError as error:
            self._answers.append(
                Delta(
                    request_id=request.id,
                    finish=FinishReason.ERROR,
                    error=str(error),
                    is_refusal=True,
                    error_field=error.field,
                )
            )

    def cancel(self, request_id: str, *, reports: bool = False) -> None:
        """Forget a request; its pages are free when this returns.

        reports: a last delta says what it cost, if it is still here
        """
        seat = self.scheduler.seat_of(request_id)
        if seat is not None:
            delta = self.advance.deltas.abort(seat, now_s=self._clock())
            self._answers += [delta] if reports else []
        elif self.scheduler.waiting.remove(request_id) is not None and reports:
            self._answers.append(Delta(request_id=request_id, finish=FinishReason.ABORT))

    def reset(self) -> None:
        """Forget the metrics and every page that nobody owns, as after warming up."""
        self.scheduler.pool.drop_idle()
        # What steps take is kept; what texts are like is not, as warming up has none.
        self.scheduler.balance = self._new_balance()
        self.scheduler.prefix_queries = self.scheduler.prefix_hits = 0
        self.metrics = EngineMetrics(
            pages_total=self.metrics.pages_total, page_size=self.metrics.page_size
        )
        self.advance.metrics = self.metrics

    def step(self) -> StepOutput:
        """Plan, run and apply one step; without work, only report."""
        started_s = self._clock()
        deltas, self._answers = self._answers, []
        tokens = TokenBatch()
        plan = self.scheduler.plan(now_s=started_s)
        if plan is not None:
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
            ran_s = self._clock()
            tokens, more = self.advance.apply(plan, step.scored, scores, now_s=ran_s)
            deltas.extend(more)
            ended_s = self._clock()
            self.metrics.network_time_s += ran_s - built_s
            self.metrics.host_time_s += (built_s - started_s) + (ended_s - ran_s)
            self._count(plan, scores, deltas, num_tokens=len(tokens.token_ids))
            self.metrics.step_time_s.observe(ended_s - started_s)
            shape = StepShape(
                plan.num_rows,
                scores.token.size,
                int(plan.draft_stop.sum()),
                has_latents=step.network.latents is not None,
            )
            self.step_time.observe(shape, ended_s - started_s)
            self.metrics.step_row_s = self.step_time.row_price(shape.rows)
        self._gauge()
        return StepOutput(tokens=tokens, deltas=deltas, metrics=self.metrics)

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
        if params.grammar is not None:
            if self.grammars is None:
                raise RequestError("this model has no tokenizer", field="response_format")
            self.grammars.constraint(params.grammar)
        ids = np.asarray(request.prompt + request.suffix + request.prediction, dtype=np.int64)
        if ids.min() < 0 or ids.max() >= self.vocabulary.size:
            raise RequestError(
                f"token ids must be between 0 and {self.vocabulary.size - 1}", field="prompt"
            )

    def _check_decoding(self, request: Request) -> None:
        params = request.params
        decoding = resolve_decoding(params, self.family)
        if isinstance(self.rule, WholeSpans):
            # A refresh runs the whole text in one step.
            limit, extra = self.config.max_rows, 0
        elif isinstance(self.rule, RankSpans) and decoding.mode is Mode.SPECULATIVE:
            # The masks that check proposals lie behind all of them.
            limit, extra = self.scheduler.pool.num_pages * self.table.page_size, decoding.width
        else:
            return
        if len(request.prompt) + len(request.suffix) + params.max_tokens + extra > limit:
            raise PromptTooLong(
                prompt_tokens=len(request.prompt) + len(request.suffix),
                max_tokens=params.max_tokens,
                limit_tokens=limit - extra,
            )

    def _new_balance(self) -> Balance | None:
        """The balance of a family that can verify drafts; others have nothing to choose."""
        if isinstance(self.rule, LatentSpans):
            costs = branch_costs()
        elif isinstance(self.rule, CanvasSpans | RankSpans):
            costs = rank_costs() if isinstance(self.rule, RankSpans) else canvas_costs()
        else:
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
        metrics.num_waiting = len(scheduler.waiting)
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
    *, name: str, rule: FamilyRule, family: str, engine: Engine, load_s: float
) -> ModelInfo:
    """What the API process is told once the engine is ready."""
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
        can_constrain=engine.grammars is not None,
        load_s=load_s,
    )
