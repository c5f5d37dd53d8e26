"""What travels between the API process and the engine process, encoded as msgpack.

One way go `Submit`, `Cancel` and `Shutdown` after a first `EngineConfig`; the other way one
`StepOutput` per step after a first `ModelInfo`, and `Failed` as the last word of an engine that
stops by itself.
"""

from dataclasses import dataclass, field

import msgspec

from sampler.border.engine_config import EngineConfig
from sampler.border.engine_metrics import EngineMetrics
from sampler.border.request import Delta, Request


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first message to an engine process."""

    config: EngineConfig


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Take a request in."""

    request: Request


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Forget a request, if it is still there; it gets no more deltas.

    reports: but one that says what it cost
    """

    request_id: str
    reports: bool = False


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Stop now; what still runs is forgotten."""


ToEngine = Start | Submit | Cancel | Shutdown


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the API process needs to know of the model that the engine has loaded.

    context_length: prompt and answer together at most, in tokens; what model, setting and
                    cache all allow
    modes:          decoding modes the model can do
    load_s:         seconds from the start of loading to ready
    can_constrain:  whether answers can be held to a grammar
    """

    name: str
    family: str
    modes: tuple[str, ...]
    context_length: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    mask_token_id: int | None
    block_length: int | None
    can_infill: bool
    load_s: float
    can_constrain: bool = False


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The model is loaded and warm."""

    info: ModelInfo


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """One final token each of many requests: the commonest delta, without its empty fields."""

    request_ids: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


class StepOutput(msgspec.Struct, tag=True, frozen=True):
    """What one step made final, and the metrics after it."""

    tokens: TokenBatch
    deltas: list[Delta]
    metrics: EngineMetrics


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start or go on."""

    error: str


FromEngine = Ready | StepOutput | Failed

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)

FRAME_HEADER_BYTES = 4


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """A message behind its length in bytes (4 bytes, big endian)."""
    content = _encoder.encode(message)
    return len(content).to_bytes(FRAME_HEADER_BYTES, "big") + content


def decode_to_engine(content: bytes) -> ToEngine:
    """A message to the engine; raises msgspec.DecodeError when it is none."""
    message: ToEngine = _to_engine.decode(content)
    return message


def decode_from_engine(content: bytes) -> FromEngine:
    """A message from the engine; raises msgspec.DecodeError when it is none."""
    message: FromEngine = _from_engine.decode(content)
    return message
