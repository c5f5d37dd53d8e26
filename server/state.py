"""`ServerState`: what the routes share, made by `create_app` and given to them as a dependency."""

import hashlib
import time
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from fastapi import Request

from sampler import EngineStopped, Overloaded
from server.engine import Engine
from server.error_responses import ApiError, ErrorAnswer, unavailable
from server.settings import Settings
from server.translate.model_text import ModelText, ServedModel
from server.version import package_version
from server.watch.metrics import ServerMetrics
from server.watch.tracing import NoTracing, Tracing


@dataclass(slots=True)
class ServerState:
    """One running server.

    model_names:  names that clients may use; the first stands in answers
    is_draining:  the process was told to stop; `/ready` says so
    is_refusing:  new requests are no longer taken
    large_bodies: lets one large body be worked on at a time, so that the event loop has its turn
    """

    engine: Engine
    text: ModelText
    settings: Settings
    metrics: ServerMetrics
    model_names: tuple[str, ...]
    tracing: Tracing = field(default_factory=NoTracing)
    created_s: int = field(default_factory=lambda: int(time.time()))
    is_draining: bool = False
    is_refusing: bool = False
    large_bodies: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.engine.is_ready and not self.is_draining and not self.is_stuck

    @property
    def is_stuck(self) -> bool:
        """Whether requests are open but the engine has said nothing for a long time."""
        if self.engine.num_open == 0:
            return False
        return time.monotonic() - self.engine.last_heard_s > self.settings.stuck_timeout

    @property
    def system_fingerprint(self) -> str:
        """Changes when model, version or number format change, and answers may with them."""
        info, settings = self.engine.info, self.settings
        formats = (settings.dtype, settings.quantization, info.linear_format)
        facts = (info.name, package_version(), *formats)
        return "fp_" + hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

    @property
    def model(self) -> ServedModel:
        """What translating a body needs."""
        return ServedModel(self.text, self.engine.info)

    def check_model(self, name: str | None) -> str:
        """The name an answer carries; raises ApiError for a model that is not served."""
        if name is None:
            return self.model_names[0]
        if name not in self.model_names:
            raise ApiError(
                ErrorAnswer(
                    404,
                    "invalid_request_error",
                    "model_not_found",
                    f"no such model; this server has {', '.join(self.model_names)}",
                    param="model",
                )
            )
        return name

    def check_admission(self) -> None:
        """Raise when no request can be taken now, before any work is spent on one."""
        if self.is_refusing:
            raise unavailable("draining", "the server is shutting down")
        if not self.engine.is_alive:
            raise EngineStopped("the engine is not running")
        if not self.engine.is_ready:
            raise unavailable("not_ready", "the server is not ready yet")
        capacity = self.settings.max_num_seqs + self.settings.max_queued_requests
        if self.engine.num_open >= capacity:
            num_waiting = self.engine.num_open - self.settings.max_num_seqs
            raise Overloaded(num_waiting=num_waiting, retry_after_s=self.engine.retry_after_s)


def server_state(request: Request) -> ServerState:
    """The dependency that routes take."""
    state: ServerState = request.app.state.server
    return state
