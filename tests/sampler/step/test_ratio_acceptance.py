"""Ratio acceptance through the whole engine: AR's distribution, with more drafts kept."""

from dataclasses import replace

import numpy as np
import pytest

from sampler.border.errors import RequestError
from sampler.state.decoding import resolve_decoding
from sampler.step.graph_runner import GraphRunner
from sampler.step.runner import Runner
from tests.sampler.golden_engine import golden_engine
from tests.sampler.step.test_graph_runner import replaying_engine
from tests.sampler.whole_decodes import case_model
from tests.tiny import CAUSAL_RULE, request, run_all
from weights import FAMILIES

MODELS = ("nemotron_labs_diffusion", "esolm")
PROMPT = [7, 20, 33, 46, 59]
NUM_ANSWERS = 600
LENGTH = 4
# Standard deviations of the difference of two shares: beyond reach for some hundred of them.
CLOSE = 4.5
ALLOWED = tuple(range(3, 60, 2))


def named(name):
    return next(family.rule for family in FAMILIES if family.name == name)


def decoding_of(name, verification):
    """Drafts of three, verified; Eso-LM in AR's order."""
    own = {"mode": "speculative", "width": 3, "verification": verification}
    return own | ({"alpha_0": 0.0} if name == "esolm" else {})


def answers(name, decoding, *, count=NUM_ANSWERS, length=LENGTH, **params):
    """Tokens [count, length] and the statistics of requests that differ in their seeds."""
    engine = golden_engine(case_model(name), context=32, max_sequences=32)
    options = {"max_tokens": length, "decoding": decoding, "temperature": 1.0} | params
    requests = [request(str(seed), PROMPT, seed=seed, **options) for seed in range(count)]
    found = run_all(engine, *requests, check=False)
    tokens = np.array([found[str(seed)][0] for seed in range(count)])
    return tokens, [found[str(seed)][1][-1].stats for seed in range(count)]


def counts_of_pairs(tokens, place, buckets=5):
    """How often (token, next token) falls into each of buckets x buckets, from a place on."""
    pairs = tokens[:, place] % buckets * buckets + tokens[:, place + 1] % buckets
    return np.bincount(pairs, minlength=buckets**2).astype(float)


def largest_deviation(found, wanted):
    """The largest difference of counts of pairs, in its standard deviation."""
    return max(
        (np.abs(first - second) / np.sqrt(first + second + 1)).max()
        for first, second in (
            (counts_of_pairs(found, place), counts_of_pairs(wanted, place))
            for place in range(LENGTH - 1)
        )
    )


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("esolm", {}),
        ("nemotron_labs_diffusion", {}),
        ("nemotron_labs_diffusion", {"temperature": 0.6, "top_k": 20}),
        ("nemotron_labs_diffusion", {"allowed_token_ids": ALLOWED}),
        ("nemotron_labs_diffusion", {"presence_penalty": 1.5, "logit_bias": ((5, 2.0), (9, -3.0))}),
    ],
    ids=["any_order", "plain", "filtered", "allowed", "adjusted"],
)
def test_answers_are_distributed_as_those_of_ar(name, params):
    order = {"alpha_0": 0.0} if name == "esolm" else {}
    wanted, _ = answers(name, {"mode": "ar"} | order, **params)
    found, _ = answers(name, decoding_of(name, "ratio"), **params)
    assert largest_deviation(found, wanted) < CLOSE
    if "allowed_token_ids" in params:
        assert np.isin(found, params["allowed_token_ids"]).all()
    assert (found != wanted).any(), "the tokens are not those of the same seed"


@pytest.mark.parametrize("name", MODELS)
def test_more_drafts_are_kept_than_by_coupled_draws(name):
    kept = {}
    for verification in ("coupled", "ratio"):
        _, stats = answers(name, decoding_of(name, verification), count=300, length=12)
        kept[verification] = sum(one.verified_tokens for one in stats)
    assert kept["ratio"] > 1.02 * kept["coupled"]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_coupled_draws(name):
    found = [
        answers(name, decoding_of(name, verification), count=3, length=14, temperature=0.0)[0]
        for verification in ("coupled", "ratio")
    ]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["auto", "speculative"])
def test_an_answer_is_the_same_alone_in_a_batch_and_after_preemption(name, mode):
    decoding = decoding_of(name, "ratio") | {"mode": mode}
    requests = [
        request(str(n), [*PROMPT, n], max_tokens=12, decoding=decoding, seed=n, temperature=1.0)
        for n in range(4)
    ]
    alone = [
        run_all(golden_engine(case_model(name), context=32), one)[one.id][0] for one in requests
    ]
    engine = golden_engine(case_model(name), context=32)
    together = run_all(engine, *requests)
    assert [together[one.id][0] for one in requests] == alone
    if mode == "auto":
        return  # How wide a round is may change with a preemption, and with it what is drawn.
    narrow = golden_engine(case_model(name), context=32, max_sequences=4, num_pages=12)
    squeezed = run_all(narrow, *requests)
    assert narrow.metrics.num_preemptions > 0
    assert [squeezed[one.id][0] for one in requests] == alone


def test_a_seat_that_is_used_again_verifies_nothing_of_its_last_sequence():
    name = "nemotron_labs_diffusion"
    engine = golden_engine(case_model(name), context=32, max_sequences=1)
    options = {"max_tokens": 12, "decoding": decoding_of(name, "ratio"), "temperature": 1.0}
    first = request("first", PROMPT, seed=1, **options)
    engine.submit(first)
    while not engine.runner.ratio._kept:
        engine.step()
    engine.cancel("first")
    second = replace(request("second", PROMPT, seed=2, **options), prediction=(1, 2, 3, 4))
    alone = golden_engine(case_model(name), context=32, max_sequences=1)
    assert run_all(engine, second)["second"][0] == run_all(alone, second)["second"][0]


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_verify_by_ratio_too(name):
    engine = replaying_engine(f"{name}/speculative")
    assert isinstance(engine.runner, GraphRunner)
    assert isinstance(engine.runner._eager, Runner)
    one = request(
        "one", PROMPT, max_tokens=14, decoding=decoding_of(name, "ratio"), seed=3, temperature=1.0
    )
    eager = golden_engine(case_model(name), context=32)
    assert run_all(engine, one)["one"][0] == run_all(eager, one)["one"][0]
    assert engine.runner.num_replayed > engine.runner.num_eager


@pytest.mark.parametrize(
    ("name", "decoding", "words"),
    [
        ("nemotron_labs_diffusion", {"mode": "ar"}, "the model itself verifies"),
        ("nemotron_labs_diffusion", {"mode": "diffusion"}, "the model itself verifies"),
        ("sdar", {}, "the model itself verifies"),
        ("llama", {}, "the model itself verifies"),
        ("llama", {"drafts": "ngram"}, "the model itself verifies"),
        ("esolm", {"verification": "dice"}, "must be one of coupled, ratio, got 'dice'"),
    ],
)
def test_what_cannot_be_verified_by_ratio_is_refused(name, decoding, words):
    rule = CAUSAL_RULE if name == "llama" else named(name)
    params = request("x", [1], decoding={"verification": "ratio"} | decoding).params
    with pytest.raises(RequestError, match=words) as refusal:
        resolve_decoding(params, rule)
    assert refusal.value.field == "decoding.verification"


def test_coupled_is_the_default():
    rule = named("esolm")
    params = request("x", [1], decoding={"mode": "speculative"}).params
    assert not resolve_decoding(params, rule).by_ratio
    asked = replace(params, decoding=replace(params.decoding, verification="coupled"))
    assert not resolve_decoding(asked, rule).by_ratio
