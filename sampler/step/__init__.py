"""A plan as tensors, the network run over it, and its scores back on the host.

Used by others: `GraphRunner`, `HostScores`, `LatentStore`, `RowKind`, `Runner`, `ScoredRows`,
`StepBuffer`, `StepInput`, `StepRunner`, `Vocabulary`, `build_score_spec`, `build_step_input`,
`graph_runner`, `ratio_step`.
"""
