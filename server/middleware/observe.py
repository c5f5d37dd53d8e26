"""The outermost wrapper of a request: its id, its metrics, its log line, its last-resort error."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_responses import answer_of, error_response
from server.limits import MAX_REQUEST_ID_CHARACTERS
from server.replies.event_stream import ClientGone
from server.state import ServerState
from server.watch.tracing import NoTracing

log = logging.getLogger("server.request")
faults = logging.getLogger(__name__)

# What nginx logs for a client that closed the connection; never sent.
CLIENT_CLOSED = 499
_REQUEST_ID = re.compile(f"[A-Za-z0-9._-]{{1,{MAX_REQUEST_ID_CHARACTERS}}}")
# Asked for every few seconds by machines; in the log they would bury the rest.
_QUIET_ROUTES = frozenset({"/livez", "/health", "/ready", "/load", "/metrics"})


class Observe:
    """Gives each request an id, measures it, logs one line when it ends.

    Fields that the route puts into `scope["state"]["log"]` stand in that line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on; other kinds go through as they are."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        observed = _ObservedRequest(scope, send)
        try:
            await self._app(scope, receive, observed.send)
        except (ClientGone, ClientDisconnect):
            observed.client_left()
        except Exception as error:  # noqa: BLE001 -- the boundary of a request
            await observed.failed(error, receive)
        finally:
            observed.finish()


class _ObservedRequest:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._state: ServerState = scope["app"].state.server
        self._started_s = time.monotonic()
        self._status: int | None = None
        given = Headers(scope=scope).get("x-request-id", "")
        self._id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})
        scope["state"]["log"] = {}
        scope["state"]["request_id"] = self._id
        is_quiet = scope["path"] in _QUIET_ROUTES
        tracing = NoTracing() if is_quiet else self._state.tracing
        self._trace = tracing.begin(Headers(scope=scope))
        scope["state"]["trace"] = self._trace
        self._state.metrics.http_started()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            headers["openai-processing-ms"] = str(round(self._elapsed_s() * 1000))
            for name, value in self._trace.response_headers().items():
                headers[name] = value
        await self._send(message)

    def client_left(self) -> None:
        self._status = CLIENT_CLOSED
        self._state.metrics.count_disconnect()

    async def failed(self, error: Exception, receive: Receive) -> None:
        faults.error("request %s failed", self._id, exc_info=error)
        if self._status is None:
            await error_response(answer_of(error))(self._scope, receive, self.send)

    def finish(self) -> None:
        route = route_template(self._scope)
        status = CLIENT_CLOSED if self._status is None else self._status
        seconds = self._elapsed_s()
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        self._state.metrics.http_finished(
            method=method,
            route=route,
            status=status,
            seconds=seconds,
        )
        fields = {
            "request_id": self._id,
            "method": self._scope["method"],
            "route": route,
            "status": status,
            "elapsed_ms": round(seconds * 1000, 1),
            **self._scope["state"]["log"],
        }
        if self._trace.trace_id is not None:
            fields["trace_id"] = self._trace.trace_id
        self._trace.end(method=method, route=route, status=status, fields=fields)
        level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
        log.log(level, "request", extra=fields)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route_template(scope: Scope) -> str:
    """The path of the matched route as it was declared; one word for all others."""
    route = scope.get("route")
    return "unmatched" if route is None else str(route.path)
