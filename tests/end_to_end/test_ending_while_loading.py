"""A server that is told to stop, or dies, while its engine loads: nothing is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.conftest import write_checkpoint

# Importing everything takes seconds, and several times that on a busy machine.
WAITS_S = 240.0
# The processes take a hundredth of it; the machine may be busy.
ENDS_WITHIN_S = 4.0


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory):
    return write_checkpoint(golden, "llama", tmp_path_factory.mktemp("llama"))


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _starting(model, *flags, port=0, log=subprocess.PIPE):
    """A server process as soon as its engine process is there; the number of that."""
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port),
               "--device", "cpu", "--num-threads", "1", "--kv-cache-memory", "8MiB"]  # fmt: skip
    process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, text=True)
    engines = []
    try:
        engines = _wait_for(lambda: _children(process.pid))
        yield process, engines[0]
    finally:
        process.kill()
        process.communicate()
        for engine in engines:
            _kill(engine)


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children(pid):
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _wait_for(claim):
    deadline_s = time.monotonic() + WAITS_S
    while not (found := claim()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return found


def _is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.alone
@pytest.mark.parametrize("after_s", [0.0, 1.5])
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_while_the_engine_loads_ends_both_processes_at_once(
    model, number, status, after_s
):
    with _starting(model) as (process, engine):
        time.sleep(after_s)
        process.send_signal(number)
        sent_s = time.monotonic()
        process.communicate(timeout=WAITS_S)
        _wait_for(lambda: _is_gone(engine))
        took_s = time.monotonic() - sent_s
    assert took_s < ENDS_WITHIN_S
    assert process.returncode == status


def test_a_stop_signal_to_the_engine_alone_changes_nothing(model):
    with _starting(model) as (process, engine):
        time.sleep(0.3)
        os.kill(engine, signal.SIGTERM)
        os.kill(engine, signal.SIGINT)
        greeting = process.stdout.readline()
    assert greeting.startswith("Estuary is ready at ")


def test_while_the_engine_loads_clients_are_told_to_wait(model):
    port = _free_port()
    with _starting(model, port=port):
        address = f"http://127.0.0.1:{port}"
        alive = httpx.get(f"{address}/livez", timeout=WAITS_S)
        ready = httpx.get(f"{address}/ready", timeout=WAITS_S)
        asked = httpx.post(f"{address}/v1/completions", json={"prompt": "x"}, timeout=WAITS_S)
    assert (alive.status_code, ready.status_code, asked.status_code) == (200, 503, 503)
    assert asked.json()["error"]["code"] == "not_ready"
    assert asked.headers["connection"] == "close"


def test_the_second_server_of_a_port_is_refused_before_it_loads(model):
    port = _free_port()
    with _starting(model, port=port):
        command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port)]
        second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        children = []
        watching = threading.Thread(target=_watch_children, args=(second, children))
        watching.start()
        _, said = second.communicate(timeout=WAITS_S)
        watching.join(WAITS_S)
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in said
    assert children == []


def _watch_children(process, children):
    while process.poll() is None:
        children += _children(process.pid)
        time.sleep(0.05)


def test_the_greeting_is_the_last_line(model, tmp_path):
    path = tmp_path / "log"
    with path.open("w") as log, _starting(model, "--log-format", "json", log=log):
        _wait_for(lambda: "Try: curl" in path.read_text())
        time.sleep(0.5)
        lines = path.read_text().splitlines()
    assert lines[-1].startswith("Try: curl")
    assert all(json.loads(line)["event"] for line in lines[:-2])
