"""A process that serves: sockets, signals, and the order in which it stops.

While the engine loads, `/livez` is answered, all else is told to wait, and a signal ends
everything at once. Later, after SIGTERM, `/ready` says no at once, new requests are taken for a
grace period and then refused, running ones may finish within a limit, the rest ends with an error
event, and the process exits with 0. SIGINT has no grace period; a second signal ends everything
now.
"""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from sampler import EngineStopped
from server.connections import ConnectionLimits, UnreadConnections, allow_descriptors
from server.engine import Engine
from server.engine_restarts import EngineRestarts
from server.http_protocol import BoundedProtocol, bounded_protocol
from server.settings import Settings, SettingsError
from server.state import ServerState
from server.while_loading import answer_while_loading, answering_while_loading

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED = 0, 1
# Streams of a dead engine are ended within a tick; then their last bytes leave.
_ENGINE_DEATH_GRACE_S = 1.0
# Connections that are still open once every stream has been ended.
_CLOSE_TIMEOUT_S = 5
_BACKLOG = 2048
# Ticks come ten times a second.
_TICKS_OF_A_SWEEP = 2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulServer(uvicorn.Server):
    """A uvicorn server that stops in the order above and notices when the engine dies."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        app: FastAPI,
        engine: Engine,
        settings: Settings,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self.exit_code = EXIT_OK
        self._app = app
        self._engine = engine
        self._settings = settings
        self._signals: list[int] = []
        self._stop_requested_s: float | None = None
        self._engine_died_s: float | None = None
        self._restarts = EngineRestarts(engine) if settings.restart_engine else None
        self._unread = UnreadConnections(settings.write_timeout)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then tell whoever waits for it."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

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
        if counter % _TICKS_OF_A_SWEEP == 0:
            self._sweep()
        if self._stop_requested_s is not None:
            return await self._stop_further(time.monotonic() - self._stop_requested_s)
        return self._is_engine_gone()

    def _sweep(self) -> None:
        connections = self.server_state.connections
        bounded = [each for each in connections if isinstance(each, BoundedProtocol)]
        self._unread.sweep(bounded, now_s=time.monotonic())

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


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process with 0 at any line of a block, also where it is number 1.

    The kernel keeps signals that have no handler from the first process of a container.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(sig: int, frame: FrameType | None) -> None:
        del sig, frame
        raise SystemExit(EXIT_OK)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def listen(settings: Settings) -> socket.socket:
    """A listening socket, taken before the model is loaded; raises SettingsError if it cannot be.

    Only a socket that listens keeps a second server from the same address.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
        bound.listen(_BACKLOG)
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
    allow_descriptors(settings.limit_concurrency)
    config = _config(app, settings, lifespan="on")
    server = GracefulServer(
        config,
        app=app,
        engine=engine,
        settings=settings,
        on_ready=lambda: on_ready(_address(bound, settings)),
    )

    async def main() -> int:
        starting = asyncio.ensure_future(engine.start())
        with _signals_also_cancel(starting, server):
            loading = _config(answer_while_loading, settings, lifespan="off")
            async with answering_while_loading(loading, bound, protocol=_protocol(settings)):
                try:
                    await starting
                except EngineStopped as error:
                    log.error("%s", error)
                    return EXIT_FAILED
                except asyncio.CancelledError:
                    log.info("stopped while loading")
                    return EXIT_OK
            await server.serve(sockets=[bound])
        return server.exit_code

    with bound, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(main())


def _protocol(settings: Settings) -> type[BoundedProtocol]:
    return bounded_protocol(
        timeout_s=settings.header_timeout,
        limits=ConnectionLimits(
            in_all=settings.limit_concurrency,
            per_address=settings.limit_concurrency_per_address,
            trusted=settings.forwarded_allow_ips,
        ),
    )


def _config(app: ASGIApp, settings: Settings, *, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, round(settings.keep_alive_timeout)),
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )


@contextmanager
def _signals_also_cancel(
    starting: "asyncio.Future[None]", server: GracefulServer
) -> Iterator[None]:
    """Have the signals to stop end a start at once, and be known to the server that follows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def stop(sig: int, frame: FrameType | None) -> None:
        server.handle_exit(sig, frame)
        loop.call_soon_threadsafe(starting.cancel)

    previous = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


def _address(bound: socket.socket, settings: Settings) -> str:
    host, port = bound.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
