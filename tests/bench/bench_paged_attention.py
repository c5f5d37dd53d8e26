"""Paged attention on a GPU, beside the card's limits and PyTorch's own attention.

Run: python -m tests.bench.bench_paged_attention [--page-size 64] [--only decode|canvas|prompt]
"""

import argparse
from collections.abc import Callable

import torch

from kernels import paged_attention, plan_attention
from tests.bench.attention_work import Layout, Tensors, Work, flex, make_tensors, torch_attention
from tests.bench.harness import print_table, write_json
from tests.bench.harness_gpu import Card, assert_close, measure_card, require_gpu, time_gpu

LAYOUTS = (Layout("Qwen3-8B", 32, 8), Layout("LLaDA-8B", 32, 32))
DECODE = tuple(
    Work(batch, prefix, rows, canvas=rows)
    for batch in (1, 8, 64, 256)
    for rows in (1, 8, 32)
    for prefix in (1024, 8192, 65_536)
)
CANVAS = tuple(Work(batch, prefix, 64, canvas=32) for batch in (1, 16) for prefix in (8192, 65_536))
PROMPT = tuple(Work(1, prefix, rows) for rows in (4096, 16_384) for prefix in (0, 8192))
SUITES = {"decode": DECODE, "canvas": CANVAS, "prompt": PROMPT}
# Pages, the dense copy for PyTorch and the flushed buffer must fit beside each other.
MEMORY_SHARE = 0.3
# Bfloat16 outputs of both sides are rounded, and so are the probabilities between the products.
TOLERANCE = 3e-2


def attention(tensors: Tensors, layout: Layout, page_size: int) -> Callable[[], torch.Tensor]:
    """Our attention as a function without arguments."""
    plan = plan_attention(
        tensors.batch,
        page_size=page_size,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        dtype=tensors.q.dtype,
    )
    arguments = (tensors.q, tensors.keys, tensors.values, tensors.batch, plan)
    return lambda: paged_attention(*arguments, scale=layout.head_dim**-0.5)


def check(tensors: Tensors, work: Work, layout: Layout, page_size: int) -> None:
    """Refuse to go on when ours and PyTorch's outputs differ."""
    output = attention(tensors, layout, page_size)()
    expected = torch_attention(tensors, work, layout.head_dim**-0.5)()
    assert_close(output, expected.transpose(1, 2).reshape_as(output), TOLERANCE)


def fits(work: Work, layout: Layout) -> bool:
    return work.bytes_moved(layout) < MEMORY_SHARE * torch.cuda.mem_get_info()[0]


def measure(
    suite: str, work: Work, layout: Layout, card: Card, page_size: int
) -> dict[str, object]:
    """One row of the table."""
    tensors = make_tensors(work, layout, page_size=page_size, device=torch.device("cuda"))
    check(tensors, work, layout, page_size)
    own = time_gpu(attention(tensors, layout, page_size))
    scale = layout.head_dim**-0.5
    peer = time_gpu(torch_attention(tensors, work, scale))
    flex_ms = float("nan") if suite == "decode" else time_gpu(flex(tensors, work, scale)).median_ms
    rate = work.bytes_moved(layout) / own.median_ms * 1e3
    flops = work.flops(layout) / own.median_ms * 1e3
    return {
        "suite": suite,
        "layout": layout.name,
        "batch": work.batch,
        "prefix": work.prefix,
        "rows": work.rows,
        "ms": own.median_ms,
        "p10": own.p10_ms,
        "p90": own.p90_ms,
        "GB/s": rate / 1e9,
        "of copy": rate / card.copy_rate,
        "Tflop/s": flops / 1e12,
        "of matmul": flops / card.matmul_rate,
        "sdpa ms": peer.median_ms,
        "flex ms": flex_ms,
    }


def main() -> None:
    """Measure all suites, or one, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--only", choices=SUITES)
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    card = measure_card()
    rows = [
        measure(suite, work, layout, card, arguments.page_size)
        for suite in ([arguments.only] if arguments.only else SUITES)
        for layout in LAYOUTS
        for work in SUITES[suite]
        if fits(work, layout)
    ]
    print_table(rows)
    limits = {"copy_bytes_per_s": card.copy_rate, "matmul_flops_per_s": card.matmul_rate}
    print(write_json("bench_paged_attention", {"card": limits, "rows": rows}))


if __name__ == "__main__":
    main()
