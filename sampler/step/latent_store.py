"""`LatentStore`: the vectors of latents on the device, moved as the host decided.

Between steps the host knows every latent's t and how it is to move; the vectors and the expected
embeddings of the last step never leave the device.

Shapes: N seats, C columns of each, L latent rows of a step, d_z width of a latent.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import PURPOSE_LATENT, uniform_noise
from sampler.state.latent_table import LatentTable
from weights.network.latent import LatentInput


@dataclass(frozen=True, slots=True)
class LatentStep:
    """How the latents of a step's rows come about, on the device. All are [L] but the last two.

    slots:    int64, seat * C + column
    moves:    [L, 5] float32: keep, expected, start, slope, noise (`LatentTable`)
    remembers: bool
    progress: float32, t before the move
    tokens:   int64, the token of a ready position, whose latent is its embedding; -1 elsewhere
    seeds, positions, draws: int64, int64, int32: counters of the noise
    has_noise, has_memory: whether any move draws noise, or uses z_0 and u_0
    is_tempered: whether some latent's request has a temperature besides 0 and 1
    scored_rows: [E] int64, which of the R scored rows speak of an open position
    scored_slots: [E] int64, the slots of those positions
    """

    slots: Tensor
    moves: Tensor
    remembers: Tensor
    progress: Tensor
    tokens: Tensor
    seeds: Tensor
    positions: Tensor
    draws: Tensor
    has_noise: bool
    has_memory: bool
    is_tempered: bool
    scored_rows: Tensor
    scored_slots: Tensor


class LatentStore:
    """Vectors [N C, d_z] float32: latents, their expected embeddings, and Heun's memory."""

    def __init__(self, latent: LatentInput, *, num_seats: int) -> None:
        self._latent = latent
        device = latent.embedding.device
        shape = (num_seats * LatentTable.columns, latent.size)
        self.vectors = torch.zeros(shape, device=device)
        self._expected = torch.zeros(shape, device=device)
        # Heun is rare: its memory is made when the first request asks for it.
        self._start: Tensor | None = None
        self._slope: Tensor | None = None
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []

    def begin(self) -> None:
        """A step runs from here on; the one before stays."""
        self._before.clear()

    def take_back(self) -> None:
        """Undo what moved or was kept since `begin`, the latest change first."""
        while self._before:
            vectors, slots, before = self._before.pop()
            vectors[slots] = before

    def move(self, step: LatentStep) -> Tensor:
        """Make the moves; the latents of the rows [L, d_z]."""
        z, expected = self.vectors[step.slots], self._expected[step.slots]
        keep, to_expected, to_start, to_slope, to_noise = step.moves.unsqueeze(-1).unbind(1)
        moved = keep * z + to_expected * expected
        if step.has_memory:
            moved = self._with_memory(step, moved, z, expected, to_start, to_slope)
        if step.has_noise:
            moved = moved + to_noise * self._noise(step)
        known = step.tokens.clamp_min(0)
        moved = torch.where(
            step.tokens.unsqueeze(-1) < 0, moved, self._latent.embedding[known].float()
        )
        self._before.append((self.vectors, step.slots, z))
        self.vectors[step.slots] = moved
        return moved

    def keep_expected(self, step: LatentStep, expected: Tensor) -> None:
        """Keep what the scored rows [R, d_z] expect of the positions they speak of."""
        before = self._expected[step.scored_slots]
        self._before.append((self._expected, step.scored_slots, before))
        self._expected[step.scored_slots] = expected[step.scored_rows]

    def _with_memory(
        self,
        step: LatentStep,
        moved: Tensor,
        z: Tensor,
        expected: Tensor,
        to_start: Tensor,
        to_slope: Tensor,
    ) -> Tensor:
        if self._start is None or self._slope is None:
            self._start, self._slope = (
                torch.zeros_like(self.vectors),
                torch.zeros_like(self.vectors),
            )
        moved = moved + to_start * self._start[step.slots] + to_slope * self._slope[step.slots]
        velocity = (z - expected) / step.progress.clamp_min(1e-6).unsqueeze(-1)
        slots = step.slots[step.remembers]
        for memory in (self._start, self._slope):
            self._before.append((memory, slots, memory[slots]))
        self._start[slots] = z[step.remembers]
        self._slope[slots] = velocity[step.remembers]
        return moved

    def _noise(self, step: LatentStep) -> Tensor:
        """Normal noise [L, d_z], a function of seed, position and how often it was drawn."""
        size = self.vectors.shape[1]
        purposes = torch.full_like(step.draws, PURPOSE_LATENT)
        # Two uniform numbers make one normal one (Box and Muller 1958).
        numbers = torch.arange(2 * size, device=step.slots.device)
        uniform = uniform_noise(step.seeds, step.positions, purposes, step.draws, numbers)
        radius = (-2 * uniform[:, :size].log()).sqrt()
        angle = 2 * math.pi * uniform[:, size:]
        return radius * angle.cos() * self._latent.noise_scale
