"""Deadlines: 504 before the first token, an error event behind it, and nothing left running."""

import asyncio

import pytest

from sampler import Delta
from tests.server.asgi import AsgiExchange
from tests.server.conftest import error_of
from tests.server.replies.test_event_stream import _last_events
from tests.server.scripted_engine import ScriptedEngine, saying

pytestmark = pytest.mark.anyio

SOON = 0.03


def _silent(_request):
    return [asyncio.Event()]


def _then_silent(request):
    return [Delta(request.id, token_ids=(65,)), asyncio.Event()]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_an_answer_without_a_token_in_time_is_a_504(serve, stream, kind):
    async with serve(ScriptedEngine(_silent)) as served:
        response = await getattr(served, kind)(timeout=SOON, stream=stream, n=2)
        metrics = (await served.client.get("/metrics")).text
    assert response.status_code == 504
    assert error_of(response)["code"] == "deadline_exceeded"
    assert error_of(response)["type"] == "server_error"
    assert len(served.engine.cancelled) == 2
    assert served.engine.num_open == 0
    assert 'estuary_request_timeouts_total{model_name="tiny"} 1.0' in metrics


async def test_a_stream_that_has_begun_ends_with_an_error_event(serve):
    async with serve(ScriptedEngine(_then_silent)) as served:
        response = await served.chat(timeout=SOON, stream=True)
    error, end = _last_events(response.text)
    assert response.status_code == 200
    assert '"content":"A"' in response.text
    assert error["error"]["code"] == "deadline_exceeded"
    assert end == "data: [DONE]"
    assert served.engine.num_open == 0


async def test_a_whole_answer_that_is_not_complete_in_time_is_a_504(serve):
    async with serve(ScriptedEngine(_then_silent)) as served:
        response = await served.chat(timeout=SOON)
    assert response.status_code == 504


async def test_an_answer_that_never_pauses_is_given_up_too(serve):
    def script(request):
        return (Delta(request.id, token_ids=(65,)) for _ in range(10**9))

    async with serve(ScriptedEngine(script)) as served:
        response = await asyncio.wait_for(served.chat(timeout=SOON), 20)
    assert response.status_code == 504
    assert served.engine.num_open == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
    ],
)
async def test_the_servers_own_limit_holds_for_every_route(serve, path, body):
    async with serve(ScriptedEngine(_silent), request_timeout=SOON) as served:
        response = await served.client.post(path, json=body)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_the_shorter_of_both_limits_counts(serve):
    async with serve(ScriptedEngine(_silent), request_timeout=1000) as served:
        early = await asyncio.wait_for(served.chat(timeout=SOON), 20)
    async with serve(ScriptedEngine(_silent), request_timeout=SOON) as served:
        capped = await asyncio.wait_for(served.chat(timeout=1000), 20)
    assert (early.status_code, capped.status_code) == (504, 504)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_in_time_is_as_without_a_limit(serve, stream):
    async with serve(ScriptedEngine(saying("hello"))) as served:
        plain = await served.complete(stream=stream, seed=1)
        timed = await served.complete(stream=stream, seed=1, timeout=1000)
    assert timed.status_code == 200
    assert timed.text.count("hello") == plain.text.count("hello")
    assert len(timed.text) == len(plain.text)


async def test_a_silent_stream_with_a_long_limit_begins_with_a_comment(serve):
    engine = ScriptedEngine(_silent)
    async with serve(engine, sse_keep_alive_interval=0.02) as served:
        body = {"prompt": "x", "stream": True, "timeout": 1000}
        exchange = AsgiExchange(served.app, "/v1/completions", body, leaves_after=2)
        await asyncio.wait_for(exchange.run(), 20)
    assert exchange.status == 200
    assert exchange.text.startswith(": keep-alive")


async def test_a_client_that_leaves_while_its_first_token_is_waited_for_is_forgotten(serve):
    engine = ScriptedEngine(_silent)
    async with serve(engine) as served:
        body = {"prompt": "x", "stream": True, "timeout": 1000}
        exchange = AsgiExchange(served.app, "/v1/completions", body)
        running = asyncio.ensure_future(exchange.run())
        while not engine.num_open:
            await asyncio.sleep(0)
        exchange.left.set()
        await asyncio.wait_for(running, 20)
    assert engine.num_open == 0


async def test_load_tells_how_many_answers_are_open(serve):
    engine = ScriptedEngine(_silent)
    async with serve(engine, api_key=["k"]) as served:
        idle = (await served.client.get("/load")).json()
        body = {"prompt": "x", "n": 3}
        exchange = AsgiExchange(served.app, "/v1/completions", body, headers=[(b"x-api-key", b"k")])
        running = asyncio.ensure_future(exchange.run())
        while engine.num_open < 3:
            await asyncio.sleep(0)
        busy = (await served.client.get("/load")).json()
        exchange.left.set()
        await running
    assert idle == {"server_load": 0, "running": 0, "waiting": 0}
    assert busy["server_load"] == 3
