"""Many different large schemas at once: a stream that runs beside them hardly notices."""

import concurrent.futures
import json
import threading
import time

import httpx
import pytest

from tests.end_to_end.conftest import WAITS_S, serving, write_checkpoint

# Of another stream, beside what it is without schemas.
MOST_MORE_S = 0.1
STREAM = {"prompt": "the sea", "stream": True, "max_tokens": 120, "ignore_eos": True}


def schema(number):
    names = [f"p{number}_{index}" for index in range(300)]
    kinds = [{"type": "string", "maxLength": 8}, {"enum": [f"a{number}", "b"]}]
    properties = {name: kinds[index % 2] for index, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names}


class Listener(threading.Thread):
    """Streams answers one after the other until told to stop; remembers the longest silence."""

    def __init__(self, address):
        super().__init__()
        self.address = address
        self.is_over = False
        self.longest_s = 0.0
        self.num_chunks = 0

    def run(self):
        with httpx.Client(base_url=self.address, timeout=WAITS_S) as client:
            while not self.is_over:
                with client.stream("POST", "/v1/completions", json=STREAM) as answer:
                    self._listen(answer)

    def _listen(self, answer):
        last_s = None
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            now_s = time.monotonic()
            if last_s is not None:
                self.longest_s = max(self.longest_s, now_s - last_s)
            last_s = now_s
            self.num_chunks += 1


def longest_silence(address, meanwhile):
    listener = Listener(address)
    listener.start()
    try:
        meanwhile()
    finally:
        listener.is_over = True
        listener.join()
    assert listener.num_chunks > 50
    return listener.longest_s


SOAK = (pytest.mark.soak, pytest.mark.timeout(1800))


@pytest.mark.alone
@pytest.mark.parametrize(("count", "most_more_s"), [
    # A machine that runs other tests has pauses of its own; in the loop it would be 7 s here.
    (96, 2.0),
    pytest.param(1024, MOST_MORE_S, marks=SOAK),
])  # fmt: skip
def test_other_streams_go_on_while_schemas_compile(golden, tmp_path, count, most_more_s):
    folder = write_checkpoint(golden, "llama", tmp_path)
    bodies = [
        json.dumps(
            {
                "prompt": "the sea",
                "max_tokens": 2,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": schema(number)},
                },
            }
        )
        for number in range(count)
    ]
    with serving(folder, "--max-queued-requests", "2048") as server:

        def ask(content):
            headers = {"content-type": "application/json"}
            url = f"{server.address}/v1/completions"
            return httpx.post(url, content=content, headers=headers, timeout=600).status_code

        def flood():
            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                statuses.extend(pool.map(ask, bodies))

        statuses = []
        alone_s = longest_silence(server.address, lambda: time.sleep(3))
        beside_s = longest_silence(server.address, flood)
    assert statuses == [200] * count
    assert beside_s - alone_s < most_more_s
