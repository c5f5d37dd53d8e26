"""Streams that end before their time: clients that leave, engines that die, silence."""

import asyncio
import json

import pytest

from sampler import Delta, EngineStopped, FinishReason
from tests.server.asgi import AsgiExchange
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine, saying

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


def _then_waiting(request):
    return [Delta(request.id, token_ids=(65,)), asyncio.Event()]


async def test_a_client_that_leaves_its_stream_cancels_the_request(serve):
    async with serve(ScriptedEngine(_then_waiting)) as served:
        exchange = AsgiExchange(served.app, CHAT, BODY | {"stream": True}, leaves_after=2)
        await asyncio.wait_for(exchange.run(), 5)
        metrics = (await served.client.get("/metrics")).text
    assert served.engine.num_open == 0
    assert served.engine.cancelled == [served.engine.submitted[0].id]
    assert 'estuary_client_disconnects_total{model_name="tiny"} 1.0' in metrics
    assert 'finished_reason="abort",model_name="tiny"} 1.0' in metrics


async def test_a_client_that_leaves_a_whole_answer_cancels_every_request(serve):
    async with serve(ScriptedEngine(lambda _request: [asyncio.Event()])) as served:
        exchange = AsgiExchange(served.app, CHAT, BODY | {"n": 3})
        running = asyncio.ensure_future(exchange.run())
        while len(served.engine.submitted) < 3:
            await asyncio.sleep(0)
        exchange.left.set()
        await asyncio.wait_for(running, 5)
    assert len(served.engine.cancelled) == 3
    assert exchange.messages == []


async def test_many_clients_that_leave_leave_nothing_behind(serve):
    async with serve(ScriptedEngine(_then_waiting)) as served:
        exchanges = [
            AsgiExchange(served.app, CHAT, BODY | {"stream": True}, leaves_after=1 + number % 2)
            for number in range(100)
        ]
        await asyncio.wait_for(asyncio.gather(*(each.run() for each in exchanges)), 20)
        pumps = [task for task in asyncio.all_tasks() if "_pump" in repr(task)]
    assert served.engine.num_open == 0
    assert len(served.engine.cancelled) == 100
    assert pumps == []


def _last_events(exchange_text):
    lines = [line for line in exchange_text.split("\n\n") if line]
    return json.loads(lines[-2].removeprefix("data: ")), lines[-1]


async def test_an_engine_that_dies_ends_the_stream_with_an_error_event(serve):
    def script(request):
        return [Delta(request.id, token_ids=(65,)), EngineStopped("gone")]

    async with serve(ScriptedEngine(script)) as served:
        response = await served.chat(stream=True)
    error, end = _last_events(response.text)
    assert error["error"]["code"] == "engine_dead"
    assert end == "data: [DONE]"
    assert '"content":"A"' in response.text


async def test_an_engine_that_dies_fails_a_whole_answer(serve):
    async with serve(ScriptedEngine(lambda _request: [EngineStopped("gone")])) as served:
        response = await served.chat()
    assert response.status_code == 503
    assert error_of(response)["code"] == "engine_dead"
    assert response.headers["retry-after"] == "5"


def _failing(request):
    secret = "/home/someone/secret.py line 3"
    return [Delta(request.id, finish=FinishReason.ERROR, error=secret)]


async def test_a_request_that_fails_in_the_engine_is_an_error_without_details(serve):
    async with serve(ScriptedEngine(_failing)) as served:
        whole = await served.chat()
        streamed = await served.chat(stream=True)
    error, end = _last_events(streamed.text)
    assert whole.status_code == 500
    assert whole.headers["x-should-retry"] == "false"
    assert error_of(whole)["code"] == error["error"]["code"] == "internal_error"
    assert end == "data: [DONE]"
    assert "secret" not in whole.text + streamed.text


async def test_one_answer_that_fails_cancels_its_siblings(serve):
    def script(request):
        return _failing(request) if request.id.endswith("-0") else [asyncio.Event()]

    async with serve(ScriptedEngine(script)) as served:
        response = await served.chat(n=2)
    assert response.status_code == 500
    assert served.engine.cancelled == [served.engine.submitted[1].id]


async def test_a_fault_in_the_server_is_an_error_without_details(serve):
    async with serve(ScriptedEngine(lambda _request: [KeyError("/secret/path")])) as served:
        response = await served.chat()
    assert response.status_code == 500
    assert error_of(response)["message"] == "the server failed on this request"


async def test_a_silent_stream_sends_comments(serve):
    ready = asyncio.Event()

    def script(request):
        return [ready, *saying("a")(request)]

    async with serve(ScriptedEngine(script), sse_keep_alive_interval=0.01) as served:
        exchange = AsgiExchange(served.app, CHAT, BODY | {"stream": True})
        running = asyncio.ensure_future(exchange.run())
        while ": keep-alive" not in exchange.text:
            await asyncio.sleep(0.005)
        ready.set()
        await asyncio.wait_for(running, 5)
    assert exchange.text.endswith("data: [DONE]\n\n")
    assert '"content":"a"' in exchange.text


async def test_a_client_that_does_not_read_is_given_up(serve):
    async with serve(ScriptedEngine(_then_waiting), write_timeout=0.01) as served:
        exchange = AsgiExchange(served.app, CHAT, BODY | {"stream": True})

        async def stalled(message):
            exchange.messages.append(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        exchange._send = stalled
        await asyncio.wait_for(exchange.run(), 5)
    assert served.engine.num_open == 0


async def test_a_full_queue_answers_at_once_and_says_when_to_come_back(serve):
    async with serve(ScriptedEngine(_then_waiting, capacity=2)) as served:
        response = await served.chat(n=3)
        metrics = (await served.client.get("/metrics")).text
    assert response.status_code == 503
    assert error_of(response)["code"] == "server_overloaded"
    assert response.headers["retry-after"] == "3"
    assert response.headers["retry-after-ms"] == "2500"
    assert served.engine.num_open == 0
    assert (
        'vllm:admission_rejections_total{model_name="tiny",reason="server_overloaded"} 1.0'
        in metrics
    )


async def test_a_full_server_refuses_before_it_reads_a_prompt(serve):
    engine = ScriptedEngine(_then_waiting)
    async with serve(engine, max_num_seqs=1, max_queued_requests=0) as served:
        exchange = AsgiExchange(served.app, CHAT, BODY | {"stream": True})
        running = asyncio.ensure_future(exchange.run())
        while not engine.num_open:
            await asyncio.sleep(0)
        response = await served.chat()
        exchange.left.set()
        await running
    assert response.status_code == 503
    assert error_of(response)["code"] == "server_overloaded"
    assert len(engine.submitted) == 1
