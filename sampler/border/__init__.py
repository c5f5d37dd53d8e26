"""What crosses between the API process and the engine: requests, deltas, messages, errors.

Used by others: `Cancel`, `DecodingMode`, `DecodingParams`, `Delta`, `EngineConfig`,
`EngineMetrics`, `EngineStopped`, `EvoParams`, `FRAME_HEADER_BYTES`, `Failed`, `FinishReason`,
`Frame`, `FramePosition`, `FrameState`, `FromEngine`, `GrammarKind`, `GrammarSpec`, `Histogram`,
`ModelInfo`, `Overloaded`, `PromptTooLong`, `Ready`, `Request`, `RequestError`, `RequestStats`,
`SamplingParams`, `Shutdown`, `Start`, `StepOutput`, `Submit`, `ToEngine`, `TokenBatch`,
`TokenKind`, `TokenLogprob`, `TokenTrace`, `decode_from_engine`, `decode_to_engine`,
`encode_frame`, `has_penalties`, `is_special`.
"""
