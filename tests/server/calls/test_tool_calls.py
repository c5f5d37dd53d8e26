"""Tool calls: what the prompt says, and calls read from every style of writing them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler import GrammarKind
from server.calls.answer_parts import CallPart, CallRules, PartReader
from server.calls.tool_calls import ToolStyle, style_of
from server.schema.tools import NamedChoice
from tests.server.conftest import error_of, events
from tests.server.scripted_engine import ScriptedEngine, saying, template

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TAGGED = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.city }}"
    "</tool_call>{% endfor %};{% endfor %}"
)
LISTED = "{{ tools }}[TOOL_CALLS]"
BARE = "{{ tools }}"
NAMED = NamedChoice.model_validate({"type": "function", "function": {"name": "weather"}})


SCHEMAS = {
    "plan": {
        "type": "object",
        "properties": {
            "city": {"type": ["string", "number"]},
            "days": {"type": "integer"},
            "stops": {"type": "array"},
        },
    }
}


def _read(text, style, choice="auto", *, cuts=(), is_single=False):
    rules = CallRules(style=style, choice=choice, is_single=is_single, schemas=SCHEMAS)
    reader = PartReader(rules)
    bounds = [0, *sorted(cuts), len(text)]
    parts = [part for start, stop in pairwise(bounds) for part in reader.feed(text[start:stop])]
    parts += reader.finish()
    content = "".join(part for part in parts if isinstance(part, str))
    calls = [(part.name, part.arguments) for part in parts if isinstance(part, CallPart)]
    return content, calls


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (TAGGED, ToolStyle.TAGGED),
        (LISTED, ToolStyle.LISTED),
        (LISTED + "{{ name }}[ARGS]", ToolStyle.ARGUED),
        ("{{ tools }}<TOOLCALL>", ToolStyle.ENCLOSED),
        (TAGGED + "<function=", ToolStyle.CODED),
        (BARE, ToolStyle.BARE),
        ("{{ messages }}", ToolStyle.UNTAUGHT),
    ],
)
def test_the_template_tells_the_style(source, style):
    assert style_of(source) is style


CODE = (
    "<tool_call>\n<function=plan>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n12\n"
    '</parameter>\n<parameter=stops>\n["a"]\n</parameter>\n<parameter=note>\na\n<b>\n</parameter>'
    "\n</function>\n</tool_call>"
)
PLANNED = ("plan", '{"city": "12", "days": 12, "stops": ["a"], "note": "a\\n<b>"}')
KOELN = ("weather", '{"city": "Köln"}')


@pytest.mark.parametrize(
    ("text", "style", "choice", "expected"),
    [
        ("just text", ToolStyle.TAGGED, "auto", ("just text", [])),
        (CALL, ToolStyle.TAGGED, "auto", ("", [KOELN])),
        (f"Let me see.\n\n{CALL}\n", ToolStyle.TAGGED, "auto", ("Let me see.", [KOELN])),
        (f"{CALL}\n{CALL}", ToolStyle.UNTAUGHT, "auto", ("", [KOELN, KOELN])),
        (
            '<tool_call>[{"name": "a", "parameters": {}}, {"name": "b"}]</tool_call>',
            ToolStyle.TAGGED,
            "auto",
            ("", [("a", "{}"), ("b", "{}")]),
        ),
        ("<tool_call>nonsense</tool_call>", ToolStyle.TAGGED, "auto",
         ("<tool_call>nonsense</tool_call>", [])),
        ('<tool_call>{"name": "a"', ToolStyle.TAGGED, "auto", ('<tool_call>{"name": "a"', [])),
        ('<tool_call>{"name": "a"}', ToolStyle.TAGGED, "auto", ("", [("a", "{}")])),
        ("a < b <tool", ToolStyle.TAGGED, "auto", ("a < b <tool", [])),
        ("text \n ", ToolStyle.TAGGED, "auto", ("text \n ", [])),
        ('[TOOL_CALLS][{"name": "a", "arguments": {"x": 1}}]', ToolStyle.LISTED, "auto",
         ("", [("a", '{"x": 1}')])),
        ('ok [TOOL_CALLS] [{"name"', ToolStyle.LISTED, "auto", ('ok[TOOL_CALLS] [{"name"', [])),
        (CODE, ToolStyle.CODED, "auto", ("", [PLANNED])),
        (f"Well.\n{CODE}\n{CODE}", ToolStyle.CODED, "auto", ("Well.", [PLANNED, PLANNED])),
        (CALL, ToolStyle.CODED, "auto", ("", [KOELN])),
        ("<tool_call><function=a></function></tool_call>", ToolStyle.CODED, "auto",
         ("", [("a", "{}")])),
        ("<tool_call><function=a><parameter=x></function></tool_call>", ToolStyle.CODED, "auto",
         ("<tool_call><function=a><parameter=x></function></tool_call>", [])),
        ("<tool_call><function=a>1</function></tool_call>", ToolStyle.CODED, "auto",
         ("<tool_call><function=a>1</function></tool_call>", [])),
        ('<TOOLCALL>[{"name": "a", "arguments": {}}, {"name": "b"}]</TOOLCALL>',
         ToolStyle.ENCLOSED, "auto", ("", [("a", "{}"), ("b", "{}")])),
        ("<TOOLCALL>none</TOOLCALL>", ToolStyle.ENCLOSED, "auto",
         ("<TOOLCALL>none</TOOLCALL>", [])),
        ('Hm. [TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[CALL_ID]7[ARGS]{}', ToolStyle.ARGUED, "auto",
         ("Hm.", [("a", '{"x": 1}'), ("b", "{}")])),
        ('[TOOL_CALLS][{"name": "a", "arguments": {"x": 1}}]', ToolStyle.ARGUED, "auto",
         ("", [("a", '{"x": 1}')])),
        ('[TOOL_CALLS]a[ARGS]{"x', ToolStyle.ARGUED, "auto", ('[TOOL_CALLS]a[ARGS]{"x', [])),
        ('{"name": "a", "parameters": {}}', ToolStyle.BARE, "auto", ("", [("a", "{}")])),
        ('<|python_tag|>{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}',
         ToolStyle.BARE, "auto", ("", [("a", "{}"), ("b", "{}")])),
        ("{x} is a set", ToolStyle.BARE, "auto", ("{x} is a set", [])),
        ("plain", ToolStyle.BARE, "auto", ("plain", [])),
        ('[{"name": "a", "arguments": {"x": 1}}]', ToolStyle.TAGGED, "required",
         ("", [("a", '{"x": 1}')])),
        ('{"city": "Köln"}', ToolStyle.BARE, NAMED, ("", [KOELN])),
        ('{"city": "Kö', ToolStyle.BARE, NAMED, ('{"city": "Kö', [])),
    ],
)  # fmt: skip
@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_calls_are_read_however_the_text_is_cut(text, style, choice, expected, cuts):
    cuts = [min(cut, len(text)) for cut in cuts]
    assert _read(text, style, choice, cuts=cuts) == expected


def test_only_the_first_call_counts_when_they_may_not_be_parallel():
    content, calls = _read(f"{CALL}{CALL}", ToolStyle.TAGGED, is_single=True)
    assert (content, calls) == ("", [KOELN])


@pytest.mark.anyio
async def test_a_call_is_a_finish_reason_of_its_own(serve):
    engine = ScriptedEngine(saying(f"Let me see.\n{CALL}"))
    async with serve(engine, chat_template=template(TAGGED)) as served:
        body = (await served.chat(tools=[TOOL])).json()
    choice = body["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert call.pop("id").startswith("call_")
    assert call == {
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
    }
    assert json.dumps(TOOL) in bytes(engine.submitted[0].prompt).decode()


@pytest.mark.anyio
async def test_a_streamed_call_is_a_delta_with_its_index(serve):
    engine = ScriptedEngine(saying(f"Hm.\n{CALL}\n{CALL}", cut=5))
    async with serve(engine, chat_template=template(TAGGED)) as served:
        chunks = events(await served.chat(tools=[TOOL], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hm."
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "Köln"}'] * 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.anyio
async def test_earlier_calls_and_results_are_given_to_the_template(serve):
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    async with serve(chat_template=template(TAGGED)) as served:
        response = await served.chat(messages=messages, tools=[TOOL])
    prompt = bytes(served.engine.submitted[0].prompt).decode()
    assert response.status_code == 200
    assert prompt.endswith("user:weather?;assistant:<tool_call>Bonn</tool_call>;tool:rain;")


@pytest.mark.anyio
async def test_a_template_without_tools_is_told_of_them_in_words(serve):
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}],
        },
        {"role": "tool", "content": "rain"},
    ]
    engine = ScriptedEngine(saying(CALL), context_length=4096)
    async with serve(engine) as served:
        body = (await served.chat(messages=messages, tools=[TOOL])).json()
    prompt = bytes(engine.submitted[0].prompt).decode()
    assert prompt.startswith("<system>You may call functions.")
    assert json.dumps(TOOL, ensure_ascii=False) in prompt
    assert '<assistant><tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}' in prompt
    assert "<user><tool_response>\nrain\n</tool_response>" in prompt
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.anyio
async def test_none_keeps_the_tools_from_the_model(serve):
    engine = ScriptedEngine(saying(CALL))
    async with serve(engine, chat_template=template(TAGGED)) as served:
        body = (await served.chat(tools=[TOOL], tool_choice="none")).json()
    assert "weather" not in bytes(engine.submitted[0].prompt).decode()
    assert body["choices"][0]["message"]["content"] == CALL
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.anyio
async def test_a_required_call_is_held_to_the_schemas(serve):
    engine = ScriptedEngine(saying('[{"name": "clock", "arguments": {}}]'), context_length=4096)
    async with serve(engine) as served:
        body = (
            await served.chat(
                tools=[TOOL, OTHER], tool_choice="required", parallel_tool_calls=False
            )
        ).json()
    grammar = engine.submitted[0].params.grammar
    schema = json.loads(grammar.text)
    names = [item["properties"]["name"] for item in schema["items"]["anyOf"]]
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)
    assert names == [{"const": "weather"}, {"const": "clock"}]
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "clock"
    assert body["choices"][0]["message"]["content"] is None


@pytest.mark.anyio
async def test_a_named_call_is_held_to_its_arguments(serve):
    engine = ScriptedEngine(saying('{"city": "Ulm"}'))
    choice = {"type": "function", "function": {"name": "weather"}}
    async with serve(engine) as served:
        body = (await served.chat(tools=[TOOL, OTHER], tool_choice=choice)).json()
    assert json.loads(engine.submitted[0].params.grammar.text) == TOOL["function"]["parameters"]
    assert body["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Ulm"}',
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"tools": [{"type": "web"}]}, "tools.0.type", 400),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools.0.function.name", 400),
        ({"tools": [TOOL] * 200}, "tools", 400),
        ({"tools": [TOOL, TOOL]}, "tools", 400),
        ({"tools": "all"}, "tools", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", 400),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name", 400),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", 400),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"type": "ob"}}}
                ],
                "tool_choice": "required",
            },
            "tool_choice",
            422,
        ),
    ],
)  # fmt: skip
async def test_tools_that_cannot_be_honoured_are_named(serve, fields, param, status):
    async with serve() as served:
        response = await served.chat(**fields)
    assert response.status_code == status, response.text
    assert error_of(response)["param"] == param
    assert served.engine.submitted == []
