"""Random numbers that are a function of integers alone, so that no batch can change them.

A number is drawn for (seed, position, purpose, attempt, token id). The first four are mixed into
a key of 64 bits per row (splitmix64); a keyed 32-bit hash of the token id follows (the `lowbias32`
finaliser, 31 bits, the second half of the key added between its rounds). All of it is wrapping
integer arithmetic: CPU and GPU get the same integers, so the same draws up to rounding of a log.

Shapes: R rows, N token ids.
From: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators (splitmix64);
Wellons 2018, Prospecting for hash functions (lowbias32).
"""

import torch
from torch import Tensor

PURPOSE_TARGET = 0
PURPOSE_DRAFT = 1
PURPOSE_ORDER = 2
PURPOSE_LATENT = 3
PURPOSE_CHOICE = 4

# The hash multipliers as signed 32-bit integers; kernels use the same numbers unsigned.
HASH_MULTIPLIER_1 = 0x7FEB352D
HASH_MULTIPLIER_2 = 0x846CA68B - 2**32

# 31 bits become a uniform number in (0, 1): the scale keeps the largest below 1 in float32, the
# offset keeps the smallest above 0.
UNIFORM_SCALE = 2.0**-31 * (1 - 2.0**-23)
UNIFORM_OFFSET = 2.0**-33


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# Constants of splitmix64 as signed 64-bit integers.
GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def noise_keys(seeds: Tensor, positions: Tensor, purposes: Tensor, attempts: Tensor) -> Tensor:
    """Keys [R, 2] int32 of rows whose seeds, positions, purposes and attempts are [R] integers."""
    mixed = _mix(seeds.long() + GOLDEN)
    mixed = _mix(mixed ^ (positions.long() * MIX_2 + GOLDEN))
    counters = (attempts.long() << 8) | purposes.long()
    return _mix(mixed + counters * GOLDEN).view(torch.int32).view(-1, 2)


def uniform_noise(
    seeds: Tensor, positions: Tensor, purposes: Tensor, attempts: Tensor, token_ids: Tensor
) -> Tensor:
    """Uniform numbers [R, N] float32 in (0, 1); counters are [R], token_ids [N], all integers."""
    return uniform_from_keys(noise_keys(seeds, positions, purposes, attempts), token_ids)


def gumbel_noise(
    seeds: Tensor, positions: Tensor, purposes: Tensor, attempts: Tensor, token_ids: Tensor
) -> Tensor:
    """Standard Gumbel numbers [R, N] float32, all finite; arguments as for `uniform_noise`."""
    return gumbel_from_keys(noise_keys(seeds, positions, purposes, attempts), token_ids)


def uniform_from_keys(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Uniform numbers [R, N] in (0, 1) for keys [R, 2] int32 and token ids [N] or [R, N]."""
    return _hash(keys, token_ids).float().mul_(UNIFORM_SCALE).add_(UNIFORM_OFFSET)


def gumbel_from_keys(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel numbers [R, N]; arguments as for `uniform_from_keys`."""
    return log_exponential_from_keys(keys, token_ids).neg_()


def log_exponential_from_keys(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Logarithms [R, N] of standard exponential numbers: the negative of a Gumbel number.

    log(-log(1 - u)), where log1p keeps full resolution at the small u that decide the largest
    Gumbel values.
    """
    minus_uniform = _hash(keys, token_ids).float().mul_(-UNIFORM_SCALE).sub_(UNIFORM_OFFSET)
    return minus_uniform.log1p_().neg_().log_()


def _hash(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Hash [R, N] int32 >= 0, 31 bits wide.

    `>>` on signed integers copies the sign, so `x ^ (x >> n)` takes x and ~x to one value below
    2**31. That costs one bit, no token id meets its own complement, and it saves the masks.
    """
    bits = token_ids.to(torch.int32) ^ keys[:, :1]
    shifted = bits >> 16
    bits ^= shifted
    bits *= HASH_MULTIPLIER_1
    bits += keys[:, 1:]
    torch.bitwise_right_shift(bits, 15, out=shifted)
    bits ^= shifted
    bits *= HASH_MULTIPLIER_2
    torch.bitwise_right_shift(bits, 16, out=shifted)
    bits ^= shifted
    return bits


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser on int64."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * MIX_1
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
