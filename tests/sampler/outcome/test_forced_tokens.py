"""Tokens that a grammar forces are put into canvases without a step, and answers still hold."""

import re

import pytest

from sampler.border.request import FinishReason, GrammarKind, GrammarSpec
from tests.sampler.seats.test_constraint import grammars, run_constrained, text_of  # noqa: F401
from tests.sampler.test_canvas_engine import RULES
from tests.sampler.test_latent_engine import NEXT, OWN
from tests.tiny import hash_engine, request

PATTERN = "the name is [a-z]{3} and its length is [0-9]{2} km"
NUM_FORCED = len("the name is  and its length is  km")
LATENT = {"mode": "diffusion", "width": 6}
CANVASES = {
    **{name: RULES[name] for name in ("window", "block", "seeded", "two_mode_diffusion", "whole")},
    "whole_prefix_cache": RULES["whole_prefix_cache"],
    "latent_next": (NEXT, LATENT),
    "latent_own": (OWN, LATENT),
}
VERIFIED = ["two_mode_ar", "two_mode_speculative", "two_mode_auto", "ranked"]


def constrained(name, decoding, **fields):
    spec = GrammarSpec(GrammarKind.REGEX, PATTERN)
    fields = {"max_tokens": 60, "temperature": 1.0, "seed": 5, **fields}
    return request(name, [5, 6, 7], decoding=decoding, ignore_eos=False, grammar=spec, **fields)


def engine_of(rule, grammars, **options):  # noqa: F811
    return hash_engine(rule, grammars=grammars, **{"num_pages": 200, "max_rows": 4096, **options})


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_takes_what_is_forced_without_a_row(name, grammars):  # noqa: F811
    rule, decoding = CANVASES[name]
    engine = engine_of(rule, grammars)
    tokens, deltas = run_constrained(engine, [constrained("x", decoding)])["x"]
    assert re.fullmatch(PATTERN, text_of(tokens))
    assert deltas[-1].finish is FinishReason.STOP
    # The first step finds nothing pinned yet, and the seed of a canvas is drawn.
    assert engine.metrics.tokens_forced >= 0.8 * NUM_FORCED
    assert deltas[-1].stats.steps <= len(tokens) - engine.metrics.tokens_forced + 10


@pytest.mark.parametrize("name", CANVASES)
@pytest.mark.parametrize("options", [{}, {"num_pages": 24}, {"max_rows": 24}])
def test_the_answer_is_the_same_in_any_batch(name, options, grammars):  # noqa: F811
    if name.startswith("whole") and "max_rows" in options:
        options = {"num_pages": 40}
    rule, decoding = CANVASES[name]
    alone = run_constrained(engine_of(rule, grammars), [constrained("a", decoding)])["a"][0]
    others = [constrained(other, decoding, seed=len(other)) for other in ("bb", "ccc", "dddd")]
    free = request("free", [9, 9], max_tokens=30, decoding=decoding)
    batch = run_constrained(
        engine_of(rule, grammars, **options), [constrained("a", decoding), *others, free]
    )
    assert batch["a"][0] == alone
    assert all(re.fullmatch(PATTERN, text_of(batch[one.id][0])) for one in others)


@pytest.mark.parametrize("name", CANVASES)
def test_forced_tokens_are_certain(name, grammars):  # noqa: F811
    rule, decoding = CANVASES[name]
    engine = engine_of(rule, grammars)
    asked = constrained("x", {**(decoding or {}), "trace": True, "frames": True}, logprobs=0)
    tokens, deltas = run_constrained(engine, [asked])["x"]
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    trace = [entry for delta in deltas for entry in delta.trace]
    certain = [entry for entry in logprobs if entry.logprob == 0]
    assert [entry.token_id for entry in logprobs] == tokens
    assert len(trace) == len(tokens)
    assert len(certain) >= engine.metrics.tokens_forced
    assert sum(entry.uncertainty == 0 for entry in trace) >= engine.metrics.tokens_forced


@pytest.mark.parametrize("name", VERIFIED)
def test_verified_answers_are_left_to_the_network(name, grammars):  # noqa: F811
    rule, decoding = RULES[name]
    engine = engine_of(rule, grammars)
    tokens, _ = run_constrained(engine, [constrained("x", decoding)])["x"]
    assert re.fullmatch(PATTERN, text_of(tokens))
    assert engine.metrics.tokens_forced == 0


def test_an_answer_that_has_no_room_is_cut_where_it_ends(grammars):  # noqa: F811
    rule, decoding = RULES["block"]
    engine = engine_of(rule, grammars)
    tokens, deltas = run_constrained(engine, [constrained("x", decoding, max_tokens=9)])["x"]
    assert text_of(tokens) == "the name "
    assert deltas[-1].finish is FinishReason.LENGTH
