"""Rows that hold a latent and a progress instead of a token (Evo, our reading).

A latent is a point between a token's embedding and noise, z = (1 - t) e(x) + t noise; t is the
row's progress, rounded to a level. At the last level, t = 1, the latent says nothing and the row
holds a learned input instead. Low-rank weights act on latent rows only: every other row computes
the same bits with and without them.
From: our reading of Evo (arXiv 2603.06617), whose abstract alone is public.

Shapes: L latent rows of the T rows of a step, d hidden width, d_z latent width, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weights.network.config import NetworkConfig
from weights.network.linear import Placement
from weights.network.tensor_reader import Parts

Rows = Tensor | slice
"""Some rows of a step: their indices [n] int64, or a run of rows that lie side by side."""


@dataclass(frozen=True, slots=True)
class LatentRows:
    """The latent rows of a step.

    rows:       [L] int64, which of the T rows they are
    scored:     [S] int64, which of the R scored rows are latent rows
    levels:     [L] int64, of t
    offsets:    [L] int64, how far the row stands from where its canvas begins
    vectors:    [L, d_z] float32, or None when every row is at t = 1
    run, scored_run: the same as rows and scored where those lie side by side and may be named by
                     the host (not in a captured graph), else None
    """

    rows: Tensor
    scored: Tensor
    levels: Tensor
    offsets: Tensor
    vectors: Tensor | None = None
    run: slice | None = None
    scored_run: slice | None = None


class LowRankRows(NamedTuple):
    """Low-rank weights beside a matrix, for some rows: y[rows] += up(down(x[rows])).

    down: [r, in], up: [out, r]
    """

    down: Tensor
    up: Tensor

    def add(self, y: Tensor, x: Tensor, rows: Rows) -> None:
        """Add to the product y [T, out] of x [T, in], in place."""
        shrunk = functional.linear(x[rows], self.down)
        if isinstance(rows, slice):
            y[rows].addmm_(shrunk, self.up.t())
        else:
            y.index_add_(0, rows, functional.linear(shrunk, self.up))


class LatentLayer(NamedTuple):
    """The low-rank weights of one layer; None where a matrix has none."""

    output: LowRankRows | None
    down: LowRankRows | None


@dataclass(frozen=True, slots=True)
class LatentInput:
    """How latents enter a network.

    projection:  [d, d_z]
    spread:      [levels + 1], what a projected latent is multiplied by at each level; 0 at t = 1
    time:        [levels + 1, d], added; at t = 1 it is the whole input
    offset:      [m, d], added by offset, the last row for all farther ones, or None
    embedding:   [V, d_z], e of every token
    noise_scale: standard deviation of the noise in every direction
    """

    projection: Tensor
    spread: Tensor
    time: Tensor
    offset: Tensor | None
    embedding: Tensor
    noise_scale: float

    @property
    def size(self) -> int:
        """Width of a latent, d_z."""
        return self.embedding.shape[1]

    def embed(self, latents: LatentRows) -> Tensor:
        """What the rows hold [L, d]."""
        x = self.time[latents.levels]
        if latents.vectors is not None:
            projected = functional.linear(latents.vectors.to(x.dtype), self.projection)
            x = x + projected * self.spread[latents.levels].unsqueeze(-1)
        if self.offset is not None:
            x = x + self.offset[latents.offsets.clamp(max=self.offset.shape[0] - 1)]
        return x


def build_latent_input(
    config: NetworkConfig, parts: Parts, placement: Placement, *, token_table: Tensor
) -> LatentInput | None:
    """Take the input's tensors; None for a network without latents.

    Raises CheckpointError when a tensor is missing or misshapen.
    """
    latent = config.latent
    if latent is None:
        return None
    hidden, levels = config.hidden_size, latent.num_levels
    projection = parts.take("latent.input.weight", (hidden, latent.size)).float()
    if latent.embedding_scale is None:
        embedding = placement.tensor(
            parts.take("latent.embedding.weight", (config.vocab_size, latent.size))
        )
        noise_scale = 1.0
    else:
        # Latents are kept in the units of the token table, so that it need not be copied.
        embedding, noise_scale = token_table, latent.embedding_scale
        projection = projection / noise_scale
    offset = None
    if latent.max_offset:
        offset = placement.tensor(parts.take("latent.offset.weight", (latent.max_offset, hidden)))
    t = torch.arange(levels + 1) / levels
    spread = ((1 - t) ** 2 + t**2).rsqrt()
    spread[-1] = 0
    return LatentInput(
        projection=placement.tensor(projection),
        spread=placement.tensor(spread),
        time=placement.tensor(parts.take("latent.time.weight", (levels + 1, hidden))),
        offset=offset,
        embedding=embedding,
        noise_scale=noise_scale,
    )


def build_latent_layer(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> LatentLayer | None:
    """Take a layer's low-rank weights; None where latent rows have none."""
    latent = config.latent
    if latent is None or latent.rank == 0:
        return None
    sizes = {"output": config.attended_size, "down": config.feed_forward_size}

    def take(matrix: str) -> LowRankRows | None:
        if matrix not in latent.matrices:
            return None
        down = parts.take(f"latent.{matrix}.down.weight", (latent.rank, sizes[matrix]), layer)
        up = parts.take(f"latent.{matrix}.up.weight", (config.hidden_size, latent.rank), layer)
        return LowRankRows(placement.tensor(down), placement.tensor(up))

    return LatentLayer(take("output"), take("down"))


_LAYER = "latent.layers.{layer}."
LATENT_TABLE: dict[str, str] = {
    "latent.embedding.weight": "latent.embedding.weight",
    "latent.input.weight": "latent.input.weight",
    "latent.time.weight": "latent.time.weight",
    "latent.offset.weight": "latent.offset.weight",
    "latent.output.down.weight": _LAYER + "output.down.weight",
    "latent.output.up.weight": _LAYER + "output.up.weight",
    "latent.down.down.weight": _LAYER + "down.down.weight",
    "latent.down.up.weight": _LAYER + "down.up.weight",
}
