"""`EngineClient`: the API process's hold on the engine process: submit, cancel, stream.

It lives on one asyncio event loop and never blocks it. Every stream ends exactly once: with a
delta that has `finish`, or with `EngineStopped` when the engine is gone.
"""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

from sampler.border.engine_config import EngineConfig
from sampler.border.engine_metrics import EngineMetrics
from sampler.border.errors import EngineStopped, Overloaded
from sampler.border.messages import (
    FRAME_HEADER_BYTES,
    Cancel,
    Failed,
    ModelInfo,
    Ready,
    Shutdown,
    Start,
    StepOutput,
    Submit,
    ToEngine,
    decode_from_engine,
    encode_frame,
)
from sampler.border.request import Delta, Request

log = logging.getLogger(__name__)

_MAX_FRAME_BYTES = 1 << 30
_STOP_TIMEOUT_S = 5.0
# What a client is told to wait when the queue is full and nothing has finished yet.
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0


class EngineClient:
    """Start, feed and stop one engine process.

    on_stopped: called once when the engine is gone without having been told to stop
    log_level, log_format: of the engine process; console or json
    module:     what is run as the engine process
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_stopped: Callable[[], None] | None = None,
        log_level: str = "INFO",
        log_format: str = "console",
        module: str = "sampler.engine_process",
    ) -> None:
        self.config = config
        self.metrics = EngineMetrics()
        self.last_heard_s = 0.0
        self._on_stopped = on_stopped
        self._log_options = ["--log-level", log_level, "--log-format", log_format]
        self._module = module
        self._info: ModelInfo | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._streams: dict[str, asyncio.Queue[Delta | EngineStopped]] = {}
        self._failure: str | None = None
        self._stopping = False
        self._finish_times_s: list[float] = []

    @property
    def info(self) -> ModelInfo:
        """The loaded model; raises EngineStopped before `start` has returned."""
        if self._info is None:
            raise EngineStopped("the engine has not started")
        return self._info

    @property
    def is_alive(self) -> bool:
        """Whether the engine process runs and its channel is open."""
        return self._reading is not None and not self._reading.done()

    @property
    def is_ready(self) -> bool:
        """Whether requests are served now."""
        return self.is_alive and self._info is not None and not self._stopping

    @property
    def process_id(self) -> int:
        """Of the engine process; raises EngineStopped before `start`."""
        if self._process is None:
            raise EngineStopped("the engine has not started")
        return self._process.pid

    @property
    def num_open(self) -> int:
        """Requests whose stream has not ended."""
        return len(self._streams)

    async def start(self) -> None:
        """Start the process and wait until its model is warm.

        Raises EngineStopped with one sentence when it cannot start.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", self._module),
                    *("--fd", str(theirs.fileno()), *self._log_options),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_MAX_FRAME_BYTES)
        self._stopping, self._failure, self._info = False, None, None
        self._send(Start(config=self.config))
        first = await self._read_message(reader)
        if not isinstance(first, Ready):
            reason = first.error if isinstance(first, Failed) else "it ended while starting"
            self._writer.close()
            raise EngineStopped(f"the engine cannot start: {reason}")
        self._info = first.info
        self._reading = asyncio.create_task(self._read(reader))

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Wait up to `drain_s` for open requests, then end the process and what is left."""
        deadline_s = asyncio.get_running_loop().time() + drain_s
        while self._streams and self.is_alive and _now_s() < deadline_s:
            await asyncio.sleep(0.02)
        self._stopping = True
        if self._writer is not None and not self._writer.is_closing():
            self._send(Shutdown())
            self._writer.close()
        self._end_streams("the server is shutting down")
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=_STOP_TIMEOUT_S)
        if self._process is not None:
            await asyncio.to_thread(_end_process, self._process)

    def submit(self, request: Request) -> AsyncIterator[Delta]:
        """Hand a request over; what comes back are its deltas, the last one with `finish`.

        Raises Overloaded when the queue is full, EngineStopped when the engine is gone, and
        ValueError when the id is in use.
        """
        if not self.is_ready:
            raise EngineStopped(self._failure or "the engine is not running")
        if request.id in self._streams:
            raise ValueError(f"a request with the id {request.id!r} is open already")
        capacity = self.config.max_sequences + self.config.max_waiting
        if len(self._streams) >= capacity:
            num_waiting = len(self._streams) - self.config.max_sequences
            raise Overloaded(num_waiting=num_waiting, retry_after_s=self._retry_after_s())
        queue: asyncio.Queue[Delta | EngineStopped] = asyncio.Queue()
        self._streams[request.id] = queue
        self._send(Submit(request=request))
        return self._deltas(request.id, queue)

    def cancel(self, request_id: str) -> None:
        """Forget a request; nothing happens when it has ended."""
        if self._streams.pop(request_id, None) is not None and self.is_alive:
            self._send(Cancel(request_id=request_id))

    def end_early(self, request_id: str) -> None:
        """Stop a request whose answer is long enough; its stream ends with what it cost.

        The last delta has `finish` ABORT and may come after deltas that were on their way.
        """
        if request_id in self._streams and self.is_alive:
            self._send(Cancel(request_id=request_id, reports=True))

    async def _deltas(
        self, request_id: str, queue: asyncio.Queue[Delta | EngineStopped]
    ) -> AsyncIterator[Delta]:
        try:
            while True:
                item = await queue.get()
                if isinstance(item, EngineStopped):
                    raise item
                yield item
                if item.finish is not None:
                    return
        finally:
            self.cancel(request_id)

    def _send(self, message: ToEngine) -> None:
        assert self._writer is not None, "start opens the channel"
        self._writer.write(encode_frame(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand out what the engine says, until it says no more."""
        while True:
            message = await self._read_message(reader)
            if message is None:
                break
            if isinstance(message, StepOutput):
                self._hand_out(message)
            elif isinstance(message, Failed):
                self._failure = message.error
        self._end_streams(self._failure or "the engine process ended")
        if not self._stopping:
            log.error("the engine is gone: %s", self._failure or "its process ended")
            if self._on_stopped is not None:
                self._on_stopped()

    async def _read_message(
        self, reader: asyncio.StreamReader
    ) -> Ready | StepOutput | Failed | None:
        try:
            header = await reader.readexactly(FRAME_HEADER_BYTES)
            content = await reader.readexactly(int.from_bytes(header, "big"))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return decode_from_engine(content)

    def _hand_out(self, output: StepOutput) -> None:
        self.metrics = output.metrics
        self.last_heard_s = _now_s()
        tokens = output.tokens
        for request_id, token_id in zip(tokens.request_ids, tokens.token_ids, strict=True):
            queue = self._streams.get(request_id)
            if queue is not None:
                queue.put_nowait(Delta(request_id=request_id, token_ids=(token_id,)))
        for delta in output.deltas:
            # A finished stream needs no cancel: the engine has let go of it already.
            ended = delta.finish is not None
            queue = (
                self._streams.pop(delta.request_id, None)
                if ended
                else self._streams.get(delta.request_id)
            )
            if ended:
                self._finish_times_s = [*self._finish_times_s[-31:], _now_s()]
            if queue is not None:
                queue.put_nowait(delta)

    def _end_streams(self, reason: str) -> None:
        streams, self._streams = self._streams, {}
        for queue in streams.values():
            queue.put_nowait(EngineStopped(reason))

    def _retry_after_s(self) -> float:
        """The mean time between the last finished requests: when a place is likely to be free."""
        times = self._finish_times_s
        if len(times) < 2:
            return _FIRST_RETRY_S
        return min(max((times[-1] - times[0]) / (len(times) - 1), 0.1), _LONGEST_RETRY_S)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
