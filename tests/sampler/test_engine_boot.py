"""The engine process from its first lines on: it ends with its parent and leaves stopping to it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sampler import EngineClient, EngineConfig, EngineStopped

WAITS_S = 60.0
ENDS_WITHIN_S = 3.0
PARENT = """
import asyncio, sys
from sampler import EngineClient, EngineConfig

async def start():
    client = EngineClient(EngineConfig(model="nothing"))
    starting = asyncio.ensure_future(client.start())
    await asyncio.sleep(0)
    print(client.process_id, flush=True)
    await starting

asyncio.run(start())
"""


def _wait_for(claim):
    deadline_s = time.monotonic() + WAITS_S
    while not claim():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def _status(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return ""


def _is_gone(pid):
    return _status(pid) == "" or "State:\tZ" in _status(pid)


def _ignores(pid, number):
    lines = [line for line in _status(pid).splitlines() if line.startswith("SigIgn:")]
    return bool(lines) and bool(int(lines[0].split()[1], 16) >> (number - 1) & 1)


@pytest.mark.alone
@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_an_engine_that_loads_ends_at_once_when_its_parent_is_killed(after_s):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    engine = int(parent.stdout.readline())
    _wait_for(lambda: _ignores(engine, signal.SIGTERM))
    time.sleep(after_s)
    parent.kill()
    killed_s = time.monotonic()
    _wait_for(lambda: _is_gone(engine))
    took_s = time.monotonic() - killed_s
    parent.communicate()
    assert took_s < ENDS_WITHIN_S


def test_an_engine_without_its_parent_does_not_begin():
    stranger = subprocess.run(
        [sys.executable, "sampler/engine_boot.py", "1", "sampler.engine_process", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert (stranger.returncode, stranger.stdout) == (1, b"")


@pytest.mark.alone
def test_a_start_that_is_cancelled_leaves_no_process():
    async def cancelled():
        client = EngineClient(EngineConfig(model="nothing"))
        starting = asyncio.ensure_future(client.start())
        await asyncio.sleep(0.1)
        engine, sent_s = client.process_id, time.monotonic()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await client.stop()
        return engine, time.monotonic() - sent_s

    engine, took_s = asyncio.run(cancelled())
    assert took_s < ENDS_WITHIN_S
    assert not Path(f"/proc/{engine}").exists()


def test_an_engine_that_cannot_start_is_waited_for():
    async def failed():
        client = EngineClient(EngineConfig(model="nothing"))
        with pytest.raises(EngineStopped, match="cannot start"):
            await client.start()
        return client.process_id

    assert not Path(f"/proc/{asyncio.run(failed())}").exists()


def test_signals_to_stop_are_the_parents_business():
    async def signalled():
        client = EngineClient(EngineConfig(model="nothing"))
        starting = asyncio.ensure_future(client.start())
        await asyncio.sleep(0)
        engine = client.process_id
        await asyncio.to_thread(_wait_for, lambda: _ignores(engine, signal.SIGTERM))
        os.kill(engine, signal.SIGINT)
        os.kill(engine, signal.SIGTERM)
        await asyncio.sleep(0.2)
        is_running = not _is_gone(engine)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return is_running

    assert asyncio.run(signalled())
