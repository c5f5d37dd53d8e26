"""A uvicorn connection that gives up on clients who send their headers slowly or without end.

uvicorn has no limit of its own on the time, number or size of request headers, nor on connections
of one address.
"""

import asyncio
import os
import socket
import struct
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.connections import ConnectionLimits, OpenConnections
from server.error_responses import ErrorAnswer, error_body
from server.limits import MAX_HEADER_BYTES, MAX_HEADERS

_TIMEOUT = ErrorAnswer(408, "timeout_error", "request_timeout", "the request headers took too long")
_TOO_LARGE = ErrorAnswer(
    431, "invalid_request_error", "headers_too_large", "the request headers are too large"
)
_MALFORMED = ErrorAnswer(
    400, "invalid_request_error", "invalid_http", "this is not a valid HTTP request"
)
_RETRY_AFTER = b"retry-after: 1\r\nretry-after-ms: 1000\r\n"
_PHRASES = {
    503: b"Service Unavailable",
    400: b"Bad Request",
    408: b"Request Timeout",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
}
# Statuses after which the same request may be sent again.
_BUSY = frozenset({429, 503})
_NO_LINGER = struct.pack("ii", 1, 0)
# For a connection too many to send the headers of the request that is refused.
_EXCESS_TIMEOUT_S = 1.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request headers are bounded in time, number and size."""

    header_timeout_s: ClassVar[float]
    open_connections: ClassVar[OpenConnections]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._in_headers = True
        self._address = ""
        self._excess: ErrorAnswer | None = None

    @property
    def unread_bytes(self) -> int:
        """What waits to be sent while nothing more is written; 0 at other times."""
        cycle = self.cycle
        is_writing = not (
            self.flow.write_paused
            or self.transport.is_closing()
            or cycle is None
            or cycle.response_complete
        )
        return 0 if is_writing else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close at once and drop what waits, in the kernel too, which tells the client."""
        peer = self.transport.get_extra_info("socket")
        if peer is not None and not self.transport.is_closing():
            with socket.socket(fileno=os.dup(peer.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a client that only connects shall not stay."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._excess = self.open_connections.enter(self._address)
        self._start_timer()
        if self.open_connections.is_flooded:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self.open_connections.leave(self._address)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; headers without end are refused."""
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Start the clock of a further request on this connection."""
        super().on_message_begin()
        self._in_headers = True
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Stop the clock and check the headers before a task is started for them."""
        self._stop_timer()
        self._in_headers = False
        self._header_bytes = 0
        if len(self.headers) > MAX_HEADERS or _size(self.headers) > MAX_HEADER_BYTES:
            self._refuse(_TOO_LARGE)
            return
        if self._excess is not None:
            self._refuse(self._excess)
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request was refused."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body, unless the request was refused."""
        if self.cycle is not None:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP in the API's own form."""
        self._refuse(_MALFORMED)

    def _start_timer(self) -> None:
        if self._header_timer is not None:
            return
        timeout_s, answer = self.header_timeout_s, _TIMEOUT
        if self._excess is not None:
            timeout_s, answer = min(timeout_s, _EXCESS_TIMEOUT_S), self._excess
        self._header_timer = self.loop.call_later(timeout_s, self._refuse, answer)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, answer: ErrorAnswer) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = error_body(answer)
        head = b"HTTP/1.1 %d %s\r\n" % (answer.status, _PHRASES[answer.status])
        if answer.status in _BUSY:
            head += _RETRY_AFTER
        self.transport.write(
            head + b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        self.transport.close()


def bounded_protocol(*, timeout_s: float, limits: ConnectionLimits) -> type[BoundedProtocol]:
    """A connection class for `uvicorn.Config(http=...)`.

    timeout_s: time a client has to send its headers
    limits:    how many of these connections may be open
    """

    class Bounded(BoundedProtocol):
        header_timeout_s = timeout_s
        open_connections = OpenConnections(limits)

    return Bounded


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)
