"""A request sent straight to an ASGI application, whose client can leave or read slowly."""

import asyncio
import json


class AsgiExchange:
    """One request and what the application sends back.

    leaves_after: the client disconnects after so many body messages
    """

    def __init__(self, app, path, body, *, headers=(), leaves_after=None, body_parts=None):
        self.app = app
        self.messages = []
        self.left = asyncio.Event()
        self._leaves_after = leaves_after
        parts = body_parts or [json.dumps(body).encode()]
        self._parts = list(parts)
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }

    async def run(self):
        await self.app(self.scope, self._receive, self._send)

    async def _receive(self):
        if self._parts:
            part = self._parts.pop(0)
            if isinstance(part, asyncio.Event):
                await part.wait()
                part = b""
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.messages.append(message)
        bodies = [sent for sent in self.messages if sent["type"] == "http.response.body"]
        if self._leaves_after is not None and len(bodies) >= self._leaves_after:
            self.left.set()

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def text(self):
        bodies = [sent["body"] for sent in self.messages if sent["type"] == "http.response.body"]
        return b"".join(bodies).decode()
