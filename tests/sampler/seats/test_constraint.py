"""Answers held to a grammar, in every mode, over the network of hashes and one-character tokens."""

import json
import random
import re

import pytest

from sampler.border.errors import RequestError
from sampler.border.request import FinishReason, GrammarKind, GrammarSpec
from sampler.seats.constraint import Grammars
from tests.sampler.test_canvas_engine import RULES
from tests.tiny import EOS, VOCABULARY, check_engine, collect, hash_engine, request

CHARACTERS = '{}[]":,-0123456789 abcdefghijklmnopqrstuvwxyz'


class CharacterTokenizer:
    """One token per character, from id 3 on; 0 and 1 are spare, 2 ends the text."""

    bos_token_id = None
    special_token_ids = frozenset({0, 1, EOS})
    vocab_size = len(CHARACTERS) + 3

    def token_bytes(self, token_id):
        return CHARACTERS[token_id - 3 : token_id - 2].encode() if token_id >= 3 else b""

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [CHARACTERS.index(c) + 3 for c in text if c in CHARACTERS]


def text_of(tokens):
    return "".join(CHARACTERS[t - 3] for t in tokens if t >= 3)


@pytest.fixture(scope="module")
def grammars():
    return Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])


def random_schema(draw, depth=0):
    kinds = ["integer", "boolean", "enum", "null"] + ["object", "array"] * (depth < 2)
    match draw.choice(kinds):
        case "object":
            names = draw.sample("abcdefgh", draw.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(draw, depth + 1) for name in names},
                "required": names,
                "additionalProperties": False,
            }
        case "array":
            return {"type": "array", "items": random_schema(draw, depth + 1), "maxItems": 2}
        case "integer":
            return {"type": "integer", "minimum": 0, "maximum": 99}
        case "enum":
            return {"enum": ["left", "right", "up"]}
        case kind:
            return {"type": kind}


def fits(value, schema):
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            names = schema["properties"]
            return set(value) == set(names) and all(fits(value[n], names[n]) for n in names)
        case "array":
            return len(value) <= 2 and all(fits(item, schema["items"]) for item in value)
        case "integer":
            return isinstance(value, int) and 0 <= value <= 99
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


def run_constrained(engine, requests):
    answers = {}
    for one in requests:
        engine.submit(one)
    for _ in range(3000):
        if not engine.has_work:
            return answers
        collect([engine.step()], answers)
        check_engine(engine)
    raise AssertionError("still at work")


@pytest.mark.parametrize("name", RULES)
def test_every_answer_fits_its_schema(name, grammars):
    rule, decoding = RULES[name]
    draw = random.Random(name)
    schemas = {str(i): random_schema(draw) for i in range(40)}
    engine = hash_engine(
        rule, num_pages=900, context=260, max_rows=4096, grammars=grammars, max_sequences=10
    )
    requests = [
        request(
            i,
            [5, 6, 7],
            max_tokens=200,
            decoding=decoding,
            ignore_eos=False,
            temperature=1.0,
            seed=int(i),
            grammar=GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        )
        for i, schema in schemas.items()
    ]
    answers = run_constrained(engine, requests)
    finished = {i: a for i, a in answers.items() if a[1][-1].finish is FinishReason.STOP}
    assert len(finished) >= 30
    bad = {
        i: text_of(tokens)
        for i, (tokens, _) in finished.items()
        if not fits(json.loads(text_of(tokens)), schemas[i])
    }
    assert bad == {}


@pytest.mark.parametrize("name", ["two_mode_ar", "two_mode_speculative", "block", "whole"])
def test_a_regular_expression_is_kept(name, grammars):
    rule, decoding = RULES[name]
    engine = hash_engine(rule, grammars=grammars)
    pattern = "[a-c]{3}-(yes|no)"
    one = request(
        "x",
        [9, 9],
        max_tokens=30,
        decoding=decoding,
        grammar=GrammarSpec(GrammarKind.REGEX, pattern),
    )
    tokens, deltas = run_constrained(engine, [one])["x"]
    assert re.fullmatch(pattern, text_of(tokens))
    assert deltas[-1].finish is FinishReason.STOP


def test_speculation_under_a_grammar_gives_the_autoregressive_answer(grammars):
    rule, _ = RULES["two_mode_ar"]
    spec = GrammarSpec(GrammarKind.REGEX, "([a-z]{2} ){4}[0-9]+")
    answers = [
        run_constrained(
            hash_engine(rule, grammars=grammars),
            [request("x", [4], max_tokens=25, decoding={"mode": mode}, grammar=spec)],
        )["x"][0]
        for mode in ("ar", "speculative")
    ]
    assert answers[0] == answers[1]


def test_a_constrained_request_leaves_its_neighbours_alone(grammars):
    spec = GrammarSpec(GrammarKind.REGEX, "[0-9]{9}")
    alone = run_constrained(hash_engine(), [request("free", [5, 6])])["free"][0]
    engine = hash_engine(grammars=grammars)
    both = [request("free", [5, 6]), request("held", [5, 6], max_tokens=9, grammar=spec)]
    answers = run_constrained(engine, both)
    assert answers["free"][0] == alone
    assert text_of(answers["held"][0]).isdigit()


def test_a_grammar_that_does_not_compile_is_refused(grammars):
    with pytest.raises(RequestError, match="does not compile"):
        grammars.constraint(GrammarSpec(GrammarKind.LARK, "start: ("))


def test_a_bad_grammar_costs_only_its_request(grammars):
    engine = hash_engine(grammars=grammars)
    bad = request("bad", [5], grammar=GrammarSpec(GrammarKind.REGEX, "("))
    answers = run_constrained(engine, [bad, request("good", [5])])
    assert answers["bad"][1][0].finish is FinishReason.ERROR
    assert len(answers["good"][0]) == 8


def test_a_model_without_a_tokenizer_refuses_grammars():
    one = request("x", [5], grammar=GrammarSpec(GrammarKind.REGEX, "a"))
    answers = run_constrained(hash_engine(), [one])
    assert "tokenizer" in answers["x"][1][0].error
