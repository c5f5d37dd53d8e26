"""Clients of paced streams that cost next to nothing: they note when events come, nothing more."""

import asyncio
import json
import time

MARK = b'data: {"id":"'


class Stream(asyncio.Protocol):
    """One streamed chat answer: its id, and when each event came."""

    def __init__(self, max_tokens: int) -> None:
        self.came_s: list[float] = []
        self.id = ""
        self._body = json.dumps(
            {
                "messages": [{"role": "user", "content": "Tell me of the sea."}],
                "stream": True,
                "max_tokens": max_tokens,
            }
        ).encode()
        self._tail = b""
        self.is_over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(self._body)
            + self._body
        )

    def data_received(self, data):
        now_s = time.monotonic()
        data = self._tail + data
        self.came_s += [now_s] * data.count(MARK)
        if not self.id and MARK in data:
            self.id = data.partition(MARK)[2].partition(b'"')[0].decode()
        # A mark may be cut in two; one that is whole was counted.
        self._tail = data[-len(MARK) + 1 :]

    def connection_lost(self, _error):
        if not self.is_over.done():
            self.is_over.set_result(None)


def latencies_ms(streams: list[Stream], sent_s: dict[str, list[float]], window_s) -> list[float]:
    """From the engine's sending to the client's socket, of tokens that came in the window."""
    found = []
    for stream in streams:
        sent = sent_s[f"{stream.id}-0"]
        # One event names the role before the first token, and the last tells why the answer ended.
        came = stream.came_s[1 : len(sent) + 1]
        assert len(came) == len(sent), "every token makes one event"
        pairs = zip(sent, came, strict=True)
        found += [(b - a) * 1000 for a, b in pairs if window_s[0] <= b <= window_s[1]]
    return found
