"""From scores to tokens, and from tokens to the deltas that clients get.

Used by others: `Advance`, `Information`.
"""
