"""Random JSON schemas: every answer that did not run out of tokens is valid, in every mode.

Thirty a mode by default; `-m soak` runs a thousand. The checker below is our own and knows nothing
of the parser that holds the answers to the schemas.
"""

import json
import random
import re

import pytest

from sampler.border.request import FinishReason, GrammarKind, GrammarSpec
from sampler.seats.constraint import Grammars
from tests.sampler.seats.test_constraint import CharacterTokenizer, run_constrained, text_of
from tests.sampler.test_canvas_engine import BLOCK, RANKED, TWO_MODE
from tests.tiny import CAUSAL_RULE, EOS, VOCABULARY, hash_engine, request

AT_A_TIME = 10
MAX_TOKENS = 400
PATTERNS = ["[a-f]{2,4}", "x[0-9]{3}", "(ab|cd)+", "[a-z]{0,3}-[0-9]"]
WORDS = ["left", "right", "up", "down", "a b", ""]
MODES = {
    "ar": (CAUSAL_RULE, {"mode": "ar"}),
    "lookup": (CAUSAL_RULE, {"mode": "speculative", "drafts": "ngram"}),
    "speculative": (TWO_MODE, {"mode": "speculative"}),
    "auto": (TWO_MODE, {"mode": "auto"}),
    "diffusion": (TWO_MODE, {"mode": "diffusion"}),
    "diffusion_blocks": (BLOCK, {"mode": "diffusion"}),
    "any_order": (RANKED, {"mode": "diffusion"}),
}


def random_schema(draw, depth=0):
    leaves = [_integer, _number, _boolean, _null, _enum, _const, _pattern, _string]
    nested = [_object, _array, _any_of] * 2 if depth < 3 else []
    return draw.choice(leaves + nested)(draw, depth)


def _integer(draw, _):
    low = draw.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 120)}


def _number(draw, _):
    return {"type": "number", "minimum": 0, "maximum": draw.randint(1, 50)}


def _boolean(_draw, _):
    return {"type": "boolean"}


def _null(_draw, _):
    return {"type": "null"}


def _enum(draw, _):
    return {"enum": draw.sample([*WORDS, 1, 22, None, True], draw.randint(1, 5))}


def _const(draw, _):
    return {"const": draw.choice([*WORDS, 7, [1, 2], {"a": "b"}])}


def _pattern(draw, _):
    return {"type": "string", "pattern": f"^{draw.choice(PATTERNS)}$", "maxLength": 12}


def _string(draw, _):
    return {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 6)}


def _object(draw, depth):
    names = draw.sample("abcdefgh", draw.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth + 1) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": False,
    }


def _array(draw, depth):
    low = draw.randint(0, 2)
    items = random_schema(draw, depth + 1)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + draw.randint(0, 2)}


def _any_of(draw, depth):
    return {"anyOf": [random_schema(draw, depth + 1) for _ in range(draw.randint(1, 3))]}


def fits(value, schema):
    """Whether a value is what the schema allows, for schemas of the kinds above."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "const" in schema:
        return _same(value, schema["const"])
    if "enum" in schema:
        return any(_same(value, each) for each in schema["enum"])
    return _CHECKS[schema["type"]](value, schema)


def _same(value, other):
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_number(value, schema):
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and schema["minimum"] <= value <= schema["maximum"]


def _is_string(value, schema):
    if not isinstance(value, str) or not len(value) <= schema["maxLength"]:
        return False
    if len(value) < schema.get("minLength", 0):
        return False
    return re.search(schema.get("pattern", ""), value) is not None


def _is_object(value, schema):
    known = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(known)
        and all(fits(item, known[name]) for name, item in value.items())
    )


def _is_array(value, schema):
    return (
        isinstance(value, list)
        and schema["minItems"] <= len(value) <= schema["maxItems"]
        and all(fits(item, schema["items"]) for item in value)
    )


_CHECKS = {
    "integer": lambda value, schema: isinstance(value, int) and _is_number(value, schema),
    "number": _is_number,
    "boolean": lambda value, _: isinstance(value, bool),
    "null": lambda value, _: value is None,
    "string": _is_string,
    "object": _is_object,
    "array": _is_array,
}


@pytest.fixture(scope="module")
def grammars():
    return Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])


def answers_to(schemas, mode, grammars, *, seed):
    """(text, why it ended) of an answer to each schema, run beside each other."""
    rule, decoding = MODES[mode]
    engine = hash_engine(
        rule,
        num_pages=2000,
        context=MAX_TOKENS + 20,
        max_rows=8192,
        grammars=grammars,
        max_sequences=AT_A_TIME,
    )
    asked = [
        request(
            str(number),
            [5, 6, 3 + number % 40],
            max_tokens=MAX_TOKENS,
            decoding=decoding,
            ignore_eos=False,
            temperature=1.0,
            seed=seed + number,
            grammar=GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
        )
        for number, schema in enumerate(schemas)
    ]
    answers = run_constrained(engine, asked)
    return [(text_of(answers[one.id][0]), answers[one.id][1][-1].finish) for one in asked]


def test_nothing_is_said_behind_the_end_of_a_grammar(grammars):
    schemas = [{"type": "null"}] * 12
    # A seed at which proposals behind the end were confirmed, and an end of text after them.
    answers = answers_to(schemas, "speculative", grammars, seed=540)
    assert set(answers) == {("null", FinishReason.STOP)}


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(1800)
def test_every_answer_that_ends_by_itself_is_valid(mode, count, grammars):
    draw = random.Random(f"{mode} {count}")
    num_ended = 0
    for start in range(0, count, AT_A_TIME):
        schemas = [random_schema(draw) for _ in range(AT_A_TIME)]
        for schema, (text, finish) in zip(
            schemas, answers_to(schemas, mode, grammars, seed=start), strict=True
        ):
            assert finish in (FinishReason.STOP, FinishReason.LENGTH), (schema, finish)
            num_ended += finish is FinishReason.STOP
            assert finish is not FinishReason.STOP or fits(json.loads(text), schema), (text, schema)
    assert num_ended > 0.9 * count


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (5, {"type": "integer", "minimum": 6, "maximum": 9}),
        (True, {"type": "integer", "minimum": 0, "maximum": 9}),
        ("abc", {"type": "string", "maxLength": 2}),
        ("zz", {"type": "string", "pattern": "^[a-f]{2,4}$", "maxLength": 9}),
        ({"b": 1}, {"type": "object", "properties": {"a": {}}, "required": []}),
        ([1], {"type": "array", "items": {"const": 2}, "minItems": 0, "maxItems": 3}),
        (1, {"enum": [True, "1"]}),
        ({"a": 1}, {"anyOf": [{"const": {"a": 2}}, {"type": "null"}]}),
    ],
)
def test_the_checker_finds_what_is_wrong(value, schema):
    assert not fits(value, schema)
