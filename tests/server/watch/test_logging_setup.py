"""Log lines: one form, no line breaks from outside, no prompts."""

import io
import json
import logging

import pytest

from server.watch.logging_setup import set_up_logging
from tests.server.scripted_engine import ScriptedEngine, saying


@pytest.fixture
def log_stream():
    return io.StringIO()


def test_a_line_is_json_with_its_fields(log_stream):
    set_up_logging(form="json", level="info", stream=log_stream)
    logging.getLogger("a.b").info("loaded %s", "x", extra={"seconds": 1.5})
    logging.getLogger("a.b").debug("not shown")
    line = json.loads(log_stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"event": "loaded x", "level": "info", "logger": "a.b", "seconds": 1.5}


@pytest.mark.parametrize("form", ["json", "console"])
def test_nobody_can_write_lines_of_their_own(log_stream, form):
    set_up_logging(form=form, level="info", stream=log_stream)
    logging.getLogger("a").info("model %s", "x\n2026 forged\x1b[31m", extra={"name_": "b\r\nc"})
    assert log_stream.getvalue().count("\n") == 1
    assert "\r" not in log_stream.getvalue()
    assert "\x1b[31m" not in log_stream.getvalue()


@pytest.mark.anyio
async def test_a_finished_request_is_one_line_without_its_text(serve, log_stream):
    set_up_logging(form="json", level="info", stream=log_stream)
    async with serve(ScriptedEngine(saying("answer text"))) as served:
        await served.chat(messages=[{"role": "user", "content": "prompt text"}], stream=True)
        await served.client.get("/livez")
        await served.client.get("/metrics")
    lines = [json.loads(line) for line in log_stream.getvalue().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 1
    assert requests[0]["route"] == "/v1/chat/completions"
    assert requests[0]["status"] == 200
    assert requests[0]["finish"] == "stop"
    assert requests[0]["answer_tokens"] == 12
    assert requests[0]["forward_passes"] == 12
    assert requests[0]["first_token_ms"] >= 0
    assert "prompt text" not in log_stream.getvalue()
    assert "answer text" not in log_stream.getvalue()
