"""Scores of rows: the output head and all that decoding asks of its logits, in one operation.

Used by others: `AllowedTokens`, `RowScores`, `ScorePartials`, `ScoreSpec`, `SparseAdjust`,
`finish_scores`, `join_partials`, `ratio_rows`, `score_partials`, `score_rows`.
"""
