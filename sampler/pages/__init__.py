"""Page numbers: who holds which page, and which pages hold the beginning of a prompt.

Used by others: `PagePool`, `PrefixCache`.
"""
