"""`Engine`: what the server asks of the engine.

`sampler.EngineClient` has this shape; tests bring an engine that says what they tell it.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from sampler import Delta, EngineMetrics, ModelInfo, Request


class Engine(Protocol):
    """Runs requests; lives in a process of its own behind this client."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine process runs."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether requests are served now."""
        ...

    @property
    def num_open(self) -> int:
        """Requests whose stream has not ended."""
        ...

    @property
    def last_heard_s(self) -> float:
        """When the engine last said anything, in monotonic seconds."""
        ...

    @property
    def retry_after_s(self) -> float:
        """In how many seconds a place is likely to be free, when there is none now."""
        ...

    @property
    def metrics(self) -> EngineMetrics:
        """The latest snapshot."""
        ...

    @property
    def info(self) -> ModelInfo:
        """The loaded model; raises EngineStopped before `start` has returned."""
        ...

    async def start(self) -> None:
        """Return when requests can be served."""
        ...

    async def stop(self, *, drain_s: float) -> None:
        """Finish what runs within `drain_s`, cancel the rest, end the process."""
        ...

    def submit(self, request: Request) -> AsyncIterator[Delta]:
        """The request's deltas; the last one has `finish`.

        Raises Overloaded at once when the queue is full. The iterator raises EngineStopped when
        the engine is gone.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Give up a request; it gets no more deltas. One that has ended is left alone."""
        ...

    def end_early(self, request_id: str) -> None:
        """End a request; its stream gets a last delta that says what it cost."""
        ...
