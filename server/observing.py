"""Observing a request never costs its client anything: a metric or trace that fails is logged."""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import ParamSpec

from sampler import FinishReason, Request, RequestStats
from server.watch.tracing import NoTrace, RequestTrace, Tracing

log = logging.getLogger(__name__)

P = ParamSpec("P")
_NONE: Mapping[str, str] = {}


def never_raises(observe: Callable[P, None]) -> Callable[P, None]:
    """`observe`, whose failures are logged, the first of them with its traceback."""
    failures: list[str] = []

    @functools.wraps(observe)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            observe(*args, **kwargs)
        except Exception as error:
            # The boundary between a request and those who watch it.
            name = observe.__qualname__
            log.error("%s failed: %s", name, error, exc_info=None if failures else error)
            failures[:] = [name]

    return guarded


class GuardedTracing:
    """Traces whose failures no client gets to feel."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._begin = never_raises(self._begin_into)

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """A trace, or one that tells nobody when that fails."""
        begun: list[RequestTrace] = []
        self._begin(headers, begun)
        return GuardedTrace(begun[0]) if begun else NoTrace()

    @never_raises
    def close(self) -> None:
        """Send what is left; may block for some seconds."""
        self._tracing.close()

    async def close_within(self, timeout_s: float) -> None:
        """Send what is left; an exporter that hangs is left behind after `timeout_s`."""
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()

        def close() -> None:
            self.close()
            # The loop may be gone by then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closed.set)

        # A thread of the loop's pool would be waited for when the loop ends.
        threading.Thread(target=close, name="close-traces", daemon=True).start()
        try:
            await asyncio.wait_for(closed.wait(), timeout_s)
        except TimeoutError:
            log.warning("the trace exporter did not end within %.0f s", timeout_s)

    def _begin_into(self, headers: Mapping[str, str], begun: list[RequestTrace]) -> None:
        begun.append(self._tracing.begin(headers))


class GuardedTrace:
    """One request's trace; what fails is logged."""

    def __init__(self, trace: RequestTrace) -> None:
        self._trace = trace
        self.trace_id: str | None = None
        self._headers = _NONE
        self._read()

    def response_headers(self) -> Mapping[str, str]:
        """As the trace said when it began."""
        return self._headers

    @never_raises
    def answer_ended(
        self, request: Request, *, finish: FinishReason, stats: RequestStats | None
    ) -> None:
        """Pass it on."""
        self._trace.answer_ended(request, finish=finish, stats=stats)

    @never_raises
    def end(
        self, *, method: str, route: str, status: int, fields: Mapping[str, str | float | None]
    ) -> None:
        """Pass it on."""
        self._trace.end(method=method, route=route, status=status, fields=fields)

    @never_raises
    def _read(self) -> None:
        self.trace_id = self._trace.trace_id
        self._headers = self._trace.response_headers()
