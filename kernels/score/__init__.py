"""Scores of rows: the output head and all that decoding asks of its logits, in one operation.

Used by others: `AllowedTokens`, `MAX_NUM_TOP`, `NO_LOGIT`, `NO_TOKEN`, `RowScores`,
`ScorePartials`, `ScoreSpec`, `SparseAdjust`, `empty_partials`, `finish_scores`,
`inverse_temperature`, `join_partials`, `join_scores`, `load_logits`, `log_exponential`,
`merge_partials`, `ratio_rows`, `row_of`, `score_partials`, `score_rows`, `spec_rows`.
"""
