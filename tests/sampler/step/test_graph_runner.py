"""Replayed steps give what eager ones give, with a recorder that records nothing.

The recorder stands in for CUDA graphs: it runs the work again, on the same captured tensors of a
bucket's shapes, and overwrites the same outputs. Padding, buckets, stale rows and what runs eagerly
are then the real ones.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from sampler.border.engine_config import EngineConfig
from sampler.step.graph_buckets import ROWS, Bucket, bucket_of, graph_buckets
from sampler.step.graph_runner import GraphRunner, graph_runner
from sampler.step.runner import Runner
from tests.kernels.batches import causal, make_case
from tests.sampler.golden_engine import golden_engine, golden_model
from tests.sampler.whole_decodes import (
    CASES,
    answers_of,
    answers_on,
    case_model,
    case_requests,
    hidden_ids,
)
from tests.tiny import request

CONTEXT = 32
CONFIG = EngineConfig(model="golden", page_size=4, max_sequences=8, max_rows=256)


def run_again(work):
    """A recorder: each replay runs the work on the inputs that it was recorded with."""
    outputs = tuple(output.clone() for output in work())

    def replay():
        for held, new in zip(outputs, work(), strict=True):
            held.copy_(new)

    return replay, outputs


class SharedMemory:
    """A recorder like `run_again` whose replays spoil what all others have left.

    CUDA graphs of one pool do: they share their working memory.
    """

    def __init__(self):
        self._recorded = []

    def record(self, work):
        run, outputs = run_again(work)
        self._recorded.append(outputs)

        def replay():
            run()
            for other in self._recorded:
                for tensor in other if other is not outputs else ():
                    tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return replay, outputs


class KernelPadding:
    """A network on the CPU that treats padding as the kernels do.

    A row without a slot is stored nowhere that matters, and a span without rows does not exist.
    """

    def __init__(self, network):
        self._network = network
        self.shapes = []

    def __getattr__(self, name):
        return getattr(self._network, name)

    def forward(self, step, cache):
        self.shapes.append(step.batch.num_rows)
        batch = step.batch
        spare = cache.num_pages * cache.page_size - 1
        used = int((batch.span_starts[:-1] < batch.num_rows).sum())
        batch = replace(
            batch,
            span_starts=batch.span_starts[: used + 1],
            page_table=batch.page_table[:used],
            slots=torch.where(batch.slots < 0, spare, batch.slots),
        )
        return self._network.forward(replace(step, batch=batch), cache)


def replaying_engine(name, *, context=CONTEXT, config=CONFIG, record=run_again):
    model = case_model(name)

    def new_runner(network, cache):
        return graph_runner(
            Runner(KernelPadding(network), cache),
            record=record,
            rule=model.family.rule,
            config=config,
            context_length=context,
            suppressed=hidden_ids(model),
        )

    return golden_engine(model, context=context, new_runner=new_runner)


@functools.cache
def eager_answers(name):
    return answers_on("cpu", name)


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_decode_gives_the_same_tokens(name):
    engine = replaying_engine(name)
    assert answers_of(engine, case_requests(name)) == eager_answers(name)
    runner = engine.runner
    assert runner.num_eager == 0
    padded = set(runner._network.shapes)
    assert padded <= set(ROWS)
    assert runner.num_replayed > len(padded)


@pytest.mark.parametrize("name", ["llama", "sdar", "esolm/speculative"])
def test_sampled_tokens_are_the_same(name):
    params = {"temperature": 0.9}
    engine = replaying_engine(name)
    assert answers_of(engine, case_requests(name, **params)) == answers_on("cpu", name, **params)


@pytest.mark.parametrize(
    ("name", "verification"),
    [
        ("llama", None),
        ("sdar", None),
        ("esolm/speculative", "coupled"),
        ("esolm/speculative", "ratio"),
    ],
)
def test_nothing_is_read_from_a_graph_after_another_was_replayed(name, verification):
    requests = [verified_by(one, verification) for one in case_requests(name, temperature=0.9)]
    engine = replaying_engine(name, record=SharedMemory().record)
    eager = golden_engine(case_model(name), context=CONTEXT)
    assert answers_of(engine, requests) == answers_of(eager, requests)
    assert engine.runner.num_eager == 0


def verified_by(one, verification):
    decoding = replace(one.params.decoding, verification=verification)
    return replace(one, params=replace(one.params, decoding=decoding))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 5},
        {"logit_bias": ((3, 4.0),)},
        {"repetition_penalty": 1.3},
        {"allowed_token_ids": tuple(range(40))},
        {"logprobs": 3},
        {"prompt_logprobs": 2},
    ],
    ids=lambda params: next(reversed(params)),
)
def test_what_the_captured_scoring_does_not_give_is_scored_eagerly(params):
    engine = replaying_engine("llama")
    scored = counted(engine.runner._scorings)
    assert answers_of(engine, case_requests("llama", **params)) == answers_on(
        "cpu", "llama", **params
    )
    assert engine.runner.num_eager == 0
    assert scored == []


def counted(steps):
    """The keys that captured steps are run with, from now on."""
    keys, run = [], steps.run

    def noting(key, inputs):
        keys.append(key)
        return run(key, inputs)

    steps.run = noting
    return keys


def test_plain_scoring_is_replayed():
    engine = replaying_engine("llama")
    scored = counted(engine.runner._scorings)
    answers_of(engine, case_requests("llama"))
    assert len(scored) == engine.runner.num_replayed


def test_a_step_that_no_bucket_holds_runs_eagerly():
    small = replace(CONFIG, max_rows=8)
    engine = replaying_engine("llama", config=small)
    assert answers_of(engine, case_requests("llama")) == eager_answers("llama")
    assert engine.runner.num_eager > 0
    assert engine.runner.num_replayed > 0


def test_rows_that_see_a_second_interval_need_graphs_with_room_for_it():
    model = case_model("esolm/speculative")

    def new_runner(network, cache):
        eager = Runner(KernelPadding(network), cache)
        runner = GraphRunner(eager, record=run_again, has_windows=False)
        buckets = graph_buckets(max_sequences=8, max_rows=64, context_length=32, page_size=4)
        runner.capture(buckets, suppressed=hidden_ids(model))
        return runner

    engine = golden_engine(model, context=32, new_runner=new_runner)
    name = "esolm/speculative"
    assert answers_of(engine, case_requests(name)) == eager_answers(name)
    assert engine.runner.num_eager > 0


def test_a_step_with_latents_runs_eagerly():
    engine = replaying_engine("llama")
    runner, steps = engine.runner, []
    build = engine._build

    def keep(plan):
        steps.append(build(plan))
        return steps[-1]

    engine._build = keep
    answers_of(engine, [request("one", [1, 2, 3], max_tokens=1)])
    network = steps[-1].network
    assert runner._bucket_of(network) is not None
    assert runner._bucket_of(replace(network, latents=object())) is None
    firsts = replace(network.batch, firsts=network.batch.limits)
    assert runner._bucket_of(replace(network, batch=firsts)) is None


def test_long_and_short_requests_share_buckets_of_their_length():
    engine = replaying_engine("llama", context=64)
    used = set()
    choose = engine.runner._bucket_of
    engine.runner._bucket_of = lambda step: used.add(choose(step)) or choose(step)
    long = request("long", [(5 * i) % 90 + 1 for i in range(40)], max_tokens=10)
    short = request("short", [1, 2, 3], max_tokens=20)
    alone = golden_engine(golden_model("llama"), context=64)
    assert answers_of(engine, [long, short]) == answers_of(alone, [long, short])
    assert len({bucket.num_rows for bucket in used}) > 1


def batch_of(*spans):
    return make_case(spans).batch


def test_the_first_bucket_that_holds_a_step_wastes_the_least():
    buckets = graph_buckets(max_sequences=64, max_rows=2048, context_length=4096, page_size=16)
    assert buckets == tuple(sorted(buckets))

    def found(*spans):
        return bucket_of(batch_of(*spans), buckets, page_size=16)

    assert found(causal(30, 1)) == Bucket(1, 128, 4, 1)
    assert found(causal(30, 1), causal(9, 1)) == Bucket(2, 128, 4, 2)
    assert found(*[causal(9, 2)] * 5) == Bucket(16, 128, 4, 16)
    assert found(causal(9, 20)) == Bucket(32, 128, 32, 2)
    assert found(*[causal(9, 20)] * 3) == Bucket(64, 128, 64, 64)
    assert found(causal(2400, 1)) == Bucket(1, 256, 4, 1)
    assert found(causal(4096, 1)) is None
    assert found(causal(9, 257)) is None


@pytest.mark.parametrize(
    ("max_sequences", "max_rows", "largest"), [(1, 2048, 256), (64, 64, 64), (8, 100, 128)]
)
def test_buckets_reach_as_far_as_steps_do(max_sequences, max_rows, largest):
    buckets = graph_buckets(
        max_sequences=max_sequences, max_rows=max_rows, context_length=100, page_size=16
    )
    assert max(bucket.num_rows for bucket in buckets) == largest
    assert {bucket.num_pages for bucket in buckets} == {7}
    assert all(bucket.num_spans <= max_sequences for bucket in buckets)
    assert len(buckets) <= 3 * len(ROWS)


@pytest.mark.parametrize("seed", range(20))
def test_a_bucket_holds_the_step_that_it_is_found_for(seed):
    random = np.random.default_rng(seed)
    buckets = graph_buckets(max_sequences=16, max_rows=512, context_length=3000, page_size=16)
    spans = [
        causal(int(random.integers(0, 2900)), int(random.integers(1, 20)))
        for _ in range(random.integers(1, 17))
    ]
    batch = batch_of(*spans)
    bucket = bucket_of(batch, buckets, page_size=16)
    assert bucket is not None
    assert (batch.num_rows, batch.num_spans) <= (bucket.num_rows, bucket.num_rows)
    assert batch.num_spans <= bucket.num_spans
    assert batch.max_span <= bucket.max_span
    assert batch.max_limit <= 16 * bucket.num_pages
