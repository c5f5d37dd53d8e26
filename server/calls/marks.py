"""Marks in a text that comes in pieces."""


def overlap(text: str, mark: str) -> int:
    """Characters at the end of the text that could be the beginning of the mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
