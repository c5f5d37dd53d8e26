"""Proposals from known and earlier text: they never change an answer, and they save forwards."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler.border.errors import RequestError
from sampler.border.request import DecodingMode, FinishReason, SamplingParams, TokenKind
from sampler.seats.prediction import Endings, Proposer, check_prediction, follow
from tests.sampler.test_canvas_engine import BLOCK, RANKED, TWO_MODE
from tests.sampler.test_latent_engine import NEXT as LATENT
from tests.tiny import CAUSAL_RULE, VOCABULARY, collect, hash_engine, request, run_all

PROMPT = [5, 6, 7, 8]
NGRAM = {"mode": "speculative", "drafts": "ngram"}


def text(*tokens):
    return np.array(tokens, dtype=np.int32)


def predicting(one, prediction):
    return replace(one, prediction=tuple(prediction))


def answer(one, rule=CAUSAL_RULE, **options):
    engine = hash_engine(rule, **options)
    tokens, deltas = run_all(engine, one)[one.id]
    return tokens, deltas[-1]


def said_by_ar(one, rule=CAUSAL_RULE, **options):
    return answer(replace(one, prediction=()), rule, **options)[0]


@pytest.mark.parametrize(
    ("tokens", "count", "found"),
    [
        ((1, 2, 3, 9, 1, 2, 3), 4, (9, 1, 2, 3)),
        ((1, 2, 3, 9, 1, 2, 3), 2, (9, 1)),
        ((1, 2, 8, 1, 2, 9, 1, 2), 3, (9, 1, 2)),
        ((1, 2, 8, 7, 1, 2, 9, 1, 2), 5, (8, 7, 1, 2, 9)),
        ((1, 2, 3, 4, 5, 2, 3, 4), 1, (5,)),
        ((4, 4, 4), 2, (4,)),
        ((1, 2, 3), 4, ()),
        ((1, 9, 2, 1), 4, ()),
        ((1,), 4, ()),
    ],
)
def test_lookup_finds_what_followed_the_ending(tokens, count, found):
    assert tuple(Endings().find(text(*tokens), count=count)) == found


@pytest.mark.parametrize(
    ("said", "near", "place"),
    [
        ((), 0, 0),
        ((10,), 1, 1),
        ((10, 11), 2, 2),
        ((99,), 1, None),
        ((10, 99, 12), 3, 3),
        ((10, 11, 99, 98, 12), 5, 3),
        ((13, 10), 7, 7),
        ((15,), 40, None),
    ],
)
def test_following_finds_the_place_in_the_predicted_text(said, near, place):
    predicted = text(10, 11, 12, 13, 14, 13, 10, 15)
    assert follow(text(*said), predicted, near=near) == place


def test_a_proposer_is_bold_after_success_and_careful_after_failure():
    proposer = Proposer(predicted=range(100))
    first = proposer.propose(text(*PROMPT), prompt_length=4, most=99)
    proposer.observe(num_confirmed=first.size)
    second = proposer.propose(text(*PROMPT, *range(9)), prompt_length=4, most=99)
    proposer.observe(num_confirmed=0)
    third = proposer.propose(text(*PROMPT, *range(10)), prompt_length=4, most=99)
    assert first.tolist() == list(range(8))
    assert second.tolist() == list(range(9, 25))
    assert third.tolist() == [10, 11]
    assert (proposer.num_accepted, proposer.num_rejected) == (8, 16)


def test_what_was_not_offered_is_not_observed():
    proposer = Proposer(predicted=[1, 2])
    proposer.observe(num_confirmed=3)
    assert (proposer.num_accepted, proposer.num_rejected) == (0, 0)


def test_a_true_prediction_saves_forwards_and_is_counted():
    one = request("a", PROMPT, max_tokens=24)
    said = said_by_ar(one)
    tokens, last = answer(predicting(one, said))
    assert tokens == said
    assert last.stats.steps < 8
    assert last.stats.verified_tokens > 18
    assert last.stats.accepted_prediction_tokens == last.stats.verified_tokens
    assert last.stats.rejected_prediction_tokens == 0
    assert last.stats.answer_tokens == 24


def test_a_prediction_that_leaves_words_out_is_followed_further_on():
    one = request("a", PROMPT, max_tokens=30)
    said = said_by_ar(one)
    tokens, last = answer(predicting(one, [*said[:8], *said[11:]]))
    assert tokens == said
    assert last.stats.accepted_prediction_tokens > 16
    assert last.stats.rejected_prediction_tokens > 0


@pytest.mark.parametrize("rule", [TWO_MODE, LATENT])
def test_a_prediction_goes_before_drafts(rule):
    one = request("a", PROMPT, max_tokens=24, decoding={"mode": "speculative", "width": 8})
    said, plain = answer(one, rule)
    tokens, last = answer(predicting(one, said), rule)
    assert tokens == said
    assert last.stats.accepted_prediction_tokens > 16
    assert last.stats.steps < plain.stats.steps / 2


def test_a_wrong_prediction_costs_rows_only():
    one = request("a", PROMPT, max_tokens=12)
    tokens, last = answer(predicting(one, [3] * 20))
    assert tokens == said_by_ar(one)
    assert last.stats.accepted_prediction_tokens == tokens.count(3)
    assert last.stats.steps <= 13


def test_text_that_repeats_is_looked_up():
    fields = {"max_tokens": 30, "allowed_token_ids": (7, 9)}
    said, plain = answer(request("a", PROMPT, **fields))
    tokens, last = answer(request("a", PROMPT, decoding=NGRAM, **fields))
    assert tokens == said
    assert last.stats.verified_tokens > 0
    assert last.stats.steps < plain.stats.steps
    assert last.stats.accepted_prediction_tokens == 0


mutations = st.lists(
    st.tuples(
        st.sampled_from(["drop", "change", "insert"]),
        st.integers(0, 39),
        st.integers(0, VOCABULARY - 2),
    ),
    max_size=6,
)


def mutated(tokens, changes):
    tokens = list(tokens)
    for kind, place, token in changes:
        place %= len(tokens) + 1
        if kind == "insert" or place == len(tokens):
            tokens.insert(place, token)
        elif kind == "change":
            tokens[place] = token
        elif len(tokens) > 1:
            del tokens[place]
    return tokens


@settings(deadline=None, max_examples=40)
@given(
    changes=mutations,
    temperature=st.sampled_from([0.0, 1.0]),
    max_tokens=st.integers(1, 30),
    rule=st.sampled_from([CAUSAL_RULE, TWO_MODE, LATENT]),
    mode=st.sampled_from(["auto", "ar"]),
    max_rows=st.sampled_from([8, 12, 64]),
)
def test_no_prediction_changes_an_answer(changes, temperature, max_tokens, rule, mode, max_rows):
    one = request(
        "a", PROMPT, max_tokens=max_tokens, temperature=temperature, seed=3, decoding={"mode": "ar"}
    )
    said = said_by_ar(one, rule)
    decoding = replace(one.params.decoding, mode=DecodingMode(mode))
    asked = replace(one, params=replace(one.params, decoding=decoding))
    guess = mutated(said, changes)
    assert answer(predicting(asked, guess), rule, max_rows=max_rows)[0] == said


@settings(deadline=None, max_examples=40)
@given(
    prompt=st.lists(st.integers(3, 8), min_size=1, max_size=30),
    temperature=st.sampled_from([0.0, 1.0]),
    width=st.sampled_from([None, 1, 5]),
    rule=st.sampled_from([CAUSAL_RULE, TWO_MODE, LATENT]),
    mode=st.sampled_from(["auto", "speculative"]),
)
def test_no_lookup_changes_an_answer(prompt, temperature, width, rule, mode):
    fields = {"max_tokens": 20, "temperature": temperature, "seed": 4}
    said = said_by_ar(request("a", prompt, decoding={"mode": "ar"}, **fields), rule)
    decoding = {"mode": mode, "drafts": "ngram", "width": width}
    assert answer(request("a", prompt, decoding=decoding, **fields), rule)[0] == said


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
        {"logit_bias": ((7, float("-inf")), (9, 3.0))},
        {"min_tokens": 20, "ignore_eos": False},
        {"ignore_eos": False, "stop_token_ids": tuple(range(10, 20))},
        {"logprobs": 2},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prediction_honours_every_other_wish(params, temperature):
    one = request("a", PROMPT, max_tokens=24, seed=8, temperature=temperature, **params)
    plain, last_plain = answer(one)
    guess = said_by_ar(request("b", PROMPT, max_tokens=24, seed=8, temperature=temperature))
    tokens, last = answer(predicting(one, guess))
    assert tokens == plain
    assert last.finish is last_plain.finish
    assert last.stop_token_id == last_plain.stop_token_id


def test_logprobs_of_confirmed_tokens_are_those_of_ar():
    one = request("a", PROMPT, max_tokens=16, logprobs=1)
    _, plain = run_all(hash_engine(), one)["a"]
    said = said_by_ar(one)
    _, sped = run_all(hash_engine(), predicting(one, said))["a"]
    assert [entry for delta in sped for entry in delta.logprobs] == [
        entry for delta in plain for entry in delta.logprobs
    ]


def test_the_trace_tells_confirmed_tokens_from_drawn_ones():
    one = request("a", PROMPT, max_tokens=12, decoding={"mode": "ar", "trace": True})
    said = said_by_ar(one)
    _, deltas = run_all(hash_engine(), predicting(one, said))["a"]
    kinds = [trace.kind for delta in deltas for trace in delta.trace]
    assert kinds[0] is TokenKind.AR
    assert kinds.count(TokenKind.VERIFIED) == deltas[-1].stats.verified_tokens


@pytest.mark.parametrize("rule", [CAUSAL_RULE, TWO_MODE, LATENT])
def test_guesses_in_a_batch_under_preemption_change_nothing(rule):
    plain = [
        request(name, [n, *PROMPT], max_tokens=40, seed=n, temperature=1.0, decoding={"mode": "ar"})
        for n, name in enumerate("abcdef", 3)
    ]
    said = {one.id: said_by_ar(one, rule) for one in plain}
    engine = hash_engine(rule, num_pages=34, max_rows=24)
    asked = [predicting(one, mutated(said[one.id], [("drop", 9, 0)])) for one in plain]
    answers = run_all(engine, *asked)
    assert {name: tokens for name, (tokens, _) in answers.items()} == said
    assert engine.scheduler.num_preemptions > 0
    assert engine.scheduler.pool.num_held == 0


def test_a_long_prompt_is_not_held_up_by_guesses():
    one = request("a", PROMPT, max_tokens=60)
    said = said_by_ar(one)
    engine = hash_engine(max_rows=16)
    engine.submit(predicting(one, said))
    answers = collect([engine.step() for _ in range(3)])
    engine.submit(request("b", range(3, 43), max_tokens=4))
    for _ in range(40):
        collect([engine.step()], answers)
    assert answers["b"][1][-1].finish is FinishReason.LENGTH
    assert answers["a"][0] == said


@pytest.mark.parametrize("rule", [BLOCK, RANKED])
def test_a_model_that_cannot_verify_refuses_by_name(rule):
    with pytest.raises(RequestError) as refused:
        check_prediction([1], SamplingParams(max_tokens=3), rule, context_length=9)
    assert refused.value.field == "prediction"


def test_the_engine_refuses_what_cannot_be_verified():
    one = predicting(request("a", PROMPT, decoding={"mode": "diffusion"}), [1])
    ratio = {"mode": "speculative", "verification": "ratio"}
    six = predicting(request("f", PROMPT, decoding=ratio), [1])
    two = request("b", PROMPT, decoding={"drafts": "ngram", "mode": "ar"})
    three = request("c", PROMPT, decoding={"drafts": "wishes"})
    long = predicting(request("d", PROMPT), [1] * 129)
    foreign = predicting(request("e", PROMPT), [VOCABULARY])
    answers = run_all(hash_engine(TWO_MODE), one, two, three, long, foreign, six)
    assert {name: deltas[0].error_field for name, (_, deltas) in answers.items()} == {
        "a": "prediction",
        "b": "decoding.drafts",
        "c": "decoding.drafts",
        "d": "prediction",
        "e": "prompt",
        "f": "prediction",
    }


def test_lookup_needs_a_model_that_speaks_of_the_next_token():
    one = request("a", PROMPT, decoding=NGRAM)
    answers = run_all(hash_engine(BLOCK), one)
    assert answers["a"][1][0].error_field == "decoding.drafts"


def test_salts_keep_prefixes_apart():
    prompt = list(range(3, 23))
    engine = hash_engine()
    asked = [
        replace(request(name, prompt), cache_salt=salt)
        for name, salt in (("a", "x"), ("b", "y"), ("c", "x"), ("d", ""))
    ]
    cached = {one.id: run_all(engine, one)[one.id][1][-1].stats.cached_tokens for one in asked}
    assert cached == {"a": 0, "b": 0, "c": 16, "d": 0}


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_endings_of_a_growing_text_are_those_of_the_whole(tokens, count):
    growing = Endings(shortest=2)
    for stop in range(1, len(tokens) + 1):
        part = text(*tokens[:stop])
        assert growing.find(part, count=count).tolist() == searched(part.tolist(), count)


def searched(tokens, count):
    """Look through all of the text."""
    for length in (4, 3, 2):
        places = [
            place
            for place in range(length, len(tokens))
            if len(tokens) > length and tokens[place - length : place] == tokens[-length:]
        ]
        if places:
            whole = [place for place in places if place + count <= len(tokens)]
            start = whole[-1] if whole else places[0]
            return tokens[start : start + count]
    return []


def test_guesses_that_come_true_too_seldom_for_the_price_are_not_made():
    proposer = Proposer(predicted=range(100))
    free, dear = (
        proposer.propose(text(*PROMPT), prompt_length=4, most=99, price=price).size
        for price in (1 / 32, 0.5)
    )
    assert free == 8 > dear > 0
    for _ in range(20):
        proposer.propose(text(*PROMPT), prompt_length=4, most=99)
        proposer.observe(num_confirmed=0)

    def offers():
        return proposer.propose(text(*PROMPT), prompt_length=4, most=99, price=0.5).size

    assert offers() == 0
    # The text may have changed.
    assert any(offers() for _ in range(500))


def test_of_a_long_prompt_the_last_tokens_are_looked_through():
    prompt = [*range(30_000), 29_000, 29_001]
    assert Endings().find(text(*prompt), count=3).tolist() == [29_002, 29_003, 29_004]
    assert Endings().find(text(*prompt[:-2], 10, 11), count=3).size == 0
