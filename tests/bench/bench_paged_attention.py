"""Paged attention on a GPU, beside the card's limits and PyTorch's own attention.

Run: python -m tests.bench.bench_paged_attention [--page-size 64] [--only decode|canvas|prompt]
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend

from kernels import paged_attention, plan_attention
from tests.bench.attention_work import (
    Layout,
    Tensors,
    Work,
    flex,
    make_tensors,
    only,
    torch_attention,
)
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
PEERS = ("sdpa", "flash", "cudnn", "flex")
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
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


def peer(name: str, tensors: Tensors, work: Work, scale: float) -> Callable[[], torch.Tensor]:
    """One of PyTorch's attentions: what it chooses itself, one by name, or FlexAttention."""
    if name == "flex":
        return flex(tensors, work, scale)
    function = torch_attention(tensors, work, scale)
    return function if name == "sdpa" else only(BACKENDS[name], function)


def peer_ms(name: str, tensors: Tensors, work: Work, scale: float, output: torch.Tensor) -> float:
    """Milliseconds of a peer, NaN where it does not do the work; a wrong result stops the run."""
    try:
        function = peer(name, tensors, work, scale)
        expected = function()
        assert_close(output, expected.transpose(1, 2).reshape_as(output), TOLERANCE)
        return time_gpu(function).median_ms
    except RuntimeError as error:
        print(f"{name}: {str(error).strip().splitlines()[0]}")
        return math.nan


def fits(work: Work, layout: Layout) -> bool:
    return work.bytes_moved(layout) < MEMORY_SHARE * torch.cuda.mem_get_info()[0]


def measure(
    suite: str, work: Work, layout: Layout, card: Card, page_size: int
) -> dict[str, object]:
    """One row of the table."""
    tensors = make_tensors(work, layout, page_size=page_size, device=torch.device("cuda"))
    function = attention(tensors, layout, page_size)
    output = function()
    theirs = dict.fromkeys(PEERS, math.nan)
    for name in PEERS[:-1] if suite == "decode" else PEERS:
        theirs[name] = peer_ms(name, tensors, work, layout.head_dim**-0.5, output)
    if math.isnan(theirs["sdpa"]):
        raise SystemExit("nothing to check the result against")
    own = time_gpu(function)
    best = min(ms for ms in theirs.values() if not math.isnan(ms))
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
        **{f"{name} ms": ms for name, ms in theirs.items()},
        "best torch / ours": best / own.median_ms,
    }


def main() -> None:
    """Measure all suites, or one, and write a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--only", choices=SUITES)
    arguments = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    card = measure_card()
    limits = {"copy_bytes_per_s": card.copy_rate, "matmul_flops_per_s": card.matmul_rate}
    for suite in [arguments.only] if arguments.only else SUITES:
        rows = [
            measure(suite, work, layout, card, arguments.page_size)
            for layout in LAYOUTS
            for work in SUITES[suite]
            if fits(work, layout)
        ]
        print_table(rows)
        # A file for each suite, so that what was measured before a time limit is kept.
        print(write_json(f"bench_paged_attention_{suite}", {"card": limits, "rows": rows}))


if __name__ == "__main__":
    main()
