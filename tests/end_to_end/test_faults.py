"""Faults injected into real servers: after each, no page is held, no stream hangs, and the server
is healthy or cleanly gone."""

import concurrent.futures
import json
import os
import signal
import socket
import struct
import time

import httpx
import pytest

from tests.end_to_end.conftest import WAITS_S, serving, write_checkpoint
from tests.end_to_end.test_serving import GREEDY, PROMPT, _children

LONG = {"prompt": PROMPT, "stream": True, "max_tokens": 200, "ignore_eos": True}


def _open_stream(address):
    """A raw connection on which a streamed answer has begun."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    connection = socket.create_connection((host, int(port)), timeout=WAITS_S)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    assert connection.recv(1024).startswith(b"HTTP/1.1 ")
    return connection


def _leave(address, *, rudely):
    connection = _open_stream(address)
    if rudely:
        # No goodbye: the kernel answers with a reset, as when a client's machine dies.
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


SOAK = (pytest.mark.soak, pytest.mark.timeout(3600))


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=SOAK)])
def test_clients_that_leave_in_the_middle_leave_nothing_behind(llama, count):
    before = llama.complete(PROMPT, **GREEDY)["choices"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: _leave(llama.address, rudely=n % 2 == 0), range(count)))
    llama.wait_until_idle()
    assert llama.client.get("/load").json() == {"server_load": 0, "running": 0, "waiting": 0}
    assert llama.complete(PROMPT, **GREEDY)["choices"] == before
    assert llama.client.get("/health").status_code == 200


def _stream_to_its_end(address):
    with httpx.stream("POST", f"{address}/v1/completions", json=LONG, timeout=WAITS_S) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    return answer.status_code, lines


@pytest.mark.parametrize("grace", [["--shutdown-timeout", "0.2"], ["--shutdown-timeout", "60"]])
def test_sigterm_under_load_ends_every_stream(golden, tmp_path, grace):
    with (
        serving(write_checkpoint(golden, "llama", tmp_path), *grace) as server,
        concurrent.futures.ThreadPoolExecutor(24) as pool,
    ):
        running = [pool.submit(_stream_to_its_end, server.address) for _ in range(24)]
        while server.client.get("/load").json()["server_load"] < 24:
            assert not all(each.done() for each in running)
            time.sleep(0.01)
        engines = _children(server.process)
        server.process.send_signal(signal.SIGTERM)
        ends = [each.result(WAITS_S) for each in running]
        server.process.wait(WAITS_S)
    assert {status for status, _ in ends} == {200}
    assert {lines[-1] for _, lines in ends} == {"data: [DONE]"}
    last = [json.loads(lines[-2].removeprefix("data: ")) for _, lines in ends]
    assert all("error" in each or each["choices"][0]["finish_reason"] for each in last)
    assert grace[1] != "60" or not any("error" in each for each in last)
    assert server.process.returncode == 0
    assert not any(_is_running(engine) for engine in engines)


def _is_running(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_queue_refuses_at_once_and_serves_the_rest(golden, tmp_path):
    folder = write_checkpoint(golden, "llama", tmp_path)
    with (
        serving(folder, "--max-num-seqs", "2", "--max-queued-requests", "2") as server,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}

        def ask(_):
            return httpx.post(f"{server.address}/v1/completions", json=body, timeout=WAITS_S)

        answers = list(pool.map(ask, range(16)))
        server.wait_until_idle()
        after = server.client.get("/health").status_code
    statuses = [answer.status_code for answer in answers]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert set(statuses) == {200, 503}
    assert all(answer.json()["error"]["code"] == "server_overloaded" for answer in refused)
    assert all(float(answer.headers["retry-after-ms"]) > 0 for answer in refused)
    assert after == 200


def test_an_engine_that_is_stopped_is_not_healthy_and_goes_on_when_it_is_woken(llama):
    (engine,) = _children(llama.process)
    os.kill(engine, signal.SIGSTOP)
    try:
        body = {"prompt": PROMPT, "timeout": 0.5}
        late = llama.client.post("/v1/completions", json=body)
        live = llama.client.get("/livez")
    finally:
        os.kill(engine, signal.SIGCONT)
    assert (late.status_code, live.status_code) == (504, 200)
    assert late.json()["error"]["code"] == "deadline_exceeded"
    llama.wait_until_idle()
    assert llama.complete(PROMPT, **GREEDY)["usage"]["completion_tokens"] == 24


def test_a_prediction_gives_the_same_answer_in_fewer_forwards(llama, hybrid):
    for server in (llama, hybrid):
        fields = {"max_tokens": 32, "ignore_eos": True, "seed": 3, "decoding": {"mode": "ar"}}
        plain = server.complete(PROMPT, **fields)
        text = plain["choices"][0]["text"]
        known = {"type": "content", "content": text}
        sped = server.complete(PROMPT, **fields, prediction=known)
        assert sped["choices"][0]["text"] == text
        details = sped["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] > 16
        assert sped["usage"]["decoding"]["forward_passes"] < 16


def test_lookup_gives_the_same_answer(llama):
    fields = {"max_tokens": 48, "ignore_eos": True, "temperature": 0}
    plain = llama.complete(PROMPT, **fields)
    decoding = {"mode": "speculative", "drafts": "ngram"}
    looked_up = llama.complete(PROMPT, **fields, decoding=decoding)
    assert looked_up["choices"][0]["text"] == plain["choices"][0]["text"]


def test_an_engine_that_dies_is_brought_back_while_others_are_told_to_wait(golden, tmp_path):
    folder = write_checkpoint(golden, "llama", tmp_path)
    with (
        serving(folder, "--restart-engine") as server,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        before = server.complete(PROMPT, **GREEDY)["choices"]
        running = [pool.submit(_stream_to_its_end, server.address) for _ in range(16)]
        while server.client.get("/load").json()["server_load"] < 16:
            assert not all(each.done() for each in running)
            time.sleep(0.005)
        (engine,) = _children(server.process)
        os.kill(engine, signal.SIGKILL)
        ends = [each.result(WAITS_S)[1][-2] for each in running]
        refused = server.client.post("/v1/completions", json={"prompt": PROMPT})
        live = server.client.get("/livez").status_code
        deadline_s = time.monotonic() + WAITS_S
        while server.client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert server.complete(PROMPT, **GREEDY)["choices"] == before
    assert any("error" in json.loads(line.removeprefix("data: ")) for line in ends)
    assert (refused.status_code, live) == (503, 200)
    assert refused.headers["retry-after"]
    assert server.process.returncode == 0
