"""What the server asks of the engine and of the model's text tools.

`sampler.engine_client.EngineClient` and the types of `weights` have these shapes; tests bring
an engine that says what the test tells it.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from sampler.engine_metrics import EngineMetrics
from sampler.request import Delta, Request


class ModelInfo(Protocol):
    """What the engine says of its model once it is ready.

    modes:          what it can decode by, of ar, diffusion and speculative
    context_length: prompt and answer together, in tokens
    can_infill:     whether a suffix can follow the answer
    """

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def can_infill(self) -> bool: ...


class Engine(Protocol):
    """Runs requests; lives in a process of its own behind this client."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def metrics(self) -> EngineMetrics: ...
    @property
    def info(self) -> ModelInfo: ...

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
        """Give up a request; one that has ended or was never taken is left alone."""
        ...


class Detokenizer(Protocol):
    """Token ids to text as they arrive, never splitting a character."""

    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer: ...
