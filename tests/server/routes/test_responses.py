"""`/v1/responses`: items instead of messages, with the official client."""

import json

import httpx2
import openai
import pytest

from tests.server.calls.test_tool_calls import CALL, TAGGED
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine, saying, template

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


def _client(served):
    transport = httpx2.ASGITransport(app=served.app, raise_app_exceptions=False)
    return openai.AsyncOpenAI(
        api_key="none",
        base_url="http://test/v1",
        http_client=httpx2.AsyncClient(transport=transport),
        max_retries=0,
    )


async def test_text(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served, _client(served) as client:
        answer = await client.responses.create(
            model="tiny", input="hi", instructions="be kind", max_output_tokens=20
        )
    assert answer.output_text == "hello"
    assert answer.status == "completed"
    assert answer.id.startswith("resp-")
    assert answer.usage.output_tokens == 6
    assert bytes(served.engine.submitted[0].prompt) == b"<system>be kind\n<user>hi\n<assistant>"


async def test_an_answer_that_was_cut_is_incomplete(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served, _client(served) as client:
        answer = await client.responses.create(model="tiny", input="hi", max_output_tokens=2)
    assert (answer.status, answer.output_text) == ("incomplete", "he")
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_a_stream_ends_with_the_whole(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served, _client(served) as client:
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        events = [event async for event in stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1].type == "response.completed"
    assert text == events[-1].response.output_text == "hello"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_the_stream_helper_builds_calls(serve):
    engine = ScriptedEngine(saying(f"Hm.\n{CALL}"))
    async with (
        serve(engine, chat_template=template(TAGGED)) as served,
        _client(served) as client,
        client.responses.stream(model="tiny", input="hi", tools=[TOOL]) as stream,
    ):
        answer = await stream.get_final_response()
    assert [item.type for item in answer.output] == ["message", "function_call"]
    assert answer.output[0].content[0].text == "Hm."
    assert answer.output[1].name == "weather"
    assert json.loads(answer.output[1].arguments) == {"city": "Köln"}


async def test_items_become_messages(serve):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "B"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    async with serve(chat_template=template(TAGGED)) as served, _client(served) as client:
        await client.responses.create(model="tiny", input=items)
    prompt = bytes(served.engine.submitted[0].prompt).decode()
    assert prompt == "user:weather?;assistant:<tool_call>B</tool_call>;tool:rain;"


async def test_a_schema_and_a_forced_call_reach_the_engine(serve):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    async with serve() as served, _client(served) as client:
        await client.responses.create(model="tiny", input="hi", text=text)
        await client.responses.create(
            model="tiny",
            input="hi",
            tools=[TOOL],
            tool_choice={"type": "function", "name": "weather"},
            max_output_tokens=9,
        )
    grammars = [json.loads(request.params.grammar.text) for request in served.engine.submitted]
    assert grammars == [schema, {"type": "object"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "image"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input.0.content.0.type"),
        ({"input": "a", "previous_response_id": "x"}, "previous_response_id"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "reasoning": {"effort": "high"}}, "reasoning"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools.0.type"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_named(serve, fields, param):
    async with serve() as served:
        response = await served.client.post("/v1/responses", json=fields)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


async def test_a_failure_in_a_stream_is_an_error_event(serve):
    async with serve(ScriptedEngine(lambda _request: [KeyError("x")])) as served:
        body = {"input": "hi", "stream": True}
        response = await served.client.post("/v1/responses", json=body)
    last = response.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert json.loads(last.partition("data: ")[2])["code"] == "internal_error"
