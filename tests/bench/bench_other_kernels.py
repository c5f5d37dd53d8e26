"""The smaller kernels on a GPU, each beside its PyTorch definition on the same tensors.

A kernel that is not at least 10 % faster on these shapes should go.

Run: python -m tests.bench.bench_other_kernels [--only swiglu]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from kernels import (
    RotaryTable,
    add_rms_norm,
    grouped_experts,
    linear,
    quantize_int8,
    rotary_rows,
    store_kv,
    swiglu,
)
from kernels.rotary import rotate
from tests.bench.harness import print_table, write_json
from tests.bench.harness_gpu import Card, assert_close, measure_card, require_gpu, time_gpu

WIDTH, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 12_288, 32, 8, 128
EXPERTS, CHOSEN, EXPERT_WIDTH, EXPERT_SIZE = 64, 8, 2048, 1024
ROWS = (1, 32, 256, 4096)

HALF_BYTES = 2


@dataclass(frozen=True)
class Pair:
    """Ours and PyTorch's on the same tensors.

    bytes_moved: that the work cannot do without, read and written once
    flops:       of its matrix products
    """

    own: Callable[[], torch.Tensor]
    plain: Callable[[], torch.Tensor]
    bytes_moved: int
    flops: int = 0


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def norm(rows: int) -> Pair:
    x, residual, weight = draw(rows, WIDTH), draw(rows, WIDTH), draw(WIDTH)
    return Pair(
        lambda: add_rms_norm(x, residual, weight, 1e-6)[0],
        lambda: functional.rms_norm(x + residual, (WIDTH,), weight, 1e-6),
        bytes_moved=HALF_BYTES * 4 * rows * WIDTH,
    )


def activation(rows: int) -> Pair:
    gate_up = draw(rows, 2 * INTERMEDIATE)
    gate, up = gate_up.chunk(2, dim=1)
    return Pair(
        lambda: swiglu(gate_up),
        lambda: functional.silu(gate) * up,
        bytes_moved=HALF_BYTES * 3 * rows * INTERMEDIATE,
    )


def store(rows: int) -> Pair:
    qkv = draw(rows, HEADS + 2 * KV_HEADS, HEAD_DIM)
    keys = draw(rows // 64 + 1, 64, KV_HEADS, HEAD_DIM)
    values = torch.zeros_like(keys)
    slots = torch.randperm(rows, device="cuda")
    table = RotaryTable(*torch.rand(2, rows, HEAD_DIM // 2, device="cuda"))
    rotary = rotary_rows(table, torch.arange(rows, device="cuda"))

    def plain() -> torch.Tensor:
        turned = rotate(qkv[:, : HEADS + KV_HEADS], rotary)
        keys.flatten(0, 1).index_copy_(0, slots, turned[:, HEADS:])
        values.flatten(0, 1).index_copy_(0, slots, qkv[:, -KV_HEADS:])
        return turned[:, :HEADS]

    own = {"slots": slots, "num_heads": HEADS, "rotary": rotary}
    return Pair(
        lambda: store_kv(qkv, keys, values, **own),
        plain,
        bytes_moved=HALF_BYTES * 2 * qkv.numel(),
    )


def int8(rows: int) -> Pair:
    x, weight = draw(rows, WIDTH), draw(WIDTH, WIDTH) / WIDTH**0.5
    packed = quantize_int8(weight)
    dense = packed.dense().bfloat16()
    return Pair(
        lambda: linear(x, packed),
        lambda: functional.linear(x, dense),
        bytes_moved=WIDTH * WIDTH + HALF_BYTES * 2 * rows * WIDTH,
        flops=2 * rows * WIDTH * WIDTH,
    )


def experts(rows: int) -> Pair:
    x = draw(rows, EXPERT_WIDTH)
    gate_up = draw(EXPERTS, 2 * EXPERT_SIZE, EXPERT_WIDTH) / EXPERT_WIDTH**0.5
    down = draw(EXPERTS, EXPERT_WIDTH, EXPERT_SIZE) / EXPERT_SIZE**0.5
    ids = torch.rand(rows, EXPERTS, device="cuda").argsort(1)[:, :CHOSEN].contiguous()
    weights = torch.rand(rows, CHOSEN, device="cuda")

    def plain() -> torch.Tensor:
        total = torch.zeros_like(x)
        for expert in range(EXPERTS):
            share = (weights * (ids == expert)).sum(1, keepdim=True)
            gate, up = functional.linear(x, gate_up[expert]).chunk(2, dim=1)
            total += (
                share * functional.linear(functional.silu(gate) * up, down[expert])
            ).bfloat16()
        return total

    used = ids.unique().numel()
    return Pair(
        lambda: grouped_experts(x, gate_up, down, ids, weights),
        plain,
        bytes_moved=HALF_BYTES * (3 * used * EXPERT_SIZE * EXPERT_WIDTH + 2 * rows * EXPERT_WIDTH),
        flops=6 * rows * CHOSEN * EXPERT_SIZE * EXPERT_WIDTH,
    )


# Error that a few bfloat16 roundings on either side explain.
CASES = {
    "add_rms_norm": (norm, 0.02),
    "swiglu": (activation, 0.02),
    "store_kv": (store, 0.02),
    "int8 linear": (int8, 0.05),
    "grouped_experts": (experts, 0.2),
}


def measure(name: str, rows: int, card: Card) -> dict[str, object]:
    """One row of the table."""
    make, tolerance = CASES[name]
    pair = make(rows)
    assert_close(pair.own(), pair.plain(), tolerance)
    ours, theirs = time_gpu(pair.own), time_gpu(pair.plain)
    rate = pair.bytes_moved / ours.median_ms * 1e3
    flops = pair.flops / ours.median_ms * 1e3
    return {
        "kernel": name,
        "rows": rows,
        "ms": ours.median_ms,
        "p10": ours.p10_ms,
        "p90": ours.p90_ms,
        "GB/s": rate / 1e9,
        "of copy": rate / card.copy_rate,
        "Tflop/s": flops / 1e12,
        "of matmul": flops / card.matmul_rate,
        "torch ms": theirs.median_ms,
        "torch / ours": theirs.median_ms / ours.median_ms,
    }


def main() -> None:
    """Measure every kernel, or one, at every number of rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    names = [arguments.only] if arguments.only else CASES
    card = measure_card()
    rows = [measure(name, count, card) for name in names for count in ROWS]
    print_table(rows)
    limits = {"copy_bytes_per_s": card.copy_rate, "matmul_flops_per_s": card.matmul_rate}
    print(write_json("bench_other_kernels", {"card": limits, "rows": rows}))


if __name__ == "__main__":
    main()
