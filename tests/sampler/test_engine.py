import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler.border.request import FinishReason
from tests.tiny import (
    EOS,
    VOCABULARY,
    check_engine,
    collect,
    hash_engine,
    request,
    run_all,
)

PROMPTS = {
    "a": [5, 6, 7],
    "b": list(range(3, 30)),
    "c": [9],
    "d": [5, 6, 7, 8, 9, 10, 11, 12, 13],
    "e": [*range(3, 30), 1, 1, 1],
}


def answer_alone(name, **params):
    return run_all(hash_engine(), request(name, PROMPTS[name], **params))[name][0]


def requests_for(names, **params):
    return [request(name, PROMPTS[name], **params) for name in names]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_each_request_the_tokens_it_gets_alone(temperature):
    params = {"temperature": temperature, "seed": 11, "max_tokens": 12}
    answers = run_all(hash_engine(), *requests_for(PROMPTS, **params))
    assert {n: answers[n][0] for n in PROMPTS} == {n: answer_alone(n, **params) for n in PROMPTS}


@pytest.mark.parametrize("max_rows", [8, 9, 13, 31])
def test_cutting_prompts_anywhere_changes_nothing(max_rows):
    answers = run_all(hash_engine(max_rows=max_rows), *requests_for(PROMPTS))
    assert {n: answers[n][0] for n in PROMPTS} == {n: answer_alone(n) for n in PROMPTS}


@pytest.mark.parametrize("num_pages", [11, 14, 20])
def test_preemption_loses_nothing(num_pages):
    engine = hash_engine(num_pages=num_pages)
    answers = run_all(engine, *requests_for(PROMPTS, max_tokens=14))
    assert engine.scheduler.num_preemptions > 0
    alone = {n: answer_alone(n, max_tokens=14) for n in PROMPTS}
    assert {n: answers[n][0] for n in PROMPTS} == alone


def test_a_prefix_hit_changes_nothing_and_saves_rows():
    engine = hash_engine()
    run_all(engine, request("b", PROMPTS["b"]))
    rows_before = sum(engine.runner.row_log)
    answers = run_all(engine, request("e", PROMPTS["e"]))
    assert answers["e"][0] == answer_alone("e")
    stats = answers["e"][1][-1].stats
    assert stats.cached_tokens == 24
    assert sum(engine.runner.row_log) - rows_before == len(PROMPTS["e"]) - 24 + 7


def test_an_answer_is_a_prefix_that_a_later_prompt_finds():
    engine = hash_engine()
    tokens = run_all(engine, request("a", PROMPTS["a"], max_tokens=10))["a"][0]
    longer = PROMPTS["a"] + tokens
    answers = run_all(engine, request("next", longer, max_tokens=3))
    assert answers["next"][1][-1].stats.cached_tokens == 12


def test_without_prefix_caching_nothing_is_reused():
    engine = hash_engine(prefix_caching=False)
    run_all(engine, request("b", PROMPTS["b"]))
    answers = run_all(engine, request("e", PROMPTS["e"]))
    assert answers["e"][1][-1].stats.cached_tokens == 0
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_pages


def test_the_first_token_of_the_end_of_text_ends_the_answer():
    engine = hash_engine(eos=range(VOCABULARY))
    tokens, deltas = run_all(engine, request("a", PROMPTS["a"], ignore_eos=False))["a"]
    assert len(tokens) == 1
    assert deltas[-1].finish is FinishReason.STOP
    assert deltas[-1].stop_token_id == tokens[0]


def test_ignored_end_of_text_does_not_end_the_answer():
    engine = hash_engine(eos=range(VOCABULARY))
    tokens, deltas = run_all(engine, request("a", PROMPTS["a"], max_tokens=5))["a"]
    assert len(tokens) == 5
    assert deltas[-1].finish is FinishReason.LENGTH


def test_a_stop_token_of_the_request_ends_it():
    tokens = answer_alone("a")
    engine = hash_engine()
    answer, deltas = run_all(engine, request("a", PROMPTS["a"], stop_token_ids=(tokens[3],)))["a"]
    assert answer == tokens[: tokens.index(tokens[3]) + 1]
    assert deltas[-1].stop_token_id == tokens[3]


def test_no_stop_token_is_drawn_before_the_minimum():
    engine = hash_engine(eos=range(0, VOCABULARY, 2))
    params = {"ignore_eos": False, "min_tokens": 6, "max_tokens": 10}
    tokens, _ = run_all(engine, request("a", PROMPTS["a"], **params))["a"]
    assert len(tokens) >= 6
    assert all(token % 2 for token in tokens[:6])


def test_every_answer_ends_exactly_once():
    engine = hash_engine(num_pages=12)
    answers = run_all(engine, *requests_for(PROMPTS))
    for _, deltas in answers.values():
        assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [
            True
        ]


def test_urgent_requests_run_first():
    engine = hash_engine(max_sequences=1)
    for name, priority in (("a", 5), ("c", 1), ("d", 3)):
        engine.submit(request(name, PROMPTS[name], priority=priority, max_tokens=2))
    finished = []
    while engine.has_work:
        finished += [d.request_id for d in engine.step().deltas if d.finish is not None]
    assert finished == ["c", "d", "a"]


def test_logprobs_come_with_every_token():
    engine = hash_engine()
    tokens, deltas = run_all(engine, request("a", PROMPTS["a"], logprobs=2))["a"]
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in logprobs] == tokens
    assert all(len(entry.top) == 2 and entry.logprob < 0 for entry in logprobs)


