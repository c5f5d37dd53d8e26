"""Quantised checkpoints as they were published: which layouts are known, and how each is read."""

from weights.quantized.store import QuantizedStore, open_quantized

__all__ = ["QuantizedStore", "open_quantized"]
