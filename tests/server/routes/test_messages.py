"""`/v1/messages`: Anthropic's shape, whole and streamed."""

import json

import pytest

from tests.server.calls.test_tool_calls import CALL, TAGGED
from tests.server.scripted_engine import ScriptedEngine, saying, template

pytestmark = pytest.mark.anyio

TOOL = {"name": "weather", "input_schema": {"type": "object"}}
HI = [{"role": "user", "content": "hi"}]


async def _post(served, **fields):
    body = {"max_tokens": 200, "messages": HI} | fields
    return await served.client.post("/v1/messages", json=body)


def _events(response):
    found = []
    for block in response.text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


async def test_text(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        body = (await _post(served, system="be kind")).json()
    assert body["type"] == "message"
    assert body["role"] == "assistant"
    assert body["content"] == [{"type": "text", "text": "hello"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"]["output_tokens"] == 6
    assert bytes(served.engine.submitted[0].prompt) == b"<system>be kind\n<user>hi\n<assistant>"


async def test_reasons_to_stop(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        cut = (await _post(served, max_tokens=2)).json()
        stopped = (await _post(served, stop_sequences=["lo"])).json()
    assert cut["stop_reason"] == "max_tokens"
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "lo")
    assert stopped["content"][0]["text"] == "hel"


async def test_a_stream_has_the_apis_events(serve):
    async with serve(ScriptedEngine(saying("hey"))) as served:
        events = _events(await _post(served, stream=True))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in events[2:5]) == "hey"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4


async def test_calls_are_tool_use_blocks(serve):
    engine = ScriptedEngine(saying(f"Hm.\n{CALL}"))
    async with serve(engine, chat_template=template(TAGGED)) as served:
        body = (await _post(served, tools=[TOOL])).json()
        events = _events(await _post(served, tools=[TOOL], stream=True))
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in body["content"]] == ["text", "tool_use"]
    assert body["content"][1]["input"] == {"city": "Köln"}
    assert body["stop_reason"] == "tool_use"
    assert [(start["index"], start["content_block"]["type"]) for start in starts] == [
        (0, "text"),
        (1, "tool_use"),
    ]
    assert [event["delta"]["partial_json"] for event in events if "partial_json" in str(event)] == [
        '{"city": "Köln"}'
    ]


async def test_blocks_become_messages(serve):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Hm."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    async with serve(chat_template=template(TAGGED)) as served:
        await _post(served, messages=messages)
        counted = await served.client.post("/v1/messages/count_tokens", json={"messages": messages})
    prompt = served.engine.submitted[0].prompt
    assert bytes(prompt).decode() == (
        "user:weather?;assistant:Hm.<tool_call>Bonn</tool_call>;tool:rain;user:so?;"
    )
    assert counted.json() == {"input_tokens": len(prompt)}


async def test_a_tool_may_be_forced(serve):
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    async with serve(ScriptedEngine(saying("{}"), context_length=2048)) as served:
        body = (await _post(served, tools=[TOOL], tool_choice=choice)).json()
    assert served.engine.submitted[0].params.grammar is not None
    assert body["content"][0]["name"] == "weather"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
async def test_an_error_has_the_apis_shape(serve, fields, param):
    async with serve() as served:
        response = await _post(served, **fields)
    body = response.json()
    assert response.status_code == 400
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == param


async def test_a_failure_in_a_stream_is_an_error_event(serve):
    async with serve(ScriptedEngine(lambda _request: [KeyError("x")])) as served:
        events = _events(await _post(served, stream=True))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "server_error"
