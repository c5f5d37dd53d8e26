"""A process that serves: sockets, signals, and the order in which it stops.

After SIGTERM `/ready` says no at once, new requests are taken for a grace period and then
refused, running ones may finish within a limit, the rest ends with an error event, and the
process exits with 0. SIGINT has no grace period; a second signal ends everything now.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sampler import EngineStopped
from server.engine import Engine
from server.engine_restarts import EngineRestarts
from server.http_protocol import bounded_protocol
from server.settings import Settings, SettingsError
from server.state import ServerState

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED = 0, 1
# Streams of a dead engine are ended within a tick; then their last bytes leave.
_ENGINE_DEATH_GRACE_S = 1.0
# Connections that are still open once every stream has been ended.
_CLOSE_TIMEOUT_S = 5


class GracefulServer(uvicorn.Server):
    """A uvicorn server that stops in the order above and notices when the engine dies."""

    def __init__(
        self, config: uvicorn.Config, *, app: FastAPI, engine: Engine, settings: Settings
    ) -> None:
        super().__init__(config)
        self.exit_code = EXIT_OK
        self._app = app
        self._engine = engine
        self._settings = settings
        self._signals: list[int] = []
        self._stop_requested_s: float | None = None
        self._engine_died_s: float | None = None
        self._restarts = EngineRestarts(engine) if settings.restart_engine else None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal shortens every wait, a third one skips them."""
        del frame
        self._signals.append(sig)
        if self._stop_requested_s is None:
            self._stop_requested_s = time.monotonic()
        if len(self._signals) > 2:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave the main loop; called ten times a second."""
        if await super().on_tick(counter):
            return True
        if self._stop_requested_s is not None:
            return await self._stop_further(time.monotonic() - self._stop_requested_s)
        return self._is_engine_gone()

    async def _stop_further(self, elapsed_s: float) -> bool:
        state: ServerState = self._app.state.server
        if not state.is_draining:
            state.is_draining = True
            log.info("stopping: no longer ready")
        is_urgent = len(self._signals) > 1
        grace_s = self._settings.drain_grace if self._signals[0] == signal.SIGTERM else 0.0
        if not is_urgent and elapsed_s < grace_s:
            return False
        if not state.is_refusing:
            state.is_refusing = True
            log.info("stopping: %d requests are left to finish", self._engine.num_open)
        is_over = is_urgent or elapsed_s >= grace_s + self._settings.shutdown_timeout
        if self._engine.num_open and self._engine.is_alive and not is_over:
            return False
        if self._engine.num_open:
            log.warning("stopping: %d requests are cancelled", self._engine.num_open)
        if self._restarts is not None:
            await self._restarts.stop()
        await self._engine.stop(drain_s=0.0)
        return True

    def _is_engine_gone(self) -> bool:
        if self._engine.is_alive:
            return False
        if self._restarts is not None and self._restarts.covers_death():
            return False
        if self._engine_died_s is None:
            self._engine_died_s = time.monotonic()
            log.error("the engine has stopped; this process ends")
        self.exit_code = EXIT_FAILED
        return time.monotonic() - self._engine_died_s >= _ENGINE_DEATH_GRACE_S


def listen(settings: Settings) -> socket.socket:
    """A bound socket, taken before the model is loaded; raises SettingsError if it cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}"
        ) from error
    return bound


def run(
    app: FastAPI,
    engine: Engine,
    settings: Settings,
    *,
    bound: socket.socket,
    on_ready: Callable[[str], None],
) -> int:
    """Serve until told to stop; the process's exit code.

    bound: the socket to listen on; closed at the end
    on_ready: called with the server's address once the engine is ready
    """
    config = uvicorn.Config(
        app,
        http=bounded_protocol(
            timeout_s=settings.header_timeout, connection_limit=settings.limit_concurrency
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=max(1, round(settings.keep_alive_timeout)),
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    server = GracefulServer(config, app=app, engine=engine, settings=settings)

    async def main() -> int:
        try:
            await engine.start()
        except EngineStopped as error:
            log.error("%s", error)
            return EXIT_FAILED
        on_ready(_address(bound, settings))
        await server.serve(sockets=[bound])
        return server.exit_code

    with bound, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(main())


def _address(bound: socket.socket, settings: Settings) -> str:
    host, port = bound.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
