"""Evo from scratch (our reading): the hybrid objective, its figures, and its checkpoint.

Token rows predict the next token. Latent rows predict their own, from canvases of 1 to 32 rows
that tile each text, whose levels follow the patterns of `evo_levels`: masks in any order, one t,
levels of their own, a front. What is known of a level is measured while training, and levels are
drawn evenly in it.

    loss = mean NLL of next tokens + mean NLL of rows with t > 0

From: our reading of Evo (arXiv 2603.06617), of which only the abstract is public; cross entropy
instead of squared error as in Dieleman et al. 2022, Continuous diffusion for categorical data,
arXiv 2211.15089; noise levels per token as in Chen et al. 2024, Diffusion forcing, 2407.01392.

Shapes: B texts of L tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weights.config_fields import Json
from weights.training.evo_checkpoint import served_config, served_tensors
from weights.training.evo_levels import MeasuredEntropy, draw_levels
from weights.training.evo_network import Canvases, EvoNetwork, EvoShape
from weights.training.layers import mean_where, token_nll
from weights.training.loop import Schedule, Trainable

CANVAS_WIDTHS = (1, 2, 4, 8, 16, 32)
# How latents move where a request does not say: not at all, one position a step at least. Small
# networks leave the flow that they were trained on; what rows say at t = 1 is nearly as good as
# their AR rows.
_DECODING: dict[str, Json] = {
    "delta_min": 0.0,
    "delta_max": 0.0,
    "order": "left_to_right",
    "max_refine_steps": 1,
}
# Canvas that decoding uses when a request does not say; the calibration is measured on it.
SERVED_WIDTH = 16
# Widths at which the bound of masked diffusion inside a canvas is reported.
_BOUND_WIDTHS = (4, 8, 16, 32)
_CALIBRATION_POINTS = 16


class EvoModel(Trainable):
    """The network under its objective."""

    def __init__(self, shape: EvoShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = EvoNetwork(shape, generator=generator)
        self.entropy = MeasuredEntropy(shape.num_levels)

    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`next`: of token rows; `latent`: of latent rows; in nats per token."""
        network = self.network
        canvases = draw_canvases(tokens, self.entropy, generator)
        settled, says = say(network, tokens, canvases, generator)
        nll = token_nll(says, tokens)
        is_asked = canvases.levels > 0
        if torch.is_grad_enabled():
            self.entropy.follow(nll[is_asked], canvases.levels[is_asked])
        return {
            "next": token_nll(network.head(settled[:, :-1]), tokens[:, 1:]).mean(),
            "latent": mean_where(nll, is_asked),
        }

    def figures(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Json]:
        """Held-out figures of texts [B, L]; NLL in nats per token."""
        measured = entropy_by_progress(self.network, tokens, generator)
        return {
            "ar_nll": _next_nll(self.network, tokens),
            "row_at_t_1_nll": _bound(self.network, tokens, 1, generator),
            "canvas_bound_nll": {
                str(width): _bound(self.network, tokens, width, generator)
                for width in _BOUND_WIDTHS
            },
            "entropy_share_as_measured": [list(pair) for pair in measured],
            "calibration": calibration(measured),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by name."""
        return served_tensors(self.network)

    def config(self, figures: dict[str, Json]) -> dict[str, Json]:
        """config.json, with the calibration that was measured."""
        return served_config(
            self.network.shape,
            width=SERVED_WIDTH,
            calibration=figures["calibration"],
            decoding=_DECODING,
        )


def draw_canvases(tokens: Tensor, entropy: MeasuredEntropy, generator: torch.Generator) -> Canvases:
    """Tile each text of tokens [B, L] with canvases of one width; draw every row's level."""
    device = tokens.device
    count, length = tokens.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    widths = torch.tensor(CANVAS_WIDTHS, device=device)
    width = widths[(uniform(count, 1) * len(CANVAS_WIDTHS)).long()]
    # Canvases begin anywhere, so that no position of a text is always the first of one.
    shifted = torch.arange(length, device=device) + (uniform(count, 1) * width).long()
    offset = shifted % width
    return tiling(offset, draw_levels((offset + 0.5) / width, entropy, generator))


def tiling(offset: Tensor, levels: Tensor) -> Canvases:
    """Canvases that tile texts; offset [B, L], of every row in its canvas."""
    positions = torch.arange(offset.shape[1], device=offset.device).expand_as(offset)
    starts = positions - offset
    return Canvases(positions=positions, starts=starts, groups=starts, levels=levels)


def say(
    network: EvoNetwork, tokens: Tensor, canvases: Canvases, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hidden token rows [B, L, d], and logits [B, L, V] of latent rows under fresh noise."""
    z = network.hide(tokens, canvases.levels, generator)
    likelihood = network.likelihood(z, canvases.levels)
    latents = network.embed_latents(likelihood, canvases.levels)
    settled, drafted = network(tokens, latents, canvases)
    return settled, network.head(drafted).float() + likelihood


@dataclass(frozen=True, slots=True)
class _Scored:
    nll: Tensor
    entropy: Tensor


@torch.no_grad()
def _score_canvases(
    network: EvoNetwork, tokens: Tensor, canvases: Canvases, generator: torch.Generator
) -> _Scored:
    """NLL and entropy of every latent row, both [B, L] float32 in nats."""
    _, says = say(network, tokens, canvases, generator)
    log_probs = says.log_softmax(dim=-1)
    nll = -log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return _Scored(nll, -(log_probs.exp() * log_probs).sum(dim=-1))


@torch.no_grad()
def _next_nll(network: EvoNetwork, tokens: Tensor) -> float:
    settled, _ = network(tokens)
    return float(token_nll(network.head(settled[:, :-1]), tokens[:, 1:]).mean())


def _bound(network: EvoNetwork, tokens: Tensor, width: int, generator: torch.Generator) -> float:
    """Upper bound of the NLL per token when canvases of a width are decoded in any order.

    Of a canvas of w tokens, m chosen at random are unknown, m uniform in 1..w, and the others
    known: the mean NLL of the unknown ones has the bound as its expectation. Exact for width 1.
    From: Uria et al. 2014, A deep and tractable density estimator, arXiv 1310.1757.
    """
    count, length = tokens.shape
    length -= length % width
    tokens = tokens[:, :length]
    device = tokens.device
    shape = (count, length // width, width)
    num_unknown = torch.randint(1, width + 1, shape[:2], generator=generator, device=device)
    rank = torch.rand(shape, generator=generator, device=device).argsort(dim=-1).argsort(dim=-1)
    unknown = rank < num_unknown.unsqueeze(-1)
    offset = torch.arange(length, device=device).expand(count, length) % width
    levels = unknown.flatten(1).long() * network.shape.num_levels
    scored = _score_canvases(network, tokens, tiling(offset, levels), generator)
    by_canvas = (scored.nll.view(shape) * unknown).sum(dim=-1) / num_unknown
    return float(by_canvas.mean())


def calibration(measured: list[tuple[float, float]]) -> Json:
    """The measured pairs, made to rise with t by pooling neighbours that fall.

    At t = 0 the entropy is 0 whatever was measured: such a row holds its token, and is not
    trained to say it.
    """
    pooled = pool_rising([entropy if t > 0 else 0.0 for t, entropy in measured])
    return [[t, round(entropy, 6)] for (t, _), entropy in zip(measured, pooled, strict=True)]


def entropy_by_progress(
    network: EvoNetwork, tokens: Tensor, generator: torch.Generator
) -> list[tuple[float, float]]:
    """Pairs of t and mean entropy / log V of canvases all of whose rows are at t.

    Canvases are as wide as in serving; t ascends from 0 to 1.
    """
    shape = network.shape
    offset = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) % SERVED_WIDTH
    largest = torch.tensor(float(shape.vocab_size)).log()
    points = []
    for step in range(_CALIBRATION_POINTS + 1):
        level = step * shape.num_levels // _CALIBRATION_POINTS
        canvases = tiling(offset, torch.full_like(tokens, level))
        entropy = _score_canvases(network, tokens, canvases, generator).entropy
        points.append((level / shape.num_levels, float(entropy.mean() / largest)))
    return points


def pool_rising(values: list[float]) -> list[float]:
    """The nearest rising sequence, least squares: neighbours that fall take their mean.

    From: Ayer et al. 1955, pool adjacent violators.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean = (before * count + mean * size) / (count + size)
            size += count
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


@dataclass(frozen=True, slots=True)
class EvoScale:
    """Sizes and course of a training run."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_size: int
    latent_size: int
    schedule: Schedule

    def build(self, vocab_size: int, generator: torch.Generator) -> EvoModel:
        """A fresh model for a tokenizer's vocabulary."""
        return EvoModel(
            EvoShape(
                vocab_size=vocab_size,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                feed_forward_size=self.feed_forward_size,
                latent_size=self.latent_size,
                max_positions=self.schedule.length,
            ),
            generator=generator,
        )
