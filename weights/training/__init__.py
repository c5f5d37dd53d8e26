"""Recipes that train the example checkpoints and the default model's canvas adapter.

Used by others: `RECIPES`.
"""
