"""Forced calls: their arguments are given as they come, and add up to what was said."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.calls.answer_parts import ArgumentsPart, CallPart, CallRules, StreamedPartReader
from server.calls.tool_calls import ToolStyle
from server.schema.tools import NamedChoice
from tests.server.calls.test_tool_calls import CALL, OTHER, TAGGED, TOOL
from tests.server.conftest import events
from tests.server.scripted_engine import ScriptedEngine, saying, template

NAMED = NamedChoice.model_validate({"type": "function", "function": {"name": "weather"}})
PLACES = '{"city": "a \\"{[}]\\\\", "more": [{"x": 1}, {}]}'
TWO = f'[{{"name": "weather", "arguments": {PLACES}}}, {{"name":"clock","arguments":{{}}}}]'


def read(text, choice, *, cuts=(), is_single=False):
    """(content, calls) of a text that comes in pieces."""
    rules = CallRules(style=ToolStyle.TAGGED, choice=choice, is_single=is_single)
    reader = StreamedPartReader(rules)
    bounds = [0, *sorted(cuts), len(text)]
    parts = [p for a, b in pairwise(bounds) for p in reader.feed(text[a:b])]
    parts += reader.finish()
    calls = {
        part.index: [part.name, part.arguments] for part in parts if isinstance(part, CallPart)
    }
    for part in parts:
        if isinstance(part, ArgumentsPart):
            calls[part.index][1] += part.text
    assert reader.num_calls >= len(calls)
    return "".join(part for part in parts if isinstance(part, str)), [*map(tuple, calls.values())]


@given(cuts=st.lists(st.integers(0, len(TWO)), max_size=6))
def test_calls_add_up_however_the_text_is_cut(cuts):
    wanted = [("weather", PLACES), ("clock", "{}")]
    assert read(TWO, "required", cuts=cuts) == ("", wanted)
    assert read(TWO, "required", cuts=cuts, is_single=True) == ("", wanted[:1])


@given(cuts=st.lists(st.integers(0, len(PLACES)), max_size=6))
def test_arguments_of_a_named_function_are_all_there_is(cuts):
    assert read(PLACES, NAMED, cuts=cuts) == ("", [("weather", PLACES)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", [])),
        ('[{"name": "wea', ('[{"name": "wea', [])),
        ('[{"name": "weather", "arguments": {"ci', ("", [("weather", '{"ci')])),
        ('[{"name": "a", "arguments": {}}, {"na', ("", [("a", "{}")])),
    ],
)
def test_an_answer_that_was_cut_leaves_what_had_begun(text, expected):
    assert read(text, "required") == expected


def test_calls_of_the_models_own_are_complete_when_they_are_given():
    content, calls = read(f"Hm.{CALL}", "auto", cuts=range(0, 60, 7))
    assert (content, calls) == ("Hm.", [("weather", '{"city": "Köln"}')])


@pytest.mark.anyio
@pytest.mark.parametrize(("choice", "text"), [("required", TWO), (NAMED.model_dump(), PLACES)])
async def test_a_stream_gives_arguments_as_they_come_and_the_whole_is_their_sum(
    serve, choice, text
):
    engine = ScriptedEngine(saying(text, cut=9), context_length=4096)
    asked = {"tools": [TOOL, OTHER], "tool_choice": choice}
    async with serve(engine, chat_template=template(TAGGED)) as served:
        chunks = events(await served.chat(**asked, stream=True))
        whole = (await served.chat(**asked)).json()["choices"][0]
    deltas = [
        call
        for chunk in chunks
        for call in chunk["choices"][0]["delta"].get("tool_calls", [])
        if call["index"] == 0
    ]
    assert len(deltas) > 3
    assert [("id" in call, "name" in call["function"]) for call in deltas] == [
        (True, True),
        *[(False, False)] * (len(deltas) - 1),
    ]
    assert "".join(call["function"]["arguments"] for call in deltas) == PLACES
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == PLACES
    assert json.loads(PLACES)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "tool_calls"


@pytest.mark.anyio
async def test_a_call_that_runs_out_of_tokens_is_cut_and_says_so(serve):
    engine = ScriptedEngine(saying(PLACES), context_length=4096)
    async with serve(engine, chat_template=template(TAGGED)) as served:
        asked = {"tools": [TOOL], "tool_choice": NAMED.model_dump(), "max_tokens": 8}
        choice = (await served.chat(**asked)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == PLACES[:8]
