"""Probes: what they say while the server lives, drains, hangs and dies."""

import asyncio
import time

import pytest

from tests.server.asgi import AsgiExchange
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


async def test_all_is_well(serve):
    async with serve() as served:
        answers = [await served.client.get(path) for path in ("/livez", "/health", "/ready")]
        heads = [await served.client.head(path) for path in ("/livez", "/health", "/ready")]
        version = (await served.client.get("/version")).json()
    assert {answer.status_code for answer in [*answers, *heads]} == {200}
    assert answers[0].json() == {"status": "ok"}
    assert set(version) == {"version"}


async def test_the_lifespan_starts_and_stops_the_engine(serve):
    async with serve() as served:
        pass
    assert served.engine.num_starts == 1
    assert served.engine.stopped_with == [0.0]


async def test_an_engine_that_runs_already_is_not_started_again(serve):
    engine = ScriptedEngine(is_alive=True, is_ready=True)
    async with serve(engine):
        pass
    assert engine.num_starts == 0


async def test_a_dead_engine_is_neither_healthy_nor_ready_but_the_process_lives(serve):
    async with serve() as served:
        served.engine.die()
        live, health, ready = [
            await served.client.get(path) for path in ("/livez", "/health", "/ready")
        ]
        chat = await served.chat()
        metrics = (await served.client.get("/metrics")).text
    assert (live.status_code, health.status_code, ready.status_code) == (200, 503, 503)
    assert chat.status_code == 503
    assert [error_of(each)["code"] for each in (health, ready, chat)] == ["engine_dead"] * 3
    assert 'estuary_engine_up{model_name="tiny"} 0.0' in metrics


async def test_a_draining_server_is_not_ready_but_still_takes_requests(serve):
    async with serve() as served:
        served.app.state.server.is_draining = True
        ready = await served.client.get("/ready")
        chat = await served.chat()
    assert (ready.status_code, chat.status_code) == (503, 200)
    assert error_of(ready)["code"] == "draining"


async def test_a_refusing_server_says_so(serve):
    async with serve() as served:
        served.app.state.server.is_refusing = True
        chat = await served.chat()
    assert chat.status_code == 503
    assert error_of(chat)["code"] == "draining"
    assert chat.headers["retry-after"] == "5"


async def test_an_engine_that_hangs_with_work_is_not_healthy(serve):
    engine = ScriptedEngine(lambda _request: [asyncio.Event()])
    async with serve(engine) as served:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        exchange = AsgiExchange(served.app, "/v1/chat/completions", body)
        running = asyncio.ensure_future(exchange.run())
        while not engine.num_open:
            await asyncio.sleep(0)
        before = await served.client.get("/health")
        engine.last_heard_s = time.monotonic() - 61
        stuck = await served.client.get("/health")
        exchange.left.set()
        await running
        idle = await served.client.get("/health")
    assert [each.status_code for each in (before, stuck, idle)] == [200, 503, 200]
    assert error_of(stuck)["code"] == "engine_stuck"
