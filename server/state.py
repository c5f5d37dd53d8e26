"""`ServerState`: what the routes share, made by `create_app` and given to them as a dependency."""

import hashlib
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from fastapi import Request

from sampler import EngineStopped, Overloaded
from server.engine import Engine
from server.error_responses import ApiError, ErrorAnswer, unavailable
from server.settings import Settings
from server.translate.model_text import ModelTools
from server.watch.metrics import ServerMetrics
from server.watch.tracing import NoTracing, Tracing
from weights.families import FamilyRule
from weights.text.chat_template import ChatTemplate
from weights.text.tokenizer import Tokenizer

# A step on a slow CPU with a full row budget takes seconds, never so long; an idle engine
# reports every second.
STUCK_AFTER_S = 60.0


@dataclass(slots=True)
class ServerState:
    """One running server.

    model_names:  names that clients may use; the first stands in answers
    is_draining:  the process was told to stop; `/ready` says so
    is_refusing:  new requests are no longer taken
    """

    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    settings: Settings
    metrics: ServerMetrics
    model_names: tuple[str, ...]
    rule: FamilyRule | None = None
    tracing: Tracing = field(default_factory=NoTracing)
    created_s: int = field(default_factory=lambda: int(time.time()))
    is_draining: bool = False
    is_refusing: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.engine.is_ready and not self.is_draining

    @property
    def is_stuck(self) -> bool:
        """Whether requests are open but the engine has said nothing for a long time."""
        if self.engine.num_open == 0:
            return False
        return time.monotonic() - self.engine.last_heard_s > STUCK_AFTER_S

    @property
    def system_fingerprint(self) -> str:
        """Changes when model, version or number format change, and answers may with them."""
        info, settings = self.engine.info, self.settings
        facts = (info.name, package_version(), settings.dtype, settings.quantization)
        return "fp_" + hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

    @property
    def tools(self) -> ModelTools:
        """What translating a body needs."""
        return ModelTools(self.engine.info, self.tokenizer, self.chat_template, self.rule)

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
            raise Overloaded(num_waiting=num_waiting, retry_after_s=1.0)


def server_state(request: Request) -> ServerState:
    """The dependency that routes take."""
    state: ServerState = request.app.state.server
    return state


def package_version() -> str:
    """The version of the installed package."""
    try:
        return version("estuary-server")
    except PackageNotFoundError:
        return "0+unknown"
