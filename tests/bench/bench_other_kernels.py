"""The smaller kernels on a GPU, each beside its PyTorch definition on the same tensors.

A kernel that is not at least 10 % faster on these shapes should go.

Run: python -m tests.bench.bench_other_kernels [--only swiglu]
"""

import argparse
from collections.abc import Callable

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
from tests.bench.harness_gpu import assert_close, require_gpu, time_gpu

WIDTH, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 12_288, 32, 8, 128
EXPERTS, CHOSEN, EXPERT_WIDTH, EXPERT_SIZE = 64, 8, 2048, 1024
ROWS = (1, 32, 256, 4096)

Pair = tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def norm(rows: int) -> Pair:
    x, residual, weight = draw(rows, WIDTH), draw(rows, WIDTH), draw(WIDTH)
    return (
        lambda: add_rms_norm(x, residual, weight, 1e-6)[0],
        lambda: functional.rms_norm(x + residual, (WIDTH,), weight, 1e-6),
    )


def activation(rows: int) -> Pair:
    gate_up = draw(rows, 2 * INTERMEDIATE)
    gate, up = gate_up.chunk(2, dim=1)
    return lambda: swiglu(gate_up), lambda: functional.silu(gate) * up


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
    return lambda: store_kv(qkv, keys, values, **own), plain


def int8(rows: int) -> Pair:
    x, weight = draw(rows, WIDTH), draw(WIDTH, WIDTH) / WIDTH**0.5
    packed = quantize_int8(weight)
    dense = packed.dense().bfloat16()
    return lambda: linear(x, packed), lambda: functional.linear(x, dense)


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

    return lambda: grouped_experts(x, gate_up, down, ids, weights), plain


# Error that a few bfloat16 roundings on either side explain.
CASES = {
    "add_rms_norm": (norm, 0.02),
    "swiglu": (activation, 0.02),
    "store_kv": (store, 0.02),
    "int8 linear": (int8, 0.05),
    "grouped_experts": (experts, 0.2),
}


def measure(name: str, rows: int) -> dict[str, object]:
    """One row of the table."""
    make, tolerance = CASES[name]
    own, plain = make(rows)
    assert_close(own(), plain(), tolerance)
    ours, theirs = time_gpu(own), time_gpu(plain)
    return {
        "kernel": name,
        "rows": rows,
        "ms": ours.median_ms,
        "p10": ours.p10_ms,
        "p90": ours.p90_ms,
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
    rows = [measure(name, count) for name in names for count in ROWS]
    print_table(rows)
    print(write_json("bench_other_kernels", {"rows": rows}))


if __name__ == "__main__":
    main()
