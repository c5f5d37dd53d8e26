"""Span rules: what a sequence wants to run next, and the plan that holds it.

Used by others: `CanvasSpans`, `LatentSpans`, `Plan`, `RankSpans`, `SpanRule`, `WholeSpans`,
`WindowSpans`, `draw_schedule`, `span_rule_for`.
"""
