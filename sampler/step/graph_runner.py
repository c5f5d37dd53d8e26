"""`GraphRunner`: steps run by replaying CUDA graphs, captured by bucket when the engine starts.

A step of one token for each sequence is a few hundred launches that take longer to ask for than
to run; a graph asks for all of them at once. Two graphs run a step: the network's, and where the
rows are scored plainly the scoring's. What no bucket holds runs eagerly, launch by launch.

Shapes: T rows, R scored rows, d hidden width.
"""

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kernels import (
    CapturedSteps,
    PagedBatch,
    Recorder,
    RowScores,
    ScoreSpec,
    padding_batch,
    score_rows,
)
from sampler.border.engine_config import EngineConfig
from sampler.step.graph_buckets import Bucket, bucket_of, graph_buckets
from sampler.step.runner import HostScores, Runner, no_scores, to_host
from sampler.step.step_input import StepInput
from weights.families import FamilyRule, Order
from weights.network.interface import NetworkInput

log = logging.getLogger(__name__)

_Inputs = Mapping[str, Tensor]


class GraphRunner:
    """Runs steps of one network over one cache, by replay where a bucket holds them.

    num_replayed, num_eager: steps that were run by replay, and otherwise
    """

    def __init__(self, eager: Runner, *, record: Recorder, has_windows: bool) -> None:
        """Prepare a runner without graphs.

        eager:       runs what no graph can
        record:      makes a graph of work
        has_windows: the family's rows may see a second interval, so graphs have room for it
        """
        network, cache = eager.network, eager.cache
        self._eager = eager
        self._network = network
        self._cache = cache
        self._has_windows = has_windows
        self._has_drafts = network.config.draft_adapter is not None
        self._record = record
        self._buckets: tuple[Bucket, ...] = ()
        self._networks: dict[Bucket, CapturedSteps] = {}
        self._scorings = CapturedSteps(self._score_captured, record)
        self._suppressed: tuple[int, ...] = ()
        self.num_replayed = self.num_eager = 0

    @property
    def num_graphs(self) -> int:
        """How many graphs were captured."""
        return len(self._networks) + self._scorings.num_captured

    @torch.inference_mode()
    def capture(self, buckets: tuple[Bucket, ...], *, suppressed: tuple[int, ...]) -> None:
        """Capture the buckets, the largest first, so that the others fit into its memory.

        suppressed: ids that specs of this model leave out
        """
        started_s = time.monotonic()
        self._suppressed = suppressed
        for bucket in reversed(buckets):
            if bucket.num_rows not in self._scorings:
                self._scorings.capture(bucket.num_rows, self._blank_scoring(bucket.num_rows))
            steps = CapturedSteps(self._network_step(bucket), self._record)
            steps.capture(bucket, self._blank_network(bucket))
            self._networks[bucket] = steps
        self._buckets = tuple(sorted(self._networks))
        seconds = time.monotonic() - started_s
        log.info("captured %d CUDA graphs in %.1f s", self.num_graphs, seconds)

    @torch.inference_mode()
    def run(self, step: StepInput, spec: ScoreSpec) -> HostScores:
        """Store what the rows settle and score the rows that ask for it."""
        bucket = None if step.latents is not None else self._bucket_of(step.network)
        if bucket is None:
            self.num_eager += 1
            return self._eager.run(step, spec)
        self.num_replayed += 1
        (hidden,) = self._networks[bucket].run(bucket, _network_inputs(step.network))
        count = step.scored.rows.size
        if count == 0:
            return no_scores()
        # Ratio acceptance reads the hidden rows once more, and graphs share their working memory: a
        # replayed scoring may overwrite what the network's graph left there.
        if self._is_plain(spec) and step.ratio is None:
            outputs = self._scorings.run(bucket.num_rows, _scoring_inputs(hidden, spec))
            scores = RowScores(*(output[:count] for output in outputs))
        else:
            head, bias = self._network.head_weight, self._network.head_bias
            scores = score_rows(hidden[:count], head, bias, spec)
        if step.ratio is not None:
            scores = self._eager.ratio.apply(hidden[:count], scores, spec, step.ratio)
        return to_host(scores)

    def _bucket_of(self, step: NetworkInput) -> Bucket | None:
        """The bucket of a step that can be replayed."""
        batch = step.batch
        needs_more = batch.firsts is not None or step.latents is not None
        if needs_more or (batch.window_starts is not None and not self._has_windows):
            return None
        return bucket_of(batch, self._buckets, page_size=self._cache.page_size)

    def _is_plain(self, spec: ScoreSpec) -> bool:
        """Whether the spec asks for what the captured scoring gives."""
        asks = (spec.adjust, spec.allowed, spec.given, spec.embedding)
        is_simple = all(one is None for one in asks) and not spec.filters and not spec.num_top
        return is_simple and spec.suppressed == self._suppressed

    def _network_step(self, bucket: Bucket) -> Callable[[_Inputs], tuple[Tensor]]:
        """The network as a function of the inputs of a bucket."""

        def run(inputs: _Inputs) -> tuple[Tensor]:
            step = NetworkInput(
                token_ids=inputs["token_ids"],
                positions=inputs["positions"],
                score_rows=inputs["score_rows"],
                batch=PagedBatch(
                    span_starts=inputs["span_starts"],
                    page_table=inputs["page_table"],
                    slots=inputs["slots"],
                    limits=inputs["limits"],
                    max_span=bucket.max_span,
                    max_limit=bucket.num_pages * self._cache.page_size,
                    window_starts=inputs.get("window_starts"),
                    window_stops=inputs.get("window_stops"),
                ),
                draft_rows=inputs.get("draft_rows"),
            )
            return (self._network.forward(step, self._cache),)

        return run

    def _blank_network(self, bucket: Bucket) -> _Inputs:
        """The inputs of a step whose rows are all padding."""
        device, rows = self._network.token_table.device, bucket.num_rows
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        drafts = torch.zeros(rows, dtype=torch.bool, device=device)
        step = NetworkInput(
            token_ids=ids,
            positions=ids,
            score_rows=ids,
            batch=padding_batch(
                num_rows=rows,
                num_spans=bucket.num_spans + 1,
                num_pages=bucket.num_pages,
                max_span=bucket.max_span,
                max_limit=bucket.num_pages * self._cache.page_size,
                has_windows=self._has_windows,
                device=device,
            ),
            draft_rows=drafts if self._has_drafts else None,
        )
        return _network_inputs(step)

    def _blank_scoring(self, rows: int) -> _Inputs:
        """The inputs of scoring whose rows are all padding: greedy draws from nothing."""
        table = self._network.token_table
        numbers = torch.zeros(rows, dtype=torch.int64, device=table.device)
        counters = numbers.int()
        hidden = torch.zeros(
            (rows, self._network.config.hidden_size), dtype=table.dtype, device=table.device
        )
        spec = ScoreSpec(counters.float(), numbers, numbers, counters, counters)
        return _scoring_inputs(hidden, spec)

    def _score_captured(self, inputs: _Inputs) -> tuple[Tensor, ...]:
        spec = ScoreSpec(
            temperature=inputs["temperature"],
            seeds=inputs["seeds"],
            positions=inputs["positions"],
            purposes=inputs["purposes"],
            attempts=inputs["attempts"],
            suppressed=self._suppressed,
        )
        head, bias = self._network.head_weight, self._network.head_bias
        scores = score_rows(inputs["hidden"], head, bias, spec)
        return (
            scores.token,
            scores.probability,
            scores.argmax,
            scores.p1,
            scores.p2,
            scores.log_sum_exp,
            scores.entropy,
        )


