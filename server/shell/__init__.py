"""The command line and its commands.

Used by others: `main`.
"""
