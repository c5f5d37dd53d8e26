"""Progress in units of information: levels of t drawn evenly in measured entropy, by patterns.

How much of its token a latent still hides is measured while training: the mean NLL of latent rows
at each level. A share of information s in [0, 1] stands for the level whose entropy is s times
that at t = 1, so that what decides a token is drawn as often as it decides.

Shapes: B texts, S latent rows, N levels.
"""

import torch
from torch import Tensor, nn

# Of texts: t of 0 and 1 only, in any order; one t for a canvas; each row's own; growing along it.
_MASKED, _EQUAL, _FREE = 0.4, 0.2, 0.2
# Shares above 1 are 1: a canvas at its beginning is met often.
_OVER = 1.2
_JITTER = 0.1
# Of levels drawn evenly in t, so that the measurement reaches all of them.
_EVEN_IN_T = 0.1
_FOLLOW = 0.02


class MeasuredEntropy(nn.Module):
    """The mean NLL of latent rows by level, in nats, followed as training goes."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        # A parameter without gradient, so that it is saved and restored with the weights.
        rising = torch.arange(num_levels + 1) / num_levels
        self.table = nn.Parameter(rising, requires_grad=False)

    @property
    def num_levels(self) -> int:
        """The last level, t = 1."""
        return self.table.shape[0] - 1

    @torch.no_grad()
    def follow(self, nll: Tensor, levels: Tensor) -> None:
        """Move the table towards the NLL of rows at levels (both of one shape)."""
        flat = levels.flatten()
        sums = torch.zeros_like(self.table).index_add_(0, flat, nll.detach().float().flatten())
        counts = torch.bincount(flat, minlength=self.table.shape[0])
        met = (counts > 0) & (torch.arange(counts.shape[0], device=counts.device) > 0)
        mean = sums / counts.clamp(min=1)
        # Levels that few rows have move less.
        weight = 1 - (1 - _FOLLOW) ** (counts / 8).clamp(max=4.0)
        self.table.copy_(torch.where(met, torch.lerp(self.table, mean, weight), self.table))

    @torch.no_grad()
    def levels_of(self, shares: Tensor) -> Tensor:
        """The level at which each share in [0, 1] of the information is hidden, int64."""
        table = smoothed(self.table)
        table[0] = 0
        rising = table.cummax(dim=0).values
        rising = rising / rising[-1].clamp(min=1e-6)
        level = torch.searchsorted(rising, shares.clamp(0, 1).contiguous())
        level = torch.where(shares <= 0, 0, level.clamp(1, self.num_levels))
        return torch.where(shares >= 1, self.num_levels, level)


def smoothed(table: Tensor) -> Tensor:
    """Means over five neighbouring levels; the ends repeat."""
    padded = torch.cat((table[:1].expand(2), table, table[-1:].expand(2)))
    return padded.unfold(0, 5, 1).mean(dim=1)


def draw_levels(place: Tensor, entropy: MeasuredEntropy, generator: torch.Generator) -> Tensor:
    """A level for every latent row [B, S], by a pattern of its own for each text.

    place: [B, S] float, where each row stands in its canvas, in (0, 1)
    """
    device = place.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    count, rows = place.shape
    pattern = uniform(count, 1)
    # The larger of two numbers: little is known when decoding begins.
    hidden = torch.maximum(uniform(count, 1), uniform(count, 1))
    is_hidden = uniform(count, rows) < hidden
    base, other = _OVER * uniform(count, 1), _OVER * uniform(count, 1)
    free = base + (other - base) * uniform(count, rows)
    along = torch.where(uniform(count, 1) < 0.5, place, 1 - place)
    jitter = _JITTER * torch.randn(place.shape, generator=generator, device=device)
    growing = 1.5 * base - 0.6 + 2 * uniform(count, 1) * along + jitter
    shares = torch.where(pattern < _MASKED + _EQUAL + _FREE, free, growing)
    shares = torch.where(pattern < _MASKED + _EQUAL, base, shares).clamp(0, 1)
    levels = entropy.levels_of(shares)
    in_t = (shares * entropy.num_levels).round().long()
    levels = torch.where(uniform(count, 1) < _EVEN_IN_T, in_t, levels)
    # Half of the other canvases have rows that are final already.
    is_open = is_hidden | (uniform(count, 1) < 0.5)
    levels = torch.where(is_open, levels, 0)
    return torch.where(pattern < _MASKED, is_hidden * entropy.num_levels, levels)
