import json
import os
import subprocess
import sys

import pytest
import torch

from kernels import LinearFormat, chosen_products, default_format
from kernels.int8_products import (
    FLOAT64,
    PRODUCTS,
    Int8Product,
    ProductChoice,
    _choose,
    is_exact,
)

FAST, SLOW = PRODUCTS[0], PRODUCTS[1]


@pytest.mark.parametrize("number_format", list(LinearFormat))
def test_every_chosen_product_is_exact(number_format):
    choice = chosen_products(number_format)
    assert all(is_exact(product, number_format) for product in choice.products)
    assert choice.format is number_format


def test_a_product_that_saturates_is_told_from_an_exact_one():
    def saturating(x, packed, scales, levels):
        return FLOAT64.multiply(x, packed, scales, levels).clamp(-30_000.0, 30_000.0)

    broken = Int8Product("saturating", FLOAT64.pack, saturating)
    assert not is_exact(broken, LinearFormat.W8A8)
    assert is_exact(FLOAT64, LinearFormat.W8A8)


def test_the_fastest_alone_is_kept_unless_another_is_worth_a_copy():
    times = {"a": (FAST, [1.0, 1.0, 2.0, 8.0, 30.0]), "b": (SLOW, [3.0, 3.0, 3.0, 7.0, 25.0])}
    assert _choose(times, LinearFormat.W8A8).products == (FAST,)


def test_another_takes_over_from_the_row_count_on_at_which_it_wins():
    times = {"a": (FAST, [1.0, 1.0, 2.0, 8.0, 30.0]), "b": (SLOW, [3.0, 3.0, 3.0, 4.0, 9.0])}
    choice = _choose(times, LinearFormat.W8A8)
    assert choice == ProductChoice(LinearFormat.W8A8, (FAST, SLOW), (16,))
    assert [choice.index(rows) for rows in (1, 16, 17, 1000)] == [0, 0, 1, 1]
    assert choice.describe() == f"{FAST.name} up to 16 rows, {SLOW.name} above"


def test_a_product_given_up_at_few_rows_is_not_chosen_for_many():
    never = float("inf")
    times = {
        "a": (FAST, [1.0, 1.0, 2.0, 8.0, 30.0]),
        "b": (SLOW, [90.0, never, never, never, never]),
    }
    assert _choose(times, LinearFormat.W8A8).products == (FAST,)


def test_rows_are_the_same_by_every_product_of_a_format():
    choice, number_format = chosen_products(default_format()), default_format()
    values = torch.randint(-127, 128, (96, 200), dtype=torch.int8)
    x, scales = torch.randn(40, 200), torch.rand(96)
    expected = FLOAT64.multiply(x, values, scales, number_format.levels)
    for product in choice.products:
        packed = product.pack(values)
        assert torch.equal(product.multiply(x, packed, scales, number_format.levels), expected)


# Instructions of oneDNN, and what PyTorch and MKL are held to beside them.
OTHER_CPUS = {
    "AVX2": ("avx2", "AVX2"),
    "AVX2_VNNI": ("avx2", "AVX2"),
    "AVX512_CORE": ("avx512", "AVX512"),
    "AVX512_CORE_VNNI": ("avx512", "AVX512"),
    "AVX512_CORE_BF16": ("avx512", "AVX512"),
    "AVX10_1_512": ("avx512", "AVX512"),
    "ALL": (None, None),
}
MOST_TIMES_FLOAT = 10.0


@pytest.mark.cpus
@pytest.mark.parametrize("own_kernels", ["1", "0"])
@pytest.mark.parametrize("instructions", OTHER_CPUS)
def test_products_of_other_cpus_are_exact_and_fast(instructions, own_kernels):
    aten, mkl = OTHER_CPUS[instructions]
    environment = os.environ | {"ESTUARY_CPU_KERNELS": own_kernels}
    if aten is not None:
        environment |= {
            "ONEDNN_MAX_CPU_ISA": instructions,
            "ATEN_CPU_CAPABILITY": aten,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
        }
    command = [sys.executable, "-m", "tests.kernels.try_products"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["inexact_rows"] == []
    assert max(found["times_float"].values()) < MOST_TIMES_FLOAT, found
