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

from kernels import Int8Weight
from weights.errors import CheckpointError
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
    of_scored:  [S] int64, which of the L rows the scored ones are; None where scores get no
                output prior
    run, scored_run: the same as rows and scored where those lie side by side and may be named by
                     the host (not in a captured graph), else None
    """

    rows: Tensor
    scored: Tensor
    levels: Tensor
    offsets: Tensor
    vectors: Tensor | None = None
    of_scored: Tensor | None = None
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
class Likelihood:
    """What a latent says of its token.

    z = (1 - t) e(x) + t n makes every token v as likely as

        c z.e(v) - s |e(v)|^2,   c = (1 - t) / t^2,   s = (1 - t)^2 / (2 t^2)

    in nats, up to a constant; nothing at t = 1.
    From: Gulrajani and Hashimoto 2023, Likelihood-based diffusion language models (Plaid), arXiv
    2305.18619; Discrete Stochastic Localization, arXiv 2602.16169 and 2605.12836: where all e(v)
    are equally long the best denoiser depends on c z alone, so that one network serves every path
    of t, masks as its end.

    linear, square: [levels + 1], c and s; at t = 0 those of half a level, where the likelihood of
                    a token's embedding has all of its mass on the token
    embedding:      [V, d_z], e of every token
    norms:          [V], |e(v)|^2
    """

    linear: Tensor
    square: Tensor
    embedding: Tensor
    norms: Tensor

    @property
    def head(self) -> Tensor:
        """Columns beside an output head [V, d_z + 1], for what `columns` says of rows."""
        return torch.cat((self.embedding, self.norms.unsqueeze(1)), dim=1)

    def columns(self, vectors: Tensor, levels: Tensor) -> Tensor:
        """What rows add to their hidden states [L, d_z + 1] so that scores get the likelihood."""
        scaled = self.linear[levels].unsqueeze(1) * vectors
        return torch.cat((scaled, -self.square[levels].unsqueeze(1)), dim=1)

    def shares(self, vectors: Tensor, levels: Tensor) -> Tensor:
        """The share of every token [L, V] float32; they sum to 1."""
        return functional.linear(self.columns(vectors, levels), self.head).softmax(dim=-1)


@dataclass(frozen=True, slots=True)
class MixedInput:
    """Rows that hold token embeddings in the shares of their latent's likelihood.

    At t = 0 that is exactly the embedding of the token: a clean token enters as itself.
    token_table: [V, d], embedding of every token
    """

    likelihood: Likelihood
    token_table: Tensor

    def embed(self, latents: LatentRows) -> Tensor:
        """What the rows hold [L, d], or [d] where all hold the same."""
        if latents.vectors is None:
            # Nothing is known of any row.
            return self.token_table.mean(dim=0)
        shares = self.likelihood.shares(latents.vectors.float(), latents.levels)
        return shares.to(self.token_table.dtype) @ self.token_table


@dataclass(frozen=True, slots=True)
class OutputPrior:
    """Scores that get the exact likelihood of a row's latent: [h, c z, -s] against [W, E, |e|^2].

    head: [V, d + d_z + 1 and zeros], the output head with the likelihood's columns
    """

    likelihood: Likelihood
    head: Tensor

    def widen(self, hidden: Tensor, latents: LatentRows) -> Tensor:
        """Hidden rows [R, d] as the head reads them; rows without a latent add nothing.

        Raises ValueError when latents do not say which of them are scored.
        """
        wide = hidden.new_zeros(hidden.shape[0], self.head.shape[1])
        first = hidden.shape[1]
        wide[:, :first] = hidden
        if latents.vectors is None:
            return wide
        own = latents.of_scored
        if own is None:
            raise ValueError("rows under an output prior must say which latents are scored")
        columns = self.likelihood.columns(latents.vectors[own].float(), latents.levels[own])
        wide[latents.scored, first : first + columns.shape[1]] = columns.to(wide.dtype)
        return wide


@dataclass(frozen=True, slots=True)
class LatentInput:
    """How latents enter a network, and its scores.

    projection:  [d, d_z], or None where rows are mixed
    spread:      [levels + 1], what a projected latent is multiplied by at each level; 0 at t = 1
    time:        [levels + 1, d], added; where a latent is projected it is all of the input at t = 1
    offset:      [m, d], added by offset, the last row for all farther ones, or None
    embedding:   [V, d_z], e of every token
    noise_scale: standard deviation of the noise in every direction
    mixed:       what enters instead of a projection, or None
    prior:       what scores get, or None
    """

    projection: Tensor | None
    spread: Tensor
    time: Tensor
    offset: Tensor | None
    embedding: Tensor
    noise_scale: float
    mixed: MixedInput | None = None
    prior: OutputPrior | None = None

    @property
    def size(self) -> int:
        """Width of a latent, d_z."""
        return self.embedding.shape[1]

    def embed(self, latents: LatentRows) -> Tensor:
        """What the rows hold [L, d]."""
        x = self.time[latents.levels]
        if self.mixed is not None:
            x = x + self.mixed.embed(latents)
        elif self.projection is not None and latents.vectors is not None:
            projected = functional.linear(latents.vectors.to(x.dtype), self.projection)
            x = x + projected * self.spread[latents.levels].unsqueeze(-1)
        if self.offset is not None:
            x = x + self.offset[latents.offsets.clamp(max=self.offset.shape[0] - 1)]
        return x


def build_latent_input(
    config: NetworkConfig,
    parts: Parts,
    placement: Placement,
    *,
    token_table: Tensor,
    head: Tensor | Int8Weight,
) -> LatentInput | None:
    """Take the input's tensors; None for a network without latents.

    head: [V, d], the output head
    Raises CheckpointError when a tensor is missing or misshapen.
    """
    latent = config.latent
    if latent is None:
        return None
    hidden, levels = config.hidden_size, latent.num_levels
    projection = None
    if not latent.enters_by_likelihood:
        projection = parts.take("latent.input.weight", (hidden, latent.size)).float()
    if latent.embedding_scale is None:
        embedding = placement.tensor(
            parts.take("latent.embedding.weight", (config.vocab_size, latent.size))
        )
        noise_scale = 1.0
    else:
        # Latents are kept in the units of the token table, so that it need not be copied.
        embedding, noise_scale = token_table, latent.embedding_scale
        projection = None if projection is None else projection / noise_scale
    offset = None
    if latent.max_offset:
        offset = placement.tensor(parts.take("latent.offset.weight", (latent.max_offset, hidden)))
    t = torch.arange(levels + 1) / levels
    spread = ((1 - t) ** 2 + t**2).rsqrt()
    spread[-1] = 0
    likelihood = prior = None
    if latent.enters_by_likelihood or latent.has_output_prior:
        likelihood = _likelihood(embedding.float(), noise_scale, levels)
    if likelihood is not None and latent.has_output_prior:
        prior = OutputPrior(likelihood, _prior_head(head, likelihood))
    mixed = None
    if likelihood is not None and latent.enters_by_likelihood:
        mixed = MixedInput(likelihood, token_table)
    return LatentInput(
        projection=None if projection is None else placement.tensor(projection),
        spread=placement.tensor(spread),
        time=placement.tensor(parts.take("latent.time.weight", (levels + 1, hidden))),
        offset=offset,
        embedding=embedding,
        noise_scale=noise_scale,
        mixed=mixed,
        prior=prior,
    )


def _likelihood(embedding: Tensor, noise_scale: float, levels: int) -> Likelihood:
    t = (torch.arange(levels + 1, device=embedding.device) / levels).clamp(min=0.5 / levels)
    variance = (t * noise_scale) ** 2
    return Likelihood(
        linear=(1 - t) / variance,
        square=(1 - t) ** 2 / (2 * variance),
        embedding=embedding,
        norms=embedding.square().sum(dim=1),
    )


# Rows of a head begin at multiples of so many numbers, as the kernels want them.
_HEAD_COLUMNS = 16


def _prior_head(head: Tensor | Int8Weight, likelihood: Likelihood) -> Tensor:
    """The head and the likelihood's columns side by side; raises CheckpointError for int8."""
    if not isinstance(head, Tensor):
        raise CheckpointError("a model with an output prior keeps its output head as floats")
    beside = likelihood.head.to(head.dtype)
    width = head.shape[1] + beside.shape[1]
    padding = head.new_zeros(head.shape[0], -width % _HEAD_COLUMNS)
    return torch.cat((head, beside, padding), dim=1)


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
