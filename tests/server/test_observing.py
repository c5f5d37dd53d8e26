"""Metrics and traces that fail: the client gets its answer, and the log says what failed."""

import asyncio
import threading
import time

import prometheus_client
import pytest

from server.observing import GuardedTracing
from server.watch.tracing import NoTrace, NoTracing
from tests.server.conftest import events

pytestmark = pytest.mark.anyio


class FailingTrace(NoTrace):
    def answer_ended(self, *_arguments, **_options):
        raise RuntimeError("no answer can be told")

    def end(self, **_options):
        raise RuntimeError("no end can be told")


class HeaderlessTrace(NoTrace):
    def response_headers(self):
        raise RuntimeError("no headers")


class Beginning(NoTracing):
    def __init__(self, trace):
        self._trace = trace

    def begin(self, _headers):
        if self._trace is None:
            raise RuntimeError("no trace can begin")
        return self._trace


@pytest.mark.parametrize("trace", [None, FailingTrace(), HeaderlessTrace()])
async def test_a_trace_that_fails_costs_the_client_nothing(serve, trace, caplog):
    async with serve(tracing=Beginning(trace)) as served:
        whole = await asyncio.wait_for(served.complete(), 10)
        streamed = await asyncio.wait_for(served.complete(stream=True), 10)
    assert whole.json()["choices"][0]["text"] == "hello"
    assert "".join(each["choices"][0]["text"] for each in events(streamed)) == "hello"
    assert "failed: no " in caplog.text


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (prometheus_client.Histogram, "observe"),
        (prometheus_client.Counter, "inc"),
        (prometheus_client.Gauge, "inc"),
        (prometheus_client.Gauge, "dec"),
    ],
)
async def test_a_metric_that_fails_costs_the_client_nothing(
    serve, kind, method, monkeypatch, caplog
):
    async with serve() as served:
        monkeypatch.setattr(kind, method, _fail)
        whole = await asyncio.wait_for(served.complete(), 10)
        streamed = await asyncio.wait_for(served.complete(stream=True), 10)
    assert whole.json()["choices"][0]["text"] == "hello"
    assert "".join(each["choices"][0]["text"] for each in events(streamed)) == "hello"
    assert "failed: no metrics today" in caplog.text


def _fail(*_arguments, **_options):
    raise RuntimeError("no metrics today")


async def test_an_exporter_that_hangs_does_not_hold_up_the_end():
    released = threading.Event()

    class Hanging(NoTracing):
        def close(self):
            released.wait(30)

    started_s = time.monotonic()
    await GuardedTracing(Hanging()).close_within(0.05)
    took_s = time.monotonic() - started_s
    released.set()
    assert took_s < 10
