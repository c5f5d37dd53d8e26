"""What clients are told while the model is being loaded: alive, and not ready yet."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.error_responses import error_response, unavailable
from server.http_protocol import BoundedProtocol

# A connection of this time shall not be kept for the next one.
_CLOSE = {"connection": "close"}


async def answer_while_loading(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application of two answers: 200 to `/livez`, 503 to all else."""
    response: Response
    if scope["path"] == "/livez":
        response = JSONResponse({"status": "ok"}, headers=_CLOSE)
    else:
        response = error_response(
            unavailable("not_ready", "the model is still being loaded").answer
        )
        response.headers.update(_CLOSE)
    await response(scope, receive, send)


@asynccontextmanager
async def answering_while_loading(
    config: uvicorn.Config, bound: socket.socket, *, protocol: type[BoundedProtocol]
) -> AsyncIterator[None]:
    """Answer on a socket for the length of a block; the socket itself stays open behind it.

    config:   of `answer_while_loading`
    protocol: what makes its connections
    """
    if not config.loaded:
        config.load()
    state = ServerState()

    def connect() -> asyncio.Protocol:
        return protocol(config, state, {})

    server = await asyncio.get_running_loop().create_server(
        connect,
        sock=bound.dup(),
        ssl=config.ssl,
        backlog=config.backlog,
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
