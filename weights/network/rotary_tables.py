"""The rotary table of a network: cos and sin of every position, from its config."""

import math

import torch
from torch import Tensor

from kernels import RotaryTable
from weights.network.config import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    QueryScale,
    RotaryConfig,
    YarnScaling,
)


def build_rotary_table(
    config: RotaryConfig, *, num_positions: int, device: torch.device
) -> RotaryTable:
    """Tabulate positions 0 .. num_positions - 1.

    Angles are computed in float32, as every published network of this kind does.
    """
    frequencies, attention_factor = rotary_frequencies(config)
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)  # [P, rotary_dim / 2]
    query_scale = None
    if config.query_scale is not None:
        query_scale = _query_scale(config.query_scale, positions).to(device)
    return RotaryTable(
        cos=(angles.cos() * attention_factor).to(device),
        sin=(angles.sin() * attention_factor).to(device),
        interleaved=False,
        query_scale=query_scale,
    )


def rotary_frequencies(config: RotaryConfig) -> tuple[Tensor, float]:
    """Angle per position of each pair [rotary_dim / 2] float32, and the factor on cos and sin."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    frequencies = 1.0 / config.theta**exponents
    scaling = config.scaling
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3_frequencies(frequencies, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn_frequencies(frequencies, scaling, config), scaling.attention_factor
    if isinstance(scaling, FrequencyFactors):
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float32), 1.0
    return frequencies, 1.0


def _llama3_frequencies(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest_kept = scaling.original_positions / scaling.high_frequency_factor
    shortest_scaled = scaling.original_positions / scaling.low_frequency_factor
    ramp = (scaling.original_positions / wavelengths - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    scaled = frequencies / scaling.factor
    between = (1 - ramp) * scaled + ramp * frequencies
    return torch.where(
        wavelengths < longest_kept,
        frequencies,
        torch.where(wavelengths > shortest_scaled, scaled, between),
    )


def _yarn_frequencies(frequencies: Tensor, scaling: YarnScaling, config: RotaryConfig) -> Tensor:
    low = _turns_to_pair(scaling.beta_fast, scaling, config)
    high = _turns_to_pair(scaling.beta_slow, scaling, config)
    if scaling.is_ramp_rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    if low == high:
        high += 0.001  # the ramp must not divide by zero
    pairs = torch.arange(config.rotary_dim // 2, dtype=torch.float32)
    scaled_share = ((pairs - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * scaled_share + frequencies * (1 - scaled_share)


def _turns_to_pair(turns: float, scaling: YarnScaling, config: RotaryConfig) -> float:
    """Index of the pair that turns so often over the original context, as a fraction."""
    ratio = scaling.original_positions / (turns * 2 * math.pi)
    return config.rotary_dim * math.log(ratio) / (2 * math.log(config.theta))


def _query_scale(scale: QueryScale, positions: Tensor) -> Tensor:
    return 1 + scale.beta * torch.log1p(torch.floor(positions / scale.original_positions))
