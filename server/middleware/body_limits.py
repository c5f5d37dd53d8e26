"""Bounds on the size of a request body and on the time it takes to arrive."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_responses import ApiError, ErrorAnswer, error_response


def _too_large(limit_bytes: int) -> ErrorAnswer:
    return ErrorAnswer(
        413,
        "invalid_request_error",
        "body_too_large",
        f"the body may have at most {limit_bytes} bytes",
        headers={"connection": "close"},
    )


_TOO_SLOW = ErrorAnswer(
    408,
    "timeout_error",
    "request_timeout",
    "the request body took too long",
    headers={"connection": "close"},
)


class BodyLimits:
    """Refuses bodies that are too large, by their announced and by their real size, or too slow."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:18]) > self._limit_bytes:
            await error_response(_too_large(self._limit_bytes))(scope, receive, send)
            return
        guarded = _GuardedBody(receive, limit_bytes=self._limit_bytes, timeout_s=self._timeout_s)
        await self._app(scope, guarded.receive, send)


class _GuardedBody:
    """Counts a body as it arrives; the clock runs from the first read to the last byte."""

    def __init__(self, receive: Receive, *, limit_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._deadline_s: float | None = None
        self._num_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._deadline_s is None:
            self._deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(_TOO_SLOW) from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limit_bytes:
            raise ApiError(_too_large(self._limit_bytes))
        self._is_complete = not message.get("more_body", False)
        return message