@pytest.mark.parametrize("max_rows", [8, 64])
def test_prompt_logprobs_come_once_for_every_prompt_token_but_the_first(max_rows):
    engine = hash_engine(max_rows=max_rows)
    run_all(engine, request("warm", PROMPTS["b"]))
    _, deltas = run_all(engine, request("b", PROMPTS["b"], prompt_logprobs=0))["b"]
    entries = [entry for delta in deltas for entry in delta.prompt_logprobs]
    assert [entry.token_id for entry in entries] == PROMPTS["b"][1:]


def test_a_trace_numbers_the_steps():
    engine = hash_engine()
    _, deltas = run_all(engine, request("a", PROMPTS["a"], decoding={"trace": True}))["a"]
    trace = [entry for delta in deltas for entry in delta.trace]
    assert [entry.step for entry in trace] == list(range(8))
    assert all(0 <= entry.uncertainty <= 1 for entry in trace)


def test_the_kinds_of_tokens_add_up():
    stats = run_all(hash_engine(), request("a", PROMPTS["a"]))["a"][1][-1].stats
    assert (stats.answer_tokens, stats.ar_tokens, stats.prompt_tokens) == (8, 8, 3)
    assert stats.steps == 8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [VOCABULARY]}, "token ids"),
        ({"prompt": [-1]}, "token ids"),
        ({"prompt": [1] * 125}, "at most 128"),
        ({"prompt": [1], "max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing_else(bad, message):
    engine = hash_engine()
    params = {"max_tokens": 8, **bad}
    prompt = params.pop("prompt")
    answers = run_all(engine, request("bad", prompt, **params), request("a", PROMPTS["a"]))
    assert answers["a"][0] == answer_alone("a")
    assert answers["bad"][1][0].finish is FinishReason.ERROR
    assert message in answers["bad"][1][0].error


@given(steps=st.integers(0, 12), name=st.sampled_from(sorted(PROMPTS)))
@settings(max_examples=40, deadline=None)
def test_cancelling_at_any_stage_gives_back_every_page(steps, name):
    engine = hash_engine(num_pages=12, max_rows=8)
    for one in requests_for(PROMPTS):
        engine.submit(one)
    outputs = [engine.step() for _ in range(steps)]
    engine.cancel(name)
    check_engine(engine)
    ended = {d.request_id for o in outputs for d in o.deltas if d.finish is not None}
    later = collect([], {})
    while engine.has_work:
        collect([engine.step()], later)
        check_engine(engine)
    assert name not in later
    assert set(PROMPTS) - ended - {name} <= set(later)
    assert engine.scheduler.pool.num_held == 0


@given(
    prompts=st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=20), min_size=1, max_size=10),
    num_pages=st.integers(9, 20),
    max_rows=st.integers(8, 24),
    cancels=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_run_conserves_pages_and_tokens(prompts, num_pages, max_rows, cancels):
    engine = hash_engine(num_pages=num_pages, max_rows=max_rows, max_sequences=4)
    for number, prompt in enumerate(prompts):
        engine.submit(request(str(number), prompt, max_tokens=6))
    answers, step = {}, 0
    while engine.has_work:
        for when, which in cancels:
            if when == step:
                engine.cancel(str(which))
        collect([engine.step()], answers)
        check_engine(engine)
        step += 1
        assert step < 2000
    cancelled = {str(which) for _, which in cancels}
    for number, prompt in enumerate(prompts):
        if str(number) not in cancelled:
            alone = run_all(hash_engine(), request("alone", prompt, max_tokens=6))["alone"][0]
            assert answers[str(number)][0] == alone
    assert engine.scheduler.pool.num_held == 0


def test_metrics_count_rows_tokens_and_pages():
    engine = hash_engine()
    run_all(engine, request("b", PROMPTS["b"], max_tokens=5))
    metrics = engine.metrics
    assert metrics.rows_settled == len(PROMPTS["b"]) + 4
    assert metrics.generation_tokens == metrics.tokens_ar == 5
    assert metrics.steps == 5
    assert metrics.prompt_tokens == len(PROMPTS["b"])
    assert sum(metrics.step_rows.counts) == 5


def test_unseeded_requests_differ_and_seeded_ones_do_not():
    engine = hash_engine()
    same = [request(str(i), [7, 8], temperature=1.0, max_tokens=12) for i in range(2)]
    answers = run_all(engine, *same)
    assert answers["0"][0] != answers["1"][0]
    seeded = [request(str(i), [7, 8], temperature=1.0, seed=3, max_tokens=12) for i in range(2)]
    answers = run_all(engine, *seeded)
    assert answers["0"][0] == answers["1"][0]


def test_eos_is_an_ordinary_token_of_the_vocabulary():
    assert EOS < VOCABULARY
    assert np.unique(answer_alone("b", max_tokens=40)).size > 5


def test_ending_early_reports_what_it_cost():
    engine = hash_engine()
    engine.submit(request("a", PROMPTS["b"], max_tokens=20))
    outputs = [engine.step() for _ in range(3)]
    engine.cancel("a", reports=True)
    last = engine.step().deltas[-1]
    assert last.finish is FinishReason.ABORT
    assert last.stats.answer_tokens == len(collect(outputs)["a"][0]) == 3
    assert last.stats.prompt_tokens == len(PROMPTS["b"])
    assert engine.scheduler.pool.num_held == 0


def test_ending_a_waiting_request_early_answers_once():
    engine = hash_engine(max_sequences=1)
    engine.submit(request("a", PROMPTS["a"]))
    engine.submit(request("b", PROMPTS["b"]))
    engine.step()
    engine.cancel("b", reports=True)
    engine.cancel("b", reports=True)
    answers = collect([engine.step()])
    assert [delta.finish for delta in answers["b"][1]] == [FinishReason.ABORT]
