"""`response_format` and `structured_outputs`: what reaches the engine, and what is refused."""

import json
import time

import pytest

from sampler import GrammarKind, GrammarSpec
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def _format(kind, **fields):
    return {"response_format": {"type": kind, **fields}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (_format("text"), None),
        (_format("json_object"), GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}')),
        (
            _format("json_schema", json_schema={"name": "x", "schema": SCHEMA, "strict": True}),
            GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ),
        (_format("regex", regex="a+b"), GrammarSpec(GrammarKind.REGEX, "a+b")),
        (
            _format("grammar", grammar='start: "a" | "b"'),
            GrammarSpec(GrammarKind.LARK, 'start: "a" | "b"'),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"regex": "a+"}}, GrammarSpec(GrammarKind.REGEX, "a+")),
        (
            {"structured_outputs": {"choice": ["ja", 'n"ein']}},
            GrammarSpec(GrammarKind.LARK, 'start: "ja" | "n\\"ein"'),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}'),
        ),
    ],
)
async def test_a_format_reaches_the_engine_as_a_grammar(serve, fields, expected):
    async with serve() as served:
        chat = await served.chat(**fields)
        completion = await served.complete(**fields)
    assert (chat.status_code, completion.status_code) == (200, 200), chat.text
    assert [request.params.grammar for request in served.engine.submitted] == [expected] * 2


async def test_ebnf_is_translated(serve):
    grammar = 'root ::= "a" digit+\ndigit ::= [0-9]'
    async with serve() as served:
        response = await served.chat(**_format("grammar", grammar=grammar))
    spec = served.engine.submitted[0].params.grammar
    assert response.status_code == 200
    assert spec.kind is GrammarKind.LARK
    assert "start:" in spec.text


NESTED = "[" * 40 + "]" * 40


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        (_format("yaml"), "response_format", 400),
        ({"response_format": "json"}, "response_format", 400),
        (_format("json_schema"), "response_format.json_schema", 400),
        (
            _format("json_schema", json_schema={"name": "x"}),
            "response_format.json_schema.schema",
            400,
        ),
        (
            _format("json_schema", json_schema={"schema": {"type": "objct"}}),
            "response_format.json_schema.schema",
            422,
        ),
        (
            _format("json_schema", json_schema={"schema": {"enum": ["x" * 70_000]}}),
            "response_format.json_schema.schema",
            400,
        ),
        (
            _format("json_schema", json_schema={"schema": {"a": json.loads(NESTED)}}),
            "response_format.json_schema.schema",
            400,
        ),
        (_format("regex", regex="(a"), "response_format.regex", 422),
        (_format("regex", regex="a" * 5000), "response_format.regex", 400),
        (_format("regex", regex=""), "response_format.regex", 400),
        (_format("grammar", grammar="start: nowhere"), "response_format.grammar", 422),
        (_format("grammar", grammar="root ::= ((("), "response_format.grammar", 400),
        (_format("grammar", grammar="root ::= " + "(" * 3000), "response_format.grammar", 400),
        ({"structured_outputs": {}}, "structured_outputs", 400),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", 400),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", 400),
        ({"structured_outputs": {"json": NESTED}}, "structured_outputs.json", 400),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", 400),
        (
            _format("json_object") | {"structured_outputs": {"regex": "a"}},
            "structured_outputs",
            400,
        ),
        ({"guided_json": SCHEMA}, "guided_json", 400),
    ],
)
async def test_a_format_that_cannot_be_honoured_is_named(serve, fields, param, status):
    async with serve() as served:
        response = await served.chat(**fields)
    assert response.status_code == status, response.text
    assert error_of(response)["param"] == param
    assert served.engine.submitted == []


async def test_a_model_that_cannot_be_constrained_says_so(serve):
    async with serve(ScriptedEngine(can_constrain=False)) as served:
        response = await served.chat(**_format("json_object"))
        free = await served.chat(**_format("text"))
    assert response.status_code == 400
    assert error_of(response)["code"] == "unsupported_parameter"
    assert error_of(response)["param"] == "response_format"
    assert free.status_code == 200


@pytest.mark.parametrize(
    "pattern",
    ["((a{1,100}){1,100}){1,100}", "(a|a)*" * 200, "(?:" * 500 + "a" + ")*" * 500, "[a-z]{100000}"],
)
async def test_a_hostile_pattern_costs_little(serve, pattern):
    started_s = time.process_time()
    async with serve() as served:
        response = await served.chat(**_format("regex", regex=pattern))
    assert response.status_code in (200, 400, 422)
    assert time.process_time() - started_s < 2
