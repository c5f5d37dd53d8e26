"""A real process on a real socket: how it refuses slow clients, stops, and ends."""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from server.serve import listen
from server.settings import SettingsError, load_settings
from server.shell import probe

WAITS_S = 30.0
OPENSSL = shutil.which("openssl")


@contextmanager
def running_server(*flags, verify=True):
    command = [sys.executable, "-m", "tests.server.serve_scripted", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        # The socket is bound before it listens.
        while not _is_ready(address, verify):
            time.sleep(0.02)
        yield process, address
    finally:
        process.kill()
        process.communicate()


def _is_ready(address, verify):
    try:
        return httpx.get(f"{address}/ready", verify=verify).status_code == 200
    except httpx.TransportError:
        return False


def _connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAITS_S)


def _read_all(connection):
    received = b""
    while part := connection.recv(65536):
        received += part
    return received.decode()


def _stream_in_background(address, prompt):
    lines = []

    def read():
        body = {"prompt": prompt, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=WAITS_S) as got:
            lines.extend(got.iter_lines())

    thread = threading.Thread(target=read)
    thread.start()
    return thread, lines


def _wait_until(claim):
    deadline_s = time.monotonic() + WAITS_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture(scope="module")
def bounded():
    with running_server(
        "--header-timeout", "0.3", "--body-timeout", "0.3", "--limit-concurrency", "4"
    ) as (
        _,
        address,
    ):
        yield address


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ", b"GET /liv"],
)
def test_a_client_that_does_not_finish_its_headers_is_told_so(bounded, sent):
    with _connect(bounded) as connection:
        connection.sendall(sent)
        answer = _read_all(connection)
    assert answer.startswith("HTTP/1.1 408 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_a_client_that_does_not_finish_its_body_is_told_so(bounded):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with _connect(bounded) as connection:
        connection.sendall(head + b'content-length: 100\r\n\r\n{"prompt": ')
        answer = _read_all(connection)
    assert answer.startswith("HTTP/1.1 408 ")
    assert "request_timeout" in answer


@pytest.mark.parametrize(
    "headers",
    [b"x-long: " + b"a" * 70_000 + b"\r\n", b"".join(b"x-%d: a\r\n" % i for i in range(150))],
)
def test_headers_without_end_are_refused(bounded, headers):
    with _connect(bounded) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
        answer = _read_all(connection)
    assert answer.startswith("HTTP/1.1 431 ")
    assert "headers_too_large" in answer


def test_what_is_no_http_is_refused(bounded):
    with _connect(bounded) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = _read_all(connection)
    assert answer.startswith("HTTP/1.1 400 ")
    assert "invalid_http" in answer


def test_too_many_connections_are_refused(bounded):
    held = [_connect(bounded) for _ in range(4)]
    response = httpx.get(f"{bounded}/livez")
    for connection in held:
        connection.close()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "server_overloaded"
    assert response.headers["retry-after"] == "1"


def test_a_connection_serves_one_request_after_another(bounded):
    with httpx.Client(base_url=bounded) as client:
        answers = [client.post("/v1/completions", json={"prompt": "x"}) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert "server" not in answers[0].headers


def test_a_client_that_does_not_read_its_stream_is_given_up():
    body = b'{"prompt": "flood", "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with running_server("--write-timeout", "0.5") as (_, address), socket.socket() as slow:
        # A small window from the beginning, so that what the kernels hold is soon full.
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        slow.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        _wait_until(lambda: httpx.get(f"{address}/load").json()["server_load"] == 1)
        beside = httpx.post(f"{address}/v1/completions", json={"prompt": "x"})
        _wait_until(lambda: httpx.get(f"{address}/load").json()["server_load"] == 0)
        metrics = httpx.get(f"{address}/metrics").text
    assert beside.json()["choices"][0]["text"] == "hello"
    assert 'estuary_client_disconnects_total{model_name="tiny"} 1.0' in metrics


def test_sigterm_lets_running_requests_end_by_the_limit_and_exits_with_zero():
    with running_server("--drain-grace", "0.3", "--shutdown-timeout", "0.5") as (process, address):
        thread, lines = _stream_in_background(address, "wait")
        _wait_until(lambda: lines)
        process.send_signal(signal.SIGTERM)
        _wait_until(lambda: httpx.get(f"{address}/ready").status_code == 503)
        during_grace = httpx.post(f"{address}/v1/completions", json={"prompt": "x"})
        _wait_until(
            lambda: httpx.post(f"{address}/v1/completions", json={"prompt": "x"}).status_code == 503
        )
        thread.join(WAITS_S)
        _, log = process.communicate(timeout=WAITS_S)
    said = [line for line in lines if line]
    assert during_grace.status_code == 200
    assert process.returncode == 0
    assert "error" in json.loads(said[-2].removeprefix("data: "))
    assert said[-1] == "data: [DONE]"
    assert "1 requests are cancelled" in log


def test_sigint_on_an_idle_server_exits_at_once_with_zero():
    with running_server("--drain-grace", "60") as (process, _):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAITS_S)
    assert process.returncode == 0


def test_a_second_signal_ends_everything_now():
    with running_server("--drain-grace", "60", "--shutdown-timeout", "60") as (process, address):
        thread, lines = _stream_in_background(address, "wait")
        _wait_until(lambda: lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAITS_S)
        thread.join(WAITS_S)
    assert process.returncode == 0
    assert lines[-2] == "data: [DONE]"


def test_a_dead_engine_ends_its_streams_and_therunning_server():
    with running_server() as (process, address):
        thread, lines = _stream_in_background(address, "die")
        thread.join(WAITS_S)
        _, log = process.communicate(timeout=WAITS_S)
    said = [line for line in lines if line]
    assert process.returncode == 1
    assert json.loads(said[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert said[-1] == "data: [DONE]"
    assert "the engine has stopped" in log


def test_the_containers_probe_asks_for_health(bounded):
    port = bounded.rpartition(":")[2]
    with listen(load_settings({"port": 0})) as free:
        unused = free.getsockname()[1]
    assert probe.main({"port": port}) == 0
    assert probe.main({"port": unused}) == 1
    assert probe.main({"port": "x"}) == 1


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
def test_tls_behind_a_proxy_that_takes_a_prefix_off(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    trusting = ssl.create_default_context(cafile=certificate)
    flags = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--root-path", "/llm"]
    with running_server(*flags, verify=trusting) as (_, address):
        models = httpx.get(f"{address}/v1/models", verify=trusting)
        document = httpx.get(f"{address}/openapi.json", verify=trusting).json()
    assert address.startswith("https://")
    assert document["servers"] == [{"url": "/llm"}]
    assert models.json()["data"][0]["id"] == "tiny"


def test_a_port_in_use_is_said_in_a_sentence():
    with listen(load_settings({"port": 0})) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen(load_settings({"port": port}))
