"""Server-sent events, and clean-up when a client leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.error_responses import ErrorAnswer, answer_of

log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Proxies like nginx would else collect the stream before they pass it on.
    "x-accel-buffering": "no",
}


class ClientGone(Exception):
    """The client left before its answer was complete."""


def event(data: str) -> bytes:
    """One event; `data` is JSON and so has no line breaks."""
    return b"data: " + data.encode() + b"\n\n"


def named_event(name: str, data: str) -> bytes:
    """One event with a name."""
    return b"event: " + name.encode() + b"\n" + event(data)


class EventStream(Response):
    """Sends events as they come; whatever happens, `close` is called exactly once at the end.

    events:  encoded events, several in one item when several are ready
    failure: the events that end the stream instead when `events` raises
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        failure: Callable[[ErrorAnswer], bytes],
        close: Callable[[], None],
        write_timeout_s: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        # A stream has no length that could be known.
        del self.headers["content-length"]
        self._events = events
        self._failure = failure
        self._close = close
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, unless the client leaves first."""
        del scope
        try:
            await unless_disconnected(receive, self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await self._write(send, data)
        except ClientGone:
            raise
        except Exception as error:
            # The status line is out: what went wrong can only be said inside the stream.
            answer = answer_of(error)
            if answer.status == 500:
                log.exception("a stream failed")
            await self._write(send, self._failure(answer))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise ClientGone("the client does not read its stream") from None
        except OSError as error:
            raise ClientGone("the connection broke") from error


async def unless_disconnected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first.

    Raises ClientGone then.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client left")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
