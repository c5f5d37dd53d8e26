import pytest
import torch

from kernels import PURPOSE_DRAFT, PURPOSE_TARGET, gumbel_noise, uniform_noise
from kernels.noise import noise_keys

MASK_32 = 2**32 - 1
MASK_64 = 2**64 - 1


def counters(rows, **changes):
    values = {"seed": 7, "position": 3, "purpose": PURPOSE_TARGET, "attempt": 0} | changes
    make = {
        name: torch.full((rows,), value) if isinstance(value, int) else torch.tensor(value)
        for name, value in values.items()
    }
    return make["seed"], make["position"], make["purpose"], make["attempt"]


def splitmix(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def python_uniform(seed, position, purpose, attempt, token):
    """The same number from Python's own integers."""
    golden = 0x9E3779B97F4A7C15
    key = splitmix((seed + golden) & MASK_64)
    key = splitmix(key ^ ((position * 0x94D049BB133111EB + golden) & MASK_64))
    key = splitmix((key + ((attempt << 8) | purpose) * golden) & MASK_64)
    bits = signed(token ^ (key & MASK_32))
    bits = signed((bits ^ (bits >> 16)) * 0x7FEB352D)
    bits = signed(bits + (key >> 32))
    bits = signed((bits ^ (bits >> 15)) * 0x846CA68B)
    return (bits ^ (bits >> 16)) * 2.0**-31


def signed(value):
    """The 32-bit integer that a wrapping register would hold."""
    return ((value + 2**31) & MASK_32) - 2**31


def test_uniform_noise_is_the_stated_integer_function():
    seeds, positions = [0, 5, -1, 2**62], [0, 1, 100_000, 7]
    purposes, attempts, tokens = [0, 1, 2, 4], [0, 9, 3, 2**20], [0, 1, 49_151, 151_935]
    noise = uniform_noise(
        *counters(4, seed=seeds, position=positions, purpose=purposes, attempt=attempts),
        torch.tensor(tokens),
    )
    expected = [
        [python_uniform(s & MASK_64, p, u, a, token) for token in tokens]
        for s, p, u, a in zip(seeds, positions, purposes, attempts, strict=True)
    ]
    torch.testing.assert_close(noise, torch.tensor(expected), atol=3e-7, rtol=0)


def test_noise_of_a_row_does_not_depend_on_its_neighbours():
    tokens = torch.arange(1000)
    together = gumbel_noise(*counters(64, seed=list(range(64))), tokens)
    alone = gumbel_noise(*counters(1, seed=[17]), tokens)
    assert torch.equal(together[17:18], alone)


def test_noise_of_a_token_does_not_depend_on_its_neighbours():
    tokens = torch.arange(50_000)
    assert torch.equal(
        gumbel_noise(*counters(1), tokens)[:, 30_000:30_100],
        gumbel_noise(*counters(1), tokens[30_000:30_100]),
    )


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"position": 4}, {"purpose": PURPOSE_DRAFT}, {"attempt": 1}]
)
def test_every_counter_changes_the_noise_completely(change):
    tokens = torch.arange(20_000)
    first, second = (
        uniform_noise(*counters(1), tokens),
        uniform_noise(*counters(1, **change), tokens),
    )
    correlation = torch.corrcoef(torch.cat((first, second)))[0, 1]
    assert correlation.abs() < 0.03


def test_uniform_noise_is_uniform():
    noise = uniform_noise(*counters(50, seed=list(range(50))), torch.arange(49_152)).flatten()
    counts = torch.histc(noise, bins=256, min=0, max=1)
    expected = noise.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 255 + 5 * (2 * 255) ** 0.5
    assert noise.min() > 0
    assert noise.max() < 1


def test_one_token_over_many_positions_is_uniform():
    rows = 20_000
    noise = uniform_noise(*counters(rows, position=list(range(rows))), torch.tensor([42])).flatten()
    counts = torch.histc(noise, bins=64, min=0, max=1)
    chi_square = ((counts - rows / 64) ** 2 / (rows / 64)).sum()
    assert chi_square < 63 + 5 * (2 * 63) ** 0.5


def test_gumbel_noise_has_the_right_mean_and_spread_and_is_finite():
    noise = gumbel_noise(*counters(40, seed=list(range(40))), torch.arange(49_152))
    assert noise.isfinite().all()
    # Euler's constant and pi^2 / 6; four standard errors of two million draws.
    assert abs(noise.mean().item() - 0.57722) < 4 * 1.2825 / noise.numel() ** 0.5
    assert abs(noise.var().item() - 1.64493) < 0.02


def test_largest_gumbel_values_are_not_quantised():
    noise = gumbel_noise(*counters(40, seed=list(range(40))), torch.arange(49_152)).flatten()
    largest = noise.topk(1000).values
    assert largest.unique().numel() == 1000


def test_gumbel_max_draws_with_the_right_frequencies():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    rows = 40_000
    noise = gumbel_noise(*counters(rows, position=list(range(rows))), torch.arange(5))
    frequency = torch.bincount((logits + noise).argmax(1), minlength=5) / rows
    torch.testing.assert_close(frequency, logits.softmax(0), atol=0.01, rtol=0)


def test_keys_differ_for_every_counter():
    keys = noise_keys(*counters(4096, position=list(range(4096))))
    assert keys.unique(dim=0).shape[0] == 4096
    assert keys.dtype == torch.int32


def test_empty_rows_and_tokens():
    none = torch.zeros(0, dtype=torch.int64)
    assert gumbel_noise(none, none, none, none, torch.arange(3)).shape == (0, 3)
    assert gumbel_noise(*counters(2), none).shape == (2, 0)
