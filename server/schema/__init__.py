"""Bodies of requests and answers, as clients see them.

Used by others: every public name.
"""
