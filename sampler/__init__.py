"""Which sequence runs next and how; which tokens are accepted; which pages hold what; the loop."""

from sampler.border.engine_config import EngineConfig
from sampler.border.engine_metrics import EngineMetrics
from sampler.border.errors import EngineStopped, Overloaded, PromptTooLong, RequestError
from sampler.border.messages import ModelInfo
from sampler.border.request import (
    DecodingMode,
    DecodingParams,
    Delta,
    EvoParams,
    FinishReason,
    Frame,
    FramePosition,
    FrameState,
    GrammarKind,
    GrammarSpec,
    Request,
    RequestStats,
    SamplingParams,
    TokenKind,
    TokenLogprob,
    TokenTrace,
)
from sampler.engine_client import EngineClient

__all__ = [
    "DecodingMode",
    "DecodingParams",
    "Delta",
    "EngineClient",
    "EngineConfig",
    "EngineMetrics",
    "EngineStopped",
    "EvoParams",
    "FinishReason",
    "Frame",
    "FramePosition",
    "FrameState",
    "GrammarKind",
    "GrammarSpec",
    "ModelInfo",
    "Overloaded",
    "PromptTooLong",
    "Request",
    "RequestError",
    "RequestStats",
    "SamplingParams",
    "TokenKind",
    "TokenLogprob",
    "TokenTrace",
]
