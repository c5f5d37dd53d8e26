"""Traces: what a collector gets to see of a request, and when there are none."""

import asyncio
import re
import time

import pytest

from server.settings import SettingsError, trace_exporter
from server.watch.tracing import NoTracing, tracing_of_environment
from tests.server.scripted_engine import ScriptedEngine, saying, stats

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs the extra otel")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from sampler import Delta, EngineStopped, FinishReason  # noqa: E402
from server.watch.otel import OtelTracing  # noqa: E402

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def exported():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exported):
    made = OtelTracing(sdk.SimpleSpanProcessor(exported))
    yield made
    made.close()


def _timed(request):
    now_s = time.monotonic()
    told = stats(
        request,
        2,
        scheduled_s=request.arrived_s + 0.25,
        first_token_s=request.arrived_s + 1.0,
        finished_s=request.arrived_s + 3.0,
        verified_tokens=1,
        cached_tokens=1,
    )
    assert now_s >= request.arrived_s
    return [Delta(request.id, token_ids=(65, 66), finish=FinishReason.LENGTH, stats=told)]


def _named(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_with_queue_prompt_and_decode_below(
    serve, exported, tracing, stream
):
    async with serve(ScriptedEngine(_timed), tracing=tracing) as served:
        await served.chat(stream=stream)
    spans = _named(exported)
    request = spans["POST /v1/chat/completions"]
    parts = [spans[name] for name in ("queue", "prompt", "decode")]
    lengths_s = [(span.end_time - span.start_time) / 1e9 for span in parts]
    assert request.kind is SpanKind.SERVER
    assert {span.parent.span_id for span in parts} == {request.context.span_id}
    assert lengths_s == pytest.approx([0.25, 0.75, 2.0], abs=0.01)
    assert parts[2].attributes["gen_ai.usage.output_tokens"] == 2
    assert parts[2].attributes["estuary.verified_tokens"] == 1
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.input_tokens"] > 0
    assert request.status.status_code is StatusCode.UNSET


@pytest.mark.anyio
async def test_each_answer_has_its_parts(serve, exported, tracing):
    async with serve(ScriptedEngine(_timed), tracing=tracing) as served:
        await served.chat(n=3)
    names = [span.name for span in exported.get_finished_spans()]
    assert names.count("decode") == 3
    assert names.count("POST /v1/chat/completions") == 1


@pytest.mark.anyio
async def test_the_callers_context_goes_in_and_ours_comes_out(serve, exported, tracing):
    async with serve(tracing=tracing) as served:
        response = await served.client.get("/v1/models", headers=PARENT)
    span = _named(exported)["GET /v1/models"]
    assert span.parent.span_id == int(PARENT_ID, 16)
    assert span.context.trace_id == int(TRACE_ID, 16)
    assert response.headers["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16])
async def test_a_broken_context_begins_a_trace_of_its_own(serve, exported, tracing, header):
    async with serve(tracing=tracing) as served:
        response = await served.client.get("/v1/models", headers={"traceparent": header})
    assert response.status_code == 200
    assert _named(exported)["GET /v1/models"].parent is None
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9]", response.headers["traceparent"])


@pytest.mark.anyio
async def test_faults_of_the_server_are_marked_and_those_of_clients_are_not(
    serve, exported, tracing
):
    engine = ScriptedEngine(lambda _request: [EngineStopped("gone")])
    async with serve(engine, tracing=tracing) as served:
        failed = await served.chat()
        wrong = await served.chat(temperature=9)
    spans = exported.get_finished_spans()
    assert [failed.status_code, wrong.status_code] == [503, 400]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.anyio
async def test_a_client_that_leaves_ends_its_span(serve, exported, tracing):
    from tests.server.asgi import AsgiExchange

    engine = ScriptedEngine(lambda _request: [asyncio.Event()])
    async with serve(engine, tracing=tracing) as served:
        exchange = AsgiExchange(served.app, "/v1/completions", {"prompt": "a"})
        running = asyncio.ensure_future(exchange.run())
        while not engine.num_open:
            await asyncio.sleep(0)
        exchange.left.set()
        await running
    assert _named(exported)["POST /v1/completions"].attributes["http.response.status_code"] == 499


@pytest.mark.anyio
async def test_probes_are_not_traced_and_texts_are_not_told(serve, exported, tracing):
    async with serve(ScriptedEngine(saying("the secret answer")), tracing=tracing) as served:
        await served.client.get("/livez")
        await served.client.get("/metrics")
        await served.chat(messages=[{"role": "user", "content": "the secret prompt"}])
    told = "".join(span.to_json() for span in exported.get_finished_spans())
    assert "livez" not in told
    assert "secret" not in told
    assert "chat/completions" in told


@pytest.mark.anyio
async def test_without_traces_no_header_is_added(serve):
    async with serve() as served:
        response = await served.client.get("/v1/models", headers=PARENT)
    assert "traceparent" not in response.headers


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
    ],
)
def test_the_standard_variables_choose_the_exporter(monkeypatch, variables, exporter):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert trace_exporter() == exporter


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_we_do_not_have_is_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=[*variables][-1]):
        tracing_of_environment()


def test_no_variables_no_traces():
    assert isinstance(tracing_of_environment(), NoTracing)


def test_spans_reach_a_collector_by_otlp(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.handle_request)
        thread.start()
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}"
        )
        monkeypatch.setenv("OTEL_SERVICE_NAME", "my-estuary")
        tracing = tracing_of_environment()
        trace = tracing.begin({})
        trace.end(method="GET", route="/v1/models", status=200, fields={})
        tracing.close()
        thread.join(20)
    path, body = received[0]
    assert path == "/v1/traces"
    assert b"GET /v1/models" in body
    assert b"my-estuary" in body
