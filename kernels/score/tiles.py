"""Tile sizes of the kernels of `score_rows`. Not yet measured: each compiles without spills."""

from dataclasses import dataclass

import torch

# (vocabulary entries, depth, warps, stages) by rows of a tile, 16-bit heads.
_TUNED = {16: (128, 64, 8, 4), 32: (128, 64, 8, 4), 64: (64, 64, 8, 4), 128: (64, 64, 8, 4)}
_TUNED_HOPPER = _TUNED | {128: (128, 64, 8, 3)}
_TUNED_BLACKWELL = _TUNED | {128: (64, 32, 8, 4)}
_TUNED_FLOAT32 = {16: (64, 64, 8, 2)}
# The same with an expected embedding, by its width: its sums take registers of their own, so tiles
# have 16 rows, and fewer entries where it is wide. Wider ones are made in parts.
_EMBEDDING_ROWS = 16
_TUNED_EMBEDDING = {256: (128, 64, 8, 4), 1024: (32, 64, 8, 4)}
_TUNED_EMBEDDING_FLOAT32 = {128: (64, 32, 8, 2), 256: (32, 32, 8, 2), 512: (32, 32, 16, 2)}
# (adjusted tokens of a row computed at once, depth, warps) by width of the embedding.
_TUNED_SPARSE = {128: (16, 128, 4), 1024: (8, 128, 8)}


@dataclass(frozen=True, slots=True)
class TileSize:
    """Rows, vocabulary entries and depth of a tile, warps of a program, stages of its loads."""

    rows: int
    entries: int
    depth: int
    warps: int
    stages: int


def tile_sizes(dtype: torch.dtype, latent: int, capability: int) -> tuple[TileSize, ...]:
    """All tuned sizes, smallest first, for a head type, a latent width (0: none) and a chip."""
    if latent:
        widths = _TUNED_EMBEDDING_FLOAT32 if dtype == torch.float32 else _TUNED_EMBEDDING
        size = next(size for most, size in widths.items() if latent <= most)
        return (TileSize(_EMBEDDING_ROWS, *size),)
    table = _TUNED
    if capability >= 90:
        table = _TUNED_HOPPER if capability < 100 else _TUNED_BLACKWELL
    if dtype == torch.float32:
        table = _TUNED_FLOAT32
    return tuple(TileSize(rows, *rest) for rows, rest in table.items())


def most_latents(dtype: torch.dtype) -> int:
    """The widest embedding that one launch takes, for a head type."""
    return max(_TUNED_EMBEDDING_FLOAT32 if dtype == torch.float32 else _TUNED_EMBEDDING)


def sparse_size(latent: int) -> TileSize:
    """The size of a program of one row's adjusted tokens, for a latent width (0: none)."""
    entries, depth, warps = next(size for most, size in _TUNED_SPARSE.items() if latent <= most)
    return TileSize(1, entries, depth, warps, 1)
