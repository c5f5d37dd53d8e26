"""Timing of kernels with CUDA events and a cold cache, beside what the card can do."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

RUNS = 50
WARM_UPS = 5
# Written between runs: more than the last-level cache of any card so far.
FLUSH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median, 10th and 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Card:
    """What the card reaches on plain work: bytes/s of a copy, flop/s of a large product."""

    copy_rate: float
    matmul_rate: float


def time_gpu(function: Callable[[], object], runs: int = RUNS) -> Timing:
    """Time a function on the current device; the cache is flushed before every run."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(WARM_UPS):
        function()
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    stops = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    for start, stop in zip(starts, stops, strict=True):
        flush.zero_()
        start.record()
        function()
        stop.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(stop) for start, stop in zip(starts, stops, strict=True)]
    median, low, high = np.percentile(times, (50, 10, 90))
    return Timing(float(median), float(low), float(high))


def measure_card() -> Card:
    """Measure the card's copy bandwidth and its bfloat16 matrix rate."""
    source = torch.zeros(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy = time_gpu(lambda: target.copy_(source))
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = time_gpu(lambda: square @ square)
    return Card(2 * source.numel() / copy.median_ms * 1e3, 2 * 8192**3 / product.median_ms * 1e3)


def require_gpu() -> None:
    """Stop with a sentence when there is no CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark measures a CUDA GPU, and there is none")


def assert_close(output: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Refuse to time a wrong result; errors of numbers above one are relative."""
    output, expected = output.float(), expected.float()
    error = ((output - expected).abs() / expected.abs().clamp_min(1)).max().item()
    if not error <= tolerance:
        raise SystemExit(f"wrong result: error {error:.3g} above {tolerance:.3g}")
