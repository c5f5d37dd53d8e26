"""Functions that are strict: the model may call or not, but what it calls obeys the schema."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sampler.seats.constraint import Grammars
from server.calls.strict_calls import strict_grammar
from server.calls.tool_calls import ToolStyle
from server.schema.tools import Tool
from tests.server.calls.test_tool_calls import BARE, TAGGED
from tests.server.conftest import error_of
from tests.server.scripted_engine import EOS, ScriptedEngine, _byte_characters, template
from weights.text.tokenizer import read_tokenizer_json

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
LOOSE = {"type": "function", "function": {**WEATHER["function"], "strict": False}}
GOOD = '{"name": "weather", "arguments": {"city": "Bonn", "days": 2}}'
NO_CITY = '{"name": "weather", "arguments": {"days": 2}}'
WRONG_TYPE = '{"name": "weather", "arguments": {"city": 5}}'
UNKNOWN = '{"name": "wether", "arguments": {"city": "Bonn"}}'
OTHER = '{"name": "clock", "arguments": {"zone": {"x": 1}}}'


def marked_tokenizer(*marks):
    """Tokens of bytes, and each mark as a special token of its own."""
    alphabet = _byte_characters()
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={letter: byte for byte, letter in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<bos>", *marks])
    return read_tokenizer_json(
        backend.to_str(), where="bytes", bos_token="<bos>", eos_token="<eos>"
    )


def allows(style, text, *, tools=(WEATHER, CLOCK), marks=()):
    """Whether the text is a whole answer of the grammar."""
    tokenizer = marked_tokenizer(*marks)
    spec = strict_grammar([Tool.model_validate(tool) for tool in tools], style, tokenizer)
    size = 258 + len(marks)
    constraint = Grammars(tokenizer, vocabulary_size=size, eos_ids=[EOS]).constraint(spec)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert len([token for token in token_ids if token > 257]) == sum(map(text.count, marks))
    taken = constraint.take(token_ids)
    ends = constraint.is_done or bool(constraint.mask().view("uint32")[EOS // 32] >> EOS % 32 & 1)
    return taken == len(token_ids) and ends


def tagged(*calls):
    return "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in calls)


TAGS = ("<tool_call>", "</tool_call>")


@pytest.mark.parametrize("marks", [(), TAGS])
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("", True),
        ("No call, but {braces} and <tags>.\n", True),
        (tagged(GOOD), True),
        (f"Let me see.\n{tagged(GOOD, OTHER)}", True),
        (f"{tagged(GOOD)}And more text.", True),
        (tagged(NO_CITY), False),
        (tagged(WRONG_TYPE), False),
        (tagged(UNKNOWN), False),
        (tagged(GOOD, NO_CITY), False),
        ("<tool_call>nonsense", False),
        (tagged(GOOD)[:-20], False),
    ],
)
@pytest.mark.parametrize("style", [ToolStyle.TAGGED, ToolStyle.UNTAUGHT])
def test_tagged_calls(style, text, is_allowed, marks):
    assert allows(style, text, marks=marks) is is_allowed


@pytest.mark.parametrize("marks", [(), ("[TOOL_CALLS]",)])
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("Just text [1].", True),
        (f"[TOOL_CALLS][{GOOD}]", True),
        (f"[TOOL_CALLS][{GOOD}, {OTHER}]", True),
        (f"[TOOL_CALLS][{WRONG_TYPE}]", False),
        ("[TOOL_CALLS][]", False),
        (f"[TOOL_CALLS][{GOOD}", False),
    ],
)
def test_listed_calls(text, is_allowed, marks):
    assert allows(ToolStyle.LISTED, text, marks=marks) is is_allowed


BONN = '{"city": "Bonn", "days": 2}'


@pytest.mark.parametrize("marks", [(), ("[TOOL_CALLS]", "[ARGS]")])
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("Just text.", True),
        (f"[TOOL_CALLS]weather[ARGS]{BONN}", True),
        (f"Well. [TOOL_CALLS]weather[ARGS]{BONN}[TOOL_CALLS]clock[ARGS]{{}}", True),
        ('[TOOL_CALLS]weather[ARGS]{"city": 5}', False),
        (f"[TOOL_CALLS]wether[ARGS]{BONN}", False),
        (f"[TOOL_CALLS]weather[ARGS]{BONN[:-3]}", False),
    ],
)
def test_argued_calls(text, is_allowed, marks):
    assert allows(ToolStyle.ARGUED, text, marks=marks) is is_allowed


@pytest.mark.parametrize("marks", [(), ("<TOOLCALL>", "</TOOLCALL>")])
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("Just text [1].", True),
        (f"Well.<TOOLCALL>[{GOOD}, {OTHER}]</TOOLCALL> And so on.", True),
        (f"<TOOLCALL>[{WRONG_TYPE}]</TOOLCALL>", False),
        (f"<TOOLCALL>[{GOOD}]", False),
    ],
)
def test_enclosed_calls(text, is_allowed, marks):
    assert allows(ToolStyle.ENCLOSED, text, marks=marks) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("Just text with a {brace}.", True),
        ("", True),
        (GOOD.replace("arguments", "parameters"), True),
        ("<|python_tag|>" + GOOD.replace("arguments", "parameters"), True),
        (NO_CITY.replace("arguments", "parameters"), False),
        ("{x} is a set", False),
        ("  {x}", False),
    ],
)
def test_bare_calls(text, is_allowed):
    assert allows(ToolStyle.BARE, text, marks=("<|python_tag|>",)) is is_allowed


def test_functions_that_are_not_strict_take_any_object():
    tools = (LOOSE, {**CLOCK, "function": {**CLOCK["function"], "strict": True}})
    assert allows(ToolStyle.TAGGED, tagged(WRONG_TYPE), tools=tools)


def test_without_a_strict_function_there_is_no_grammar():
    tools = [Tool.model_validate(tool) for tool in (LOOSE, CLOCK)]
    assert strict_grammar(tools, ToolStyle.TAGGED, marked_tokenizer()) is None


@pytest.mark.anyio
@pytest.mark.parametrize(("source", "mark"), [(TAGGED, "<tool_call>"), (BARE, "%json")])
async def test_the_grammar_reaches_the_engine(serve, source, mark):
    async with serve(ScriptedEngine(), chat_template=template(source)) as served:
        response = await served.chat(tools=[WEATHER, CLOCK])
        loose = await served.chat(tools=[LOOSE])
        none = await served.chat(tools=[WEATHER], tool_choice="none")
    assert [each.status_code for each in (response, loose, none)] == [200] * 3
    grammars = [one.params.grammar for one in served.engine.submitted]
    assert mark in grammars[0].text
    assert json.dumps("Bonn") not in grammars[0].text
    assert grammars[1:] == [None, None]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"type": "nonsense"}, 422),
        ({"type": "string", "pattern": "(" * 50}, 422),
        ({"type": "object", "properties": {str(n): {"type": "string"} for n in range(4000)}}, 400),
    ],
)
async def test_a_strict_schema_that_cannot_be_kept_is_refused(serve, parameters, status):
    function = {"name": "f", "strict": True, "parameters": parameters}
    engine = ScriptedEngine(context_length=1 << 20)
    async with serve(engine, chat_template=template(TAGGED)) as served:
        response = await served.chat(tools=[{"type": "function", "function": function}])
    assert response.status_code == status, response.text
    assert error_of(response)["param"] == "tools"
    assert served.engine.submitted == []


@pytest.mark.anyio
async def test_a_model_that_cannot_be_held_refuses_strict_functions(serve):
    async with serve(ScriptedEngine(can_constrain=False), chat_template=template(TAGGED)) as served:
        strict = await served.chat(tools=[WEATHER])
        loose = await served.chat(tools=[LOOSE])
    assert (strict.status_code, loose.status_code) == (400, 200)
