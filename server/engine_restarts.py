"""`EngineRestarts`: brings an engine that ended by itself back, while this process answers 503.

An engine that ends again and again is given up, so that whoever watches the process sees it.
"""

import asyncio
import logging
import time

from sampler import EngineStopped
from server.engine import Engine

log = logging.getLogger(__name__)

# More deaths than this within the window are no accident.
_MOST_RESTARTS = 5
_WINDOW_S = 600.0


class EngineRestarts:
    """Restarts of one engine, one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._starting: asyncio.Task[None] | None = None
        self._times_s: list[float] = []
        self._is_given_up = False

    def covers_death(self) -> bool:
        """Whether the engine, which is not alive, is being brought back; begins to do so."""
        if self._starting is not None and not self._starting.done():
            return True
        now_s = time.monotonic()
        self._times_s = [then_s for then_s in self._times_s if now_s - then_s < _WINDOW_S]
        if len(self._times_s) >= _MOST_RESTARTS:
            log.error("the engine has ended %d times; it is not started again", _MOST_RESTARTS + 1)
            self._is_given_up = True
        if self._is_given_up:
            return False
        self._times_s.append(now_s)
        log.warning("the engine has ended; it is started again")
        self._starting = asyncio.create_task(self._start())
        return True

    async def stop(self) -> None:
        """Give up what is under way."""
        self._is_given_up = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])

    async def _start(self) -> None:
        started_s = time.monotonic()
        try:
            await self._engine.stop(drain_s=0.0)
            await self._engine.start()
        except EngineStopped as error:
            log.error("the engine cannot be started again: %s", error)
            self._is_given_up = True
            return
        log.info("the engine is back after %.1f s", time.monotonic() - started_s)
