"""Decoding with the training network: every step one dense forward, nothing cached.

What the engine does with pages, seats and batches, written to be obviously right: tests compare
the two, and recipes measure with it. A text's answer is one canvas. What is filled at its left
end is read as text from the next step on, the rest of it as clean rows of the canvas.

Shapes: B texts, P symbols of a prompt, A of an answer, V vocabulary, d_z latent width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weights.training.evo_network import Canvases, EvoNetwork

# Less than this share, or of a level, is rounding.
_NO_SHARE = 1e-6

Calibration = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Path:
    """How the latents of a canvas mature; shares of information, see `docs/decoding.md`.

    delta_min, delta_max: the share falls by at least and at most so much in a step
    finalize:  ready below this normalised entropy once the share is at most t_plan
    jump:      ready below it at any share
    patience:  steps without any position ready, after which one is drawn: the most certain where
               delta_min is 0, else the first
    """

    delta_min: float
    delta_max: float
    finalize: float = 0.0
    jump: float = 0.0
    t_plan: float = 0.6
    patience: int = 64


@dataclass(frozen=True, slots=True)
class Decoded:
    """Answers [B, A] int64, and the forwards that each took [B] int64."""

    answers: Tensor
    forwards: Tensor


@torch.no_grad()
def decode_ar(network: EvoNetwork, prompts: Tensor, length: int) -> Decoded:
    """The most likely next symbol, one by one, behind prompts [B, P]."""
    tokens = prompts
    for _ in range(length):
        settled, _ = network(tokens)
        tokens = torch.cat((tokens, network.head(settled[:, -1:]).argmax(dim=-1)), dim=1)
    forwards = torch.full((prompts.shape[0],), length)
    return Decoded(tokens[:, prompts.shape[1] :], forwards)


@torch.no_grad()
def decode_canvas(
    network: EvoNetwork,
    prompts: Tensor,
    length: int,
    path: Path,
    calibration: Calibration,
    *,
    temperature: float = 0.0,
    generator: torch.Generator,
) -> Decoded:
    """Move a canvas over all of every answer along a path, behind prompts [B, P]."""
    count, size = prompts.shape[0], network.shape.latent_size
    levels = network.shape.num_levels
    embedding = network.unit_embedding()
    answers = torch.zeros(count, length, dtype=torch.int64)
    is_open = torch.ones(count, length, dtype=torch.bool)
    t = torch.ones(count, length)
    z = temperature**0.5 * torch.randn(count, length, size, generator=generator)
    waited, forwards = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    while is_open.any():
        forwards += is_open.any(dim=1)
        held = torch.where(is_open.unsqueeze(-1), z, embedding[answers])
        logits = _say(network, prompts, answers, is_open, held, t)
        drawn = _draw(logits, temperature, generator)
        uncertain = _uncertainty(logits)
        moved = _next_progress(t, uncertain, path, calibration, levels)
        is_low = torch.from_numpy(_shares(moved.numpy(), calibration)) <= path.t_plan
        ready = (uncertain < path.jump) | ((uncertain < path.finalize) & is_low) | (moved <= 0)
        ready &= is_open
        waited = torch.where(ready.any(dim=1) | ~is_open.any(dim=1), 0, waited + 1)
        forced = waited >= path.patience
        waited[forced] = 0
        precedence = uncertain if path.delta_min == 0 else torch.zeros_like(uncertain)
        first = precedence.masked_fill(~is_open, 2.0).argmin(dim=1)
        ready[forced, first[forced]] = True
        answers = torch.where(ready, drawn, answers)
        expected = _expected(logits, temperature) @ embedding
        ratio = (moved / t.clamp(min=1 / levels)).unsqueeze(-1)
        z = expected + ratio * (z - expected)
        is_open &= ~ready
        t = torch.where(is_open, moved, 0.0)
    return Decoded(answers, forwards)


def _say(
    network: EvoNetwork, prompts: Tensor, answers: Tensor, is_open: Tensor, z: Tensor, t: Tensor
) -> Tensor:
    """Logits [B, A, V] of all rows of the answers."""
    length, prompt = answers.shape[1], prompts.shape[1]
    offset = torch.arange(length)
    begins = is_open.int().argmax(dim=1, keepdim=True)
    levels = (t * network.shape.num_levels).round().long() * is_open
    canvases = Canvases(
        positions=(prompt + offset).expand_as(answers),
        starts=(prompt + begins).expand_as(answers),
        groups=(offset < begins).long(),
        levels=levels,
    )
    likelihood = network.likelihood(z, levels)
    latents = network.embed_latents(likelihood, levels)
    _, drafted = network(torch.cat((prompts, answers), dim=1), latents, canvases)
    return network.head(drafted).float() + likelihood


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    shares = (logits / temperature).softmax(dim=-1).flatten(0, 1)
    return torch.multinomial(shares, 1, generator=generator).view(logits.shape[:2])


def _expected(logits: Tensor, temperature: float) -> Tensor:
    """The distribution that is drawn from [B, A, V]."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    return (logits / temperature).softmax(dim=-1)


def _uncertainty(logits: Tensor) -> Tensor:
    """Entropy / log V [B, A]."""
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1) / math.log(logits.shape[-1])


def _shares(t: np.ndarray, calibration: Calibration) -> np.ndarray:
    """The share of the entropy at t = 1 that latents at t still have."""
    at, mean = np.array(calibration).T
    return np.asarray(np.interp(t, at, mean / mean[-1]))


def _next_progress(
    t: Tensor, uncertain: Tensor, path: Path, calibration: Calibration, levels: int
) -> Tensor:
    """The t after a step [B, A], a multiple of 1 / levels; lower than before where it must fall."""
    at, mean = np.array(calibration).T
    last = mean[-1]
    share = _shares(t.double().numpy(), calibration)
    wanted = np.clip(uncertain.double().numpy() / last, 0, 1)
    share = np.minimum(np.maximum(wanted, share - path.delta_max), share - path.delta_min)
    rises = np.concatenate(([True], np.diff(mean) > 0))
    moved = np.interp(share, mean[rises] / last, at[rises])
    moved = np.where(share >= 1, 1.0, np.where(share < _NO_SHARE, 0.0, moved))
    moved = np.floor(moved * levels + _NO_SHARE) / levels
    lower = t.double().numpy() - (1 / levels if path.delta_min > 0 else 0.0)
    return torch.from_numpy(np.maximum(np.minimum(moved, lower), 0.0)).float()
