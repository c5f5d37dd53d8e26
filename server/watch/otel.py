"""Traces by OpenTelemetry: a span for each request, and below it queue, prompt and decoding.

Names of attributes are those of OpenTelemetry's conventions for HTTP and for generative models
(still in development there); ours begin with `estuary.`. Prompts and answers are never in them.
"""

import time
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from sampler import FinishReason, Request, RequestStats
from server.state import package_version

# Fields of the log line that stand in the span.
_ATTRIBUTES = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "answer_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "estuary.cached_tokens",
    "forward_passes": "estuary.forward_passes",
    "finish": "estuary.finish",
    "first_token_ms": "estuary.first_token_ms",
    "request_id": "estuary.request_id",
}


def exporting(exporter: str) -> "OtelTracing":
    """Traces sent by OTLP over HTTP, or written to the terminal; the rest as the variables say."""
    if exporter == "console":
        return OtelTracing(BatchSpanProcessor(ConsoleSpanExporter()))
    return OtelTracing(BatchSpanProcessor(OTLPSpanExporter()))


class OtelTracing:
    """Begins spans and hands them to a processor; no globals are set."""

    def __init__(self, processor: SpanProcessor) -> None:
        own = {"service.name": "estuary", "service.version": package_version()}
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("estuary", package_version())

    def begin(self, headers: Mapping[str, str]) -> "OtelTrace":
        """The span of a request, below the one that its headers name."""
        return OtelTrace(self._tracer, propagate.extract(headers))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class OtelTrace:
    """The span of one request."""

    def __init__(self, tracer: trace.Tracer, parent: Context) -> None:
        self._tracer = tracer
        self._span = tracer.start_span("HTTP", context=parent, kind=SpanKind.SERVER)
        self._context = trace.set_span_in_context(self._span, parent)

    @property
    def trace_id(self) -> str | None:
        """As W3C writes it."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def response_headers(self) -> Mapping[str, str]:
        """The context in the form that the propagators write."""
        headers: dict[str, str] = {}
        propagate.inject(headers, context=self._context)
        return headers

    def answer_ended(
        self, request: Request, *, finish: FinishReason, stats: RequestStats | None
    ) -> None:
        """Three spans that follow one another: waiting, the prompt, the answer's tokens."""
        if stats is None or not self._span.is_recording():
            return
        moments_s = (request.arrived_s, stats.scheduled_s, stats.first_token_s, stats.finished_s)
        queue, prompt, decode = (
            self._child(name, start_s=start_s, stop_s=stop_s)
            for name, start_s, stop_s in zip(
                ("queue", "prompt", "decode"), moments_s, moments_s[1:], strict=False
            )
        )
        queue.set_attribute("estuary.priority", request.priority)
        prompt.set_attributes(
            {
                "gen_ai.usage.input_tokens": stats.prompt_tokens,
                "estuary.cached_tokens": stats.cached_tokens,
            }
        )
        decode.set_attributes(
            {
                "gen_ai.usage.output_tokens": stats.answer_tokens,
                "gen_ai.response.finish_reasons": (str(finish),),
                "estuary.decoding.mode": str(request.params.decoding.mode),
                "estuary.forward_passes": stats.steps,
                "estuary.ar_tokens": stats.ar_tokens,
                "estuary.diffusion_tokens": stats.diffusion_tokens,
                "estuary.verified_tokens": stats.verified_tokens,
                "estuary.revised_tokens": stats.revised_tokens,
                "estuary.preemptions": stats.num_preemptions,
            }
        )
        for span, end_s in zip((queue, prompt, decode), moments_s[1:], strict=True):
            span.end(_wall_ns(end_s))

    def end(
        self, *, method: str, route: str, status: int, fields: Mapping[str, str | float | None]
    ) -> None:
        """End the span; only faults of the server mark it as failed."""
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
            }
        )
        for name, attribute in _ATTRIBUTES.items():
            value = fields.get(name)
            if value is not None:
                self._span.set_attribute(attribute, value)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _child(self, name: str, *, start_s: float, stop_s: float) -> Span:
        start_s = min(start_s, stop_s)
        return self._tracer.start_span(name, context=self._context, start_time=_wall_ns(start_s))


def _wall_ns(moment_s: float) -> int:
    """A moment in monotonic seconds as nanoseconds since 1970."""
    return time.time_ns() - round((time.monotonic() - moment_s) * 1e9)
