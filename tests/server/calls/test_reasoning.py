"""Reasoning told from the answer: however the text is cut, and in the shape of every API."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.calls.answer_parts import CallPart, CallRules, PartReader
from server.calls.reasoning import (
    KNOWN_MARKS,
    ReasoningPart,
    ReasoningReader,
    ReasoningRules,
    rules_of,
)
from server.calls.tool_calls import ToolStyle
from tests.server.conftest import events
from tests.server.scripted_engine import TEMPLATE, ScriptedEngine, saying, template

THINK = KNOWN_MARKS[0]
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
THINKING = template(TEMPLATE + "{# <think> </think> #}")
BEGINNING = template(TEMPLATE.replace("<assistant>", "<assistant><think>\n") + "{# </think> #}")
SILENCED = template(TEMPLATE.replace("<assistant>", "<assistant><think>\n\n</think>\n\n"))


def _read(text, rules, cuts=()):
    reader = ReasoningReader(rules)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [part for a, b in pairwise(bounds) for part in reader.feed(text[a:b])]
    parts += reader.finish()
    thought = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
    return thought, "".join(part for part in parts if isinstance(part, str))


@pytest.mark.parametrize(
    ("text", "begins_inside", "expected"),
    [
        ("<think>\nWhy? </b>\n</think>\n\nSo.\n", False, ("Why? </b>", "So.\n")),
        ("Why?\n</think>\n\nSo.", True, ("Why?", "So.")),
        (" \n<think>Why", False, ("Why", "")),
        ("<think>\n\n</think>\n\nSo.", False, ("", "So.")),
        ("So <think>not</think>", False, ("", "So <think>not</think>")),
        ("  So", False, ("", "  So")),
        ("<thin", False, ("", "<thin")),
        ("Why </thi", True, ("Why </thi", "")),
        ("", False, ("", "")),
    ],
)
@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_reasoning_is_told_however_the_text_is_cut(text, begins_inside, expected, cuts):
    assert _read(text, ReasoningRules(THINK, begins_inside), cuts) == expected


def test_reasoning_that_is_not_wanted_is_dropped():
    assert _read("<think>a</think>b", ReasoningRules(THINK, False, is_shown=False)) == ("", "b")


def test_the_template_and_the_prompts_end_say_where_reasoning_begins():
    assert rules_of("{{ messages }}", "x") is None
    assert rules_of("..</think>..", "<|assistant|>") == ReasoningRules(THINK, False)
    assert rules_of("..</think>..", "<think>\n") == ReasoningRules(THINK, True)
    assert rules_of("..</think>..", "<think>\n\n</think>\n\n") is None
    assert rules_of("[/THINK]", "").marks.opening == "[THINK]"


def test_calls_are_read_behind_the_reasoning_and_not_inside_it():
    rules = CallRules(ToolStyle.TAGGED, "auto", is_single=False)
    reader = PartReader(rules, ReasoningRules(THINK, False))
    parts = [*reader.feed(f"<think>{CALL}</think>\n{CALL}"), *reader.finish()]
    assert [type(part) for part in parts] == [ReasoningPart, CallPart]
    assert parts[0].text == CALL


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("chat_template", "said"),
    [(THINKING, "<think>\nWhy?\n</think>\n\nSo."), (BEGINNING, "Why?\n</think>\n\nSo.")],
)
async def test_chat_gives_reasoning_apart(serve, chat_template, said):
    async with serve(ScriptedEngine(saying(said)), chat_template=chat_template) as served:
        whole = (await served.chat()).json()["choices"][0]["message"]
        hidden = (await served.chat(include_reasoning=False)).json()["choices"][0]["message"]
        streamed = events(await served.chat(stream=True))
    deltas = [each["choices"][0]["delta"] for each in streamed]
    assert (whole["content"], whole["reasoning_content"]) == ("So.", "Why?")
    assert hidden["content"] == "So."
    assert "reasoning_content" not in hidden
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Why?"
    assert "".join(delta.get("content", "") for delta in deltas) == "So."


@pytest.mark.anyio
@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "json_object"}}])
async def test_an_answer_without_reasoning_is_content(serve, fields):
    chat_template = BEGINNING if fields else SILENCED
    async with serve(ScriptedEngine(saying("{}")), chat_template=chat_template) as served:
        message = (await served.chat(**fields)).json()["choices"][0]["message"]
    assert message["content"] == "{}"
    assert "reasoning_content" not in message


def _named(response):
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.anyio
async def test_responses_have_an_item_of_reasoning(serve):
    said = "<think>\nWhy?\n</think>\n\nSo."
    async with serve(ScriptedEngine(saying(said)), chat_template=THINKING) as served:
        whole = (await served.client.post("/v1/responses", json={"input": "hi"})).json()
        response = await served.client.post("/v1/responses", json={"input": "hi", "stream": True})
    told = _named(response)
    reasoning, message = whole["output"]
    assert reasoning["type"] == "reasoning"
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Why?"}]
    assert message["content"][0]["text"] == "So."
    deltas = [each["delta"] for each in told if each["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Why?"
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]
    done = [each for each in told if each["type"] == "response.output_item.done"]
    assert [each["item"] for each in done] == output
    assert [each["output_index"] for each in done] == [0, 1]


@pytest.mark.anyio
async def test_messages_have_a_block_of_thinking(serve):
    said = "<think>\nWhy?\n</think>\n\nSo."
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}
    async with serve(ScriptedEngine(saying(said)), chat_template=THINKING) as served:
        whole = (await served.client.post("/v1/messages", json=body)).json()
        response = await served.client.post("/v1/messages", json=body | {"stream": True})
    told = _named(response)
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Why?", "signature": ""},
        {"type": "text", "text": "So."},
    ]
    begun = [each for each in told if each["type"] == "content_block_start"]
    assert [each["content_block"]["type"] for each in begun] == ["thinking", "text"]
    assert [each["index"] for each in begun] == [0, 1]
    deltas = [each["delta"] for each in told if each["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Why?"
    assert "".join(delta.get("text", "") for delta in deltas) == "So."


@pytest.mark.anyio
async def test_reasoning_may_be_sent_back_and_is_not_shown_again(serve):
    said = "<think>\nWhy?\n</think>\n\nSo."
    hi, more = {"role": "user", "content": "hi"}, {"role": "user", "content": "more"}
    async with serve(ScriptedEngine(saying(said)), chat_template=THINKING) as served:
        post = served.client.post
        output = (await post("/v1/responses", json={"input": [hi]})).json()["output"]
        for item in output:
            if item["type"] == "message":
                item["content"] = [{"type": "output_text", "text": "So."}]
        first = await post("/v1/responses", json={"input": [hi, *output, more]})
        body = {"messages": [hi], "max_tokens": 99}
        content = (await post("/v1/messages", json=body)).json()["content"]
        turns = [hi, {"role": "assistant", "content": content}, more]
        second = await post("/v1/messages", json=body | {"messages": turns})
    assert (first.status_code, second.status_code) == (200, 200), first.text + second.text
    prompt = b"<user>hi\n<assistant>So.\n<user>more\n<assistant>"
    for request in (served.engine.submitted[1], served.engine.submitted[3]):
        assert bytes(request.prompt) == prompt
