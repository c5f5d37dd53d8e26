"""Large bodies, several at once: whoever else is served does not notice."""

import asyncio
import json
import time

import pytest

from server.schema.completions import CompletionBody
from tests.server.conftest import error_of
from tests.server.scripted_engine import CONTEXT_LENGTH, ScriptedEngine

pytestmark = pytest.mark.anyio

SIZE = 4 * 2**20 - 1024


async def _post(served, raw):
    headers = {"content-type": "application/json"}
    return await served.client.post("/v1/completions", content=raw, headers=headers)


async def _longest_pause_s(until):
    """The longest that this process kept its loop waiting, however busy the machine is."""
    longest_s, last_s = 0.0, time.process_time()
    while not until.done():
        await asyncio.sleep(0.001)
        now_s = time.process_time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return longest_s


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":"a","x":[' + b"[]," * (SIZE // 3) + b"[]]}",
        b'{"prompt":[' + b"1," * (SIZE // 2) + b"1]}",
        b'{"prompt":"a"' + b"".join(b',"%d":1' % n for n in range(SIZE // 11)) + b"}",
        json.dumps({"prompt": "word " * (SIZE // 5)}).encode(),
    ],
    ids=["lists", "token ids", "fields", "text"],
)
async def test_four_of_the_largest_bodies_do_not_stop_the_event_loop(serve, raw):
    started_s = time.thread_time()
    CompletionBody.model_validate_json(b'{"prompt":[' + b"1," * (SIZE // 2) + b"1]}")
    # As much as an eighth of it on a slow machine; 150 ms elsewhere.
    allowed_s = max(0.15, (time.thread_time() - started_s) / 2)
    async with serve() as served:
        posts = asyncio.gather(*(_post(served, raw) for _ in range(4)))
        pause_s = await _longest_pause_s(posts)
    assert {answer.status_code for answer in await posts} <= {400, 413}
    assert pause_s < allowed_s


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_text_that_cannot_fit_is_refused_before_it_is_cut(serve, path, monkeypatch):
    engine = ScriptedEngine()
    text = "a" * (20 * CONTEXT_LENGTH)
    fields = {"prompt": text, "messages": [{"role": "user", "content": text}]}
    field = "prompt" if path == "/v1/completions" else "messages"
    async with serve(engine) as served:
        tokenizer = served.app.state.server.text.tokenizer
        monkeypatch.setattr(tokenizer, "encode", _not_called)
        answer = await served.client.post(path, json={field: fields[field]})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert error_of(answer)["param"] == field


def _not_called(*_arguments, **_options):
    raise AssertionError("the text was cut into tokens")


async def test_a_long_text_that_is_cut_on_request_is_taken(serve):
    async with serve() as served:
        answer = await served.complete(prompt="ab" * 4096, truncate_prompt_tokens=4, max_tokens=2)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == 4
