"""From the deltas of one answer to its text.

Used by others: `Answer`, `AnswerText`, `AnswerToken`, `Piece`, `TextRules`, `fold`.
"""
