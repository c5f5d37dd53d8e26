"""Span rules: what a sequence wants to run next, and what follows from its scores.

Used by others: `Fill`, `HostScores`, `Plan`, `Round`, `RowKind`, `ScoredRows`, `SpanRule`,
`StepLimits`, `StepOutcome`, `StepScores`, `WarmUpShape`, `draw_schedule`, `span_rule_for`.
"""