def graph_runner(
    eager: Runner,
    *,
    record: Recorder,
    rule: FamilyRule,
    config: EngineConfig,
    context_length: int,
    suppressed: tuple[int, ...],
) -> GraphRunner:
    """A runner with graphs of all buckets of an engine; arguments as for its parts."""
    # Only masks that check proposals in any order see an interval of their own.
    has_windows = rule.order is Order.ANY and "speculative" in rule.modes
    runner = GraphRunner(eager, record=record, has_windows=has_windows)
    buckets = graph_buckets(
        max_sequences=config.max_sequences,
        max_rows=config.max_rows,
        context_length=context_length,
        page_size=config.page_size,
    )
    runner.capture(buckets, suppressed=suppressed)
    return runner


def _network_inputs(step: NetworkInput) -> _Inputs:
    """What a network's graph reads, by name."""
    batch = step.batch
    tensors = {
        "token_ids": step.token_ids,
        "positions": step.positions,
        "score_rows": step.score_rows,
        "span_starts": batch.span_starts,
        "page_table": batch.page_table,
        "slots": batch.slots,
        "limits": batch.limits,
        "window_starts": batch.window_starts,
        "window_stops": batch.window_stops,
        "draft_rows": step.draft_rows,
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _scoring_inputs(hidden: Tensor, spec: ScoreSpec) -> _Inputs:
    """What a scoring's graph reads, by name."""
    return {
        "hidden": hidden,
        "temperature": spec.temperature,
        "seeds": spec.seeds,
        "positions": spec.positions,
        "purposes": spec.purposes,
        "attempts": spec.attempts,
    }
