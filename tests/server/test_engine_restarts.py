"""An engine that ends is started again, but not for ever."""

import asyncio

import pytest

from sampler import EngineStopped
from server import engine_restarts
from server.engine_restarts import EngineRestarts

pytestmark = pytest.mark.anyio


class DyingEngine:
    """Starts as often as it may."""

    def __init__(self, *, starts=100):
        self.is_alive = False
        self.starts = starts
        self.log = []

    async def start(self):
        self.log.append("start")
        await asyncio.sleep(0)
        if self.log.count("start") > self.starts:
            raise EngineStopped("no memory")
        self.is_alive = True

    async def stop(self, *, drain_s):
        assert drain_s == 0
        self.log.append("stop")


async def test_an_engine_is_cleared_away_and_started_once_at_a_time():
    engine = DyingEngine()
    restarts = EngineRestarts(engine)
    assert restarts.covers_death()
    assert restarts.covers_death()
    await asyncio.sleep(0.01)
    assert engine.is_alive
    assert engine.log == ["stop", "start"]


async def test_an_engine_that_cannot_start_is_given_up():
    restarts = EngineRestarts(DyingEngine(starts=0))
    assert restarts.covers_death()
    await asyncio.sleep(0.01)
    assert not restarts.covers_death()


async def test_an_engine_that_dies_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr(engine_restarts, "_MOST_RESTARTS", 2)
    engine = DyingEngine()
    restarts = EngineRestarts(engine)
    for _ in range(2):
        engine.is_alive = False
        assert restarts.covers_death()
        await asyncio.sleep(0.01)
    assert not restarts.covers_death()


async def test_stopping_ends_a_start_that_is_under_way():
    engine = DyingEngine()
    engine.start = lambda: asyncio.sleep(60)
    restarts = EngineRestarts(engine)
    assert restarts.covers_death()
    await asyncio.sleep(0)
    await restarts.stop()
    assert not restarts.covers_death()
