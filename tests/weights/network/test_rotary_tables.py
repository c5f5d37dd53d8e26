"""Rotary frequencies against values worked out by hand and by definition."""

import math

import pytest
import torch

from weights.network.config import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    NetworkConfig,
    QueryScale,
    RotaryConfig,
    YarnScaling,
)
from weights.network.rotary_tables import build_rotary_table, rotary_frequencies


def plain(theta=10000.0, dim=8):
    return [theta ** (-2 * pair / dim) for pair in range(dim // 2)]


def test_plain_frequencies_are_powers_of_theta():
    frequencies, factor = rotary_frequencies(RotaryConfig(10000.0, 8))
    torch.testing.assert_close(frequencies, torch.tensor(plain()))
    assert factor == 1.0


def test_linear_scaling_divides_all():
    frequencies, _ = rotary_frequencies(RotaryConfig(10000.0, 8, LinearScaling(4.0)))
    torch.testing.assert_close(frequencies, torch.tensor(plain()) / 4)


def test_factors_divide_each():
    scaling = FrequencyFactors((1.0, 2.0, 4.0, 8.0))
    frequencies, _ = rotary_frequencies(RotaryConfig(10000.0, 8, scaling))
    torch.testing.assert_close(frequencies, torch.tensor([f / 2**i for i, f in enumerate(plain())]))


def test_llama3_scaling_keeps_short_waves_and_divides_long_ones():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    frequencies, _ = rotary_frequencies(RotaryConfig(500000.0, 128, scaling))
    unscaled = torch.tensor(plain(500000.0, 128))
    wavelengths = 2 * math.pi / unscaled
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    torch.testing.assert_close(frequencies[short], unscaled[short])
    torch.testing.assert_close(frequencies[long], unscaled[long] / 8)
    between = ~short & ~long
    assert bool((frequencies[between] < unscaled[between]).all())
    assert bool((frequencies[between] > unscaled[between] / 8).all())


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    scaling = YarnScaling(16.0, 16384)
    frequencies, factor = rotary_frequencies(RotaryConfig(1e6, 128, scaling))
    unscaled = torch.tensor(plain(1e6, 128))
    # Pair 0 turns 2607 times over the original context, far above beta_fast; the last far below 1.
    torch.testing.assert_close(frequencies[0], unscaled[0])
    torch.testing.assert_close(frequencies[-1], unscaled[-1] / 16)
    assert factor == 1.0


def test_attention_factor_scales_cos_and_sin():
    config = RotaryConfig(1e6, 8, YarnScaling(16.0, 8, attention_factor=1.5))
    table = build_rotary_table(config, num_positions=4, device=torch.device("cpu"))
    torch.testing.assert_close(table.cos[0], torch.full((4,), 1.5))
    torch.testing.assert_close(table.cos.square() + table.sin.square(), torch.full((4, 4), 2.25))


def test_query_scale_grows_by_whole_contexts():
    config = RotaryConfig(1e6, 8, query_scale=QueryScale(0.1, 8))
    table = build_rotary_table(config, num_positions=17, device=torch.device("cpu"))
    wanted = [1 + 0.1 * math.log(1 + position // 8) for position in range(17)]
    torch.testing.assert_close(table.query_scale, torch.tensor(wanted))


@pytest.mark.parametrize("dim", [7, 0, 10])
def test_rotary_dim_must_fit_the_head(dim):
    with pytest.raises(ValueError, match="rotary_dim"):
        NetworkConfig(4, 8, 1, 1, 1, 8, 8, 8, 1e-6, rotary=RotaryConfig(1e4, dim))
