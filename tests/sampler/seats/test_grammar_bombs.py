"""Grammars made to cost: each is bounded, fails alone, and leaves its neighbours as they were."""

import contextlib
import json

import numpy as np
import pytest

from sampler.border.errors import RequestError
from sampler.border.request import FinishReason, GrammarKind, GrammarSpec
from sampler.seats.constraint import Grammars
from tests.sampler.seats.test_constraint import CharacterTokenizer, run_constrained
from tests.sampler.test_canvas_engine import TWO_MODE
from tests.tiny import CAUSAL_RULE, EOS, VOCABULARY, hash_engine, request

pytestmark = pytest.mark.timeout(20)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
    return schema


GROWING = ["(?:(?:a{1,100}){1,100}){1,100}", "(" * 9 + "a?" + "){50}" * 9]
REGEXES = [
    *GROWING,
    "(a{1,1000}){1,1000}",
    "((((a+)+)+)+)+b",
    "(a|aa)+",
    "(x+x+)+y",
    "(.*a){30}",
    ".{0,4000}x" * 3,
    "[ -z]{1,100000}",
    "(a|b)*a(a|b){18}",
    "(" * 200 + "a" + ")" * 200,
]
SCHEMAS = [
    {"enum": ["x" * length for length in range(1, 400)]},
    nested(8),
    {"type": "array", "minItems": 100_000, "items": {"type": "string"}},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    {"allOf": [{"type": "string", "pattern": "a*b*" * 5} for _ in range(30)]},
    {"type": "number", "multipleOf": 1e-9},
    {"type": "integer", "maximum": 10**300},
    {"oneOf": [{"type": "string", "pattern": f".*{n}.*"} for n in range(40)]},
]
GRAMMARS = [
    'start: a a a a\na: b b b b\nb: c c c c\nc: d d d d\nd: "x" | "xx"',
    'start: start start | "a"',
    'start: (((("a")*)*)*)*',
    "start: " + "(" * 5000 + '"a"' + ")" * 5000,
]
HOPELESS = [
    '{"$ref": "#"}',
    '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    "false",
]
SPECS = [
    *(GrammarSpec(GrammarKind.REGEX, text) for text in REGEXES),
    *(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)) for schema in SCHEMAS),
    *(GrammarSpec(GrammarKind.LARK, text) for text in GRAMMARS),
]


@pytest.fixture(scope="module")
def grammars():
    return Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])


def walk(constraint, num_steps):
    """Take tokens that are allowed, from the middle of what is."""
    for _ in range(num_steps):
        allowed = np.flatnonzero(np.unpackbits(constraint.mask().view("uint8"), bitorder="little"))
        if constraint.is_done or allowed.size == 0:
            return
        assert constraint.take([int(allowed[allowed.size // 3])]) == 1


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text[:30])
def test_a_bomb_is_refused_or_costs_little(grammars, spec):
    with contextlib.suppress(RequestError):
        constraint = grammars.constraint(spec)
        walk(constraint, 100)
        assert constraint.num_consumed <= 100


@pytest.mark.parametrize("text", HOPELESS)
def test_a_schema_that_no_answer_fits_is_refused(grammars, text):
    with pytest.raises(RequestError) as refused:
        grammars.constraint(GrammarSpec(GrammarKind.JSON_SCHEMA, text))
    assert refused.value.field == "response_format"


@pytest.mark.parametrize("text", GROWING)
@pytest.mark.parametrize("rule", [CAUSAL_RULE, TWO_MODE])
def test_a_grammar_that_grows_too_large_fails_its_own_request_only(grammars, rule, text):
    engine = hash_engine(rule, grammars=grammars, num_pages=200)
    spec = GrammarSpec(GrammarKind.REGEX, text)
    bomb = request("bomb", [5, 6], max_tokens=100, grammar=spec, ignore_eos=False)
    beside = request("beside", [7, 8], max_tokens=40, seed=1, temperature=1.0)
    alone = run_constrained(hash_engine(rule, num_pages=200), [beside])["beside"][0]
    answers = run_constrained(engine, [bomb, beside])
    last = answers["bomb"][1][-1]
    assert last.finish in (FinishReason.ERROR, FinishReason.STOP)
    assert answers["beside"][0] == alone
    assert engine.scheduler.pool.num_held == 0


def test_an_answer_that_cannot_go_on_ends_with_an_error_and_not_with_a_stop(grammars):
    engine = hash_engine(grammars=grammars)
    spec = GrammarSpec(GrammarKind.REGEX, GROWING[0] + "b")
    no_end = ((CharacterTokenizer().encode("b", add_special_tokens=False)[0], float("-inf")),)
    bomb = request("a", [5], max_tokens=100, logit_bias=no_end, grammar=spec)
    answers = run_constrained(engine, [bomb])
    last = answers["a"][1][-1]
    assert last.finish is FinishReason.ERROR
    assert last.is_refusal
    assert last.error_field == "response_format"
    assert "cannot be kept" in last.error
