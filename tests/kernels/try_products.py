"""Tries the int8 products chosen on this CPU: exact or not, and how long beside float32.

Run in a process of its own by `test_int8_products.py`, since a CPU's instructions are settled
when PyTorch is imported. Prints one JSON object.
"""

import json
import time

import torch

from kernels import chosen_products, default_format, linear, quantize_int8
from kernels.linear import linear_reference

ROWS = (1, 4, 16, 64, 256)
SHAPE = (1536, 576)
ROUNDS = 7


def least_seconds(x, weights):
    """The least time of each product, in turns, so that a noisy moment hits both."""
    least = [float("inf")] * len(weights)
    for _ in range(ROUNDS):
        for index, weight in enumerate(weights):
            started_s = time.perf_counter()
            linear(x, weight)
            least[index] = min(least[index], time.perf_counter() - started_s)
    return least


def main():
    torch.manual_seed(0)
    weight = torch.randn(SHAPE)
    weight[:100] = 1.0
    packed = quantize_int8(weight)
    inexact, times = [], {}
    for rows in ROWS:
        x = torch.randn(rows, SHAPE[1])
        x[0] = 1.0
        product, expected = linear(x, packed), linear_reference(x.double(), packed)
        # Sums are exact; what is left is the rounding of two float32 products.
        if (product - expected).abs().max() > 1e-5 * expected.abs().max():
            inexact.append(rows)
        if not torch.equal(product[:1], linear(x[:1], packed)):
            inexact.append(rows)
        own_s, float_s = least_seconds(x, (packed, weight))
        times[str(rows)] = own_s / float_s
    choice = chosen_products(default_format())
    print(
        json.dumps(
            {
                "format": choice.format,
                "products": choice.describe(),
                "inexact_rows": inexact,
                "times_float": times,
            }
        )
    )


if __name__ == "__main__":
    main()
