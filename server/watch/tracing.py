"""Traces of requests, where they are asked for by OpenTelemetry's own variables.

Routes and middleware tell a `RequestTrace` what happens and know nothing of OpenTelemetry; it is an
optional extra (`estuary-server[otel]`), and only `server/watch/otel.py` needs it.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

from sampler import FinishReason, Request, RequestStats
from server.settings import SettingsError, trace_exporter


class RequestTrace(Protocol):
    """What is told of one HTTP request."""

    @property
    def trace_id(self) -> str | None:
        """For log lines; None when nobody is told."""
        ...

    def response_headers(self) -> Mapping[str, str]:
        """What tells the client to which trace the request belongs."""
        ...

    def answer_ended(
        self, request: Request, *, finish: FinishReason, stats: RequestStats | None
    ) -> None:
        """One of the request's answers has ended."""
        ...

    def end(
        self, *, method: str, route: str, status: int, fields: Mapping[str, str | float | None]
    ) -> None:
        """The response has been sent; `fields` are those of its log line."""
        ...


class Tracing(Protocol):
    """Begins traces; made once for a process."""

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """The trace of a request, below the one that its headers name."""
        ...

    def close(self) -> None:
        """Send what is left; may block for some seconds."""
        ...


class NoTrace:
    """Tells nobody."""

    trace_id: str | None = None

    def response_headers(self) -> Mapping[str, str]:
        """None."""
        return {}

    def answer_ended(
        self, request: Request, *, finish: FinishReason, stats: RequestStats | None
    ) -> None:
        """Nothing."""

    def end(
        self, *, method: str, route: str, status: int, fields: Mapping[str, str | float | None]
    ) -> None:
        """Nothing."""


class NoTracing:
    """Begins traces that tell nobody."""

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:  # noqa: ARG002
        """A trace that tells nobody."""
        return NoTrace()

    def close(self) -> None:
        """Nothing."""


def tracing_of_environment() -> Tracing:
    """Traces as the OTEL_* variables say; without them, none.

    Raises SettingsError for what they ask that this server cannot do.
    """
    exporter = trace_exporter()
    if exporter is None:
        return NoTracing()
    try:
        extra = import_module("server.watch.otel")
    except ImportError as error:
        raise SettingsError(
            "OTEL variables ask for traces, which need: pip install 'estuary-server[otel]'"
        ) from error
    tracing: Tracing = extra.exporting(exporter)
    return tracing
