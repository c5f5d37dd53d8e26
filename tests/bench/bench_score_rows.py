"""Scores of rows on a GPU, beside the bare matrix product of the output head.

Run: python -m tests.bench.bench_score_rows [--vocabulary 151936] [--width 4096]
"""

import argparse
from dataclasses import replace

import torch

from kernels import ScoreSpec, score_rows
from tests.bench.harness import print_table, write_json
from tests.bench.harness_gpu import Card, assert_close, measure_card, require_gpu, time_gpu

ROWS = (1, 16, 64, 256, 1024, 4096, 8192)
CHECKED_ROWS = 64
# Natural logarithms of sums over the vocabulary of bfloat16 products, rounded once more by torch.
TOLERANCE = 5e-2


def spec_of(rows: int, temperature: float, device: torch.device) -> ScoreSpec:
    """Every row drawn at one temperature."""
    numbers = torch.arange(rows, device=device)
    zeros = torch.zeros(rows, dtype=torch.int32, device=device)
    heat = torch.full((rows,), temperature, device=device)
    return ScoreSpec(heat, numbers, numbers, zeros, zeros)


def filtered_spec(rows: int, device: torch.device) -> ScoreSpec:
    """Every row drawn at temperature 1 from what top-k 50 and top-p 0.9 keep."""
    ones = torch.ones(rows, device=device)
    return replace(spec_of(rows, 1.0, device), top_k=(50 * ones).int(), top_p=0.9 * ones)


def check(hidden: torch.Tensor, head: torch.Tensor) -> None:
    """Refuse to go on when log-sum-exp or entropy are wrong."""
    rows = hidden[:CHECKED_ROWS]
    scores = score_rows(rows, head, None, spec_of(len(rows), 0.0, rows.device))
    logprobs = (rows.float() @ head.float().t()).log_softmax(1)
    assert_close(scores.entropy, -(logprobs.exp() * logprobs).sum(1), TOLERANCE)
    assert_close(scores.p1, logprobs.exp().amax(1), TOLERANCE)


def measure(hidden: torch.Tensor, head: torch.Tensor, card: Card) -> dict[str, object]:
    """One row of the table."""
    rows = hidden.shape[0]
    greedy, sampled = (spec_of(rows, heat, hidden.device) for heat in (0.0, 1.0))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score_rows(hidden, head, None, sampled)
    memory = torch.cuda.max_memory_allocated() - before
    own = time_gpu(lambda: score_rows(hidden, head, None, greedy))
    drawn = time_gpu(lambda: score_rows(hidden, head, None, sampled))
    filtering = filtered_spec(rows, hidden.device)
    filtered = time_gpu(lambda: score_rows(hidden, head, None, filtering))
    bare = time_gpu(lambda: hidden @ head.t())
    flops = 2 * rows * head.numel() / own.median_ms * 1e3
    rate = 2 * head.numel() / own.median_ms * 1e3
    return {
        "rows": rows,
        "greedy ms": own.median_ms,
        "p10": own.p10_ms,
        "p90": own.p90_ms,
        "sampled ms": drawn.median_ms,
        "filtered ms": filtered.median_ms,
        "matmul ms": bare.median_ms,
        "greedy / matmul": own.median_ms / bare.median_ms,
        "sampled / matmul": drawn.median_ms / bare.median_ms,
        "filtered / matmul": filtered.median_ms / bare.median_ms,
        "GB/s": rate / 1e9,
        "of copy": rate / card.copy_rate,
        "of matmul": flops / card.matmul_rate,
        "peak MiB": memory / 2**20,
        "logits MiB": 2 * rows * head.shape[0] / 2**20,
    }


def main() -> None:
    """Measure all numbers of rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=4096)
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    half = {"dtype": torch.bfloat16, "device": "cuda"}
    head = torch.randn(arguments.vocabulary, arguments.width, **half) / arguments.width**0.5
    hidden = torch.randn(max(ROWS), arguments.width, **half)
    check(hidden, head)
    card = measure_card()
    rows = [measure(hidden[:count], head, card) for count in ROWS]
    print_table(rows)
    limits = {"copy_bytes_per_s": card.copy_rate, "matmul_flops_per_s": card.matmul_rate}
    sizes = {"vocabulary": arguments.vocabulary, "width": arguments.width}
    print(write_json("bench_score_rows", {"card": limits, **sizes, "rows": rows}))


if __name__ == "__main__":
    main()
