"""Evo from scratch (our reading): the hybrid objective, its figures, and its checkpoint.

Token rows predict the next token. Latent rows predict their own, from canvases in which t is
drawn by a pattern of its own for each text:

    1/4  canvases of one row at t = 1: autoregressive decoding, asked of a latent row
    1/4  one t for the whole canvas: diffusion
    1/2  t grows from left to right, with jitter: what decoding meets, a front of certainty; a
         fifth of these have t of 0 and 1 only, in any order: masked diffusion

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
from weights.training.evo_network import Canvases, EvoNetwork, EvoShape
from weights.training.layers import mean_where, token_nll
from weights.training.loop import Schedule, Trainable
from weights.training.text import END_OF_TEXT_ID

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
_JITTER = 0.1
# Widths at which the bound of masked diffusion inside a canvas is reported.
_BOUND_WIDTHS = (4, 8, 16, 32)
_CALIBRATION_POINTS = 16


class EvoModel(Trainable):
    """The network under its objective."""

    def __init__(self, shape: EvoShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = EvoNetwork(shape, generator=generator)

    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`next`: of token rows; `latent`: of latent rows; in nats per token."""
        network = self.network
        canvases = draw_canvases(tokens, network.shape.num_levels, generator)
        latents = network.embed_latents(tokens, canvases.levels, generator)
        settled, drafted = network(tokens, latents, canvases.starts)
        nll = token_nll(network.head(drafted), tokens)
        return {
            "next": token_nll(network.head(settled[:, :-1]), tokens[:, 1:]).mean(),
            "latent": mean_where(nll, canvases.levels > 0),
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
        named = {name: value.detach() for name, value in self.network.named_parameters()}
        named["latent.embedding.weight"] = self.network.unit_embedding().detach()
        return named

    def config(self, figures: dict[str, Json]) -> dict[str, Json]:
        """config.json, with the calibration that was measured."""
        shape = self.network.shape
        return {
            "architectures": ["EvoForCausalLM"],
            "model_type": "evo",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.feed_forward_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": shape.max_positions,
            "tie_word_embeddings": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": "float16",
            "latent": {
                "size": shape.latent_size,
                "num_levels": shape.num_levels,
                "speaks_of": "own",
                "width": SERVED_WIDTH,
                "calibration": figures["calibration"],
                "decoding": _DECODING,
            },
        }


def draw_canvases(tokens: Tensor, num_levels: int, generator: torch.Generator) -> Canvases:
    """Tile each text of tokens [B, L] with canvases of one width; draw every row's level."""
    device = tokens.device
    count, length = tokens.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    pattern = uniform(count, 1)
    widths = torch.tensor(CANVAS_WIDTHS, device=device)
    width = widths[(uniform(count, 1) * len(CANVAS_WIDTHS)).long()]
    width = torch.where(pattern < 0.25, 1, width)
    # Canvases begin anywhere, so that no position of a text is always the first of one.
    shifted = torch.arange(length, device=device) + (uniform(count, 1) * width).long()
    canvas, offset = shifted // width, shifted % width

    def by_canvas() -> Tensor:
        return uniform(count, length + 1).gather(1, canvas)

    # More than 1 is 1: a canvas at its beginning is met often.
    diagonal = 1.2 * by_canvas()
    jitter = _JITTER * torch.randn(offset.shape, generator=generator, device=device)
    front = 1.5 * by_canvas() - 0.5 + 2 * by_canvas() * (offset + 0.5) / width + jitter
    masked = (uniform(count, length) < by_canvas()).float()
    t = torch.where(pattern < 0.5, diagonal, torch.where(pattern < 0.9, front, masked))
    t = torch.where(pattern < 0.25, 1.0, t.clamp(0, 1))
    return Canvases(starts=_starts(offset), levels=(t * num_levels).round().long())


def _starts(offset: Tensor) -> Tensor:
    return torch.arange(offset.shape[1], device=offset.device) - offset


@dataclass(frozen=True, slots=True)
class _Scored:
    nll: Tensor
    entropy: Tensor


@torch.no_grad()
def _score_canvases(
    network: EvoNetwork, tokens: Tensor, canvases: Canvases, generator: torch.Generator
) -> _Scored:
    """NLL and entropy of every latent row, both [B, L] float32 in nats."""
    latents = network.embed_latents(tokens, canvases.levels, generator)
    _, drafted = network(tokens, latents, canvases.starts)
    log_probs = network.head(drafted).float().log_softmax(dim=-1)
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
    scored = _score_canvases(network, tokens, Canvases(_starts(offset), levels), generator)
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
        canvases = Canvases(_starts(offset), torch.full_like(tokens, level))
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
