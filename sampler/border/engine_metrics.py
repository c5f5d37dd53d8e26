"""`EngineMetrics`: counters and timings of the loop, as plain fields that ride with the deltas."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_TIME_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0
)  # fmt: skip
STEP_ROWS_BUCKETS = (
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0
)  # fmt: skip
CANVAS_STEPS_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
ENTROPY_BUCKETS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)


@dataclass(slots=True)
class Histogram:
    """Observations by bucket; `counts` has one more entry than `bounds`, for what lies above."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose upper bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_many(self, values: NDArray[np.floating[Any]]) -> None:
        """Count every value."""
        if values.size == 0:
            return
        buckets = np.searchsorted(self.bounds, values)
        for bucket, count in enumerate(np.bincount(buckets).tolist()):
            self.counts[bucket] += count
        self.total += float(values.sum())


def empty_histogram(bounds: tuple[float, ...]) -> Histogram:
    """A histogram that has seen nothing."""
    return Histogram(bounds=bounds, counts=[0] * (len(bounds) + 1))


@dataclass(slots=True)
class EngineMetrics:
    """Written by the engine loop only.

    Gauges: num_running, num_waiting, pages_used (held by sequences), pages_open (of them, those of
    sequences with an open canvas that settled entries do not fill), pages_total, page_size,
    row_price_tokens (what a row must gain to be worth its time, by the balance); step_fixed_s,
    step_row_s, step_entry_s (`StepTimeModel`: time of any step, of one more scored row in the
    last one, of a cache entry).
    Everything else counts up from the start of the process; times are seconds.
    prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found there.
    rows_settled, rows_verified, rows_drafted: rows run, by kind.
    drafting_steps: forwards in which at least one sequence drafted.
    rows_scored: rows whose scores were computed.
    tokens_ar, tokens_diffusion, tokens_verified: answer tokens, by how they became final.
    tokens_forced: of those by diffusion, what a grammar put into canvases without a row.
    proposals, proposals_accepted: drafted tokens put forward for verification, and confirmed.
    rows_wasted: drafted rows whose token was not accepted, or not confirmed.
    widths_chosen: choices of the balance, by width; 0 is AR.
    width_switches: choices that differ from the sequence's one before; width_handovers: of them,
    those from drafts to AR; width_probes: drafts to see whether a text has become easier.
    canvases_handed_to_ar: canvases that did not converge in their steps and were given up.
    canvas_steps: drafting steps of canvases that closed; accepted_entropy: nats, of the rows whose
    tokens were accepted or confirmed.
    host_time_s: planning, building and applying steps; network_time_s: running them.
    """

    num_running: int = 0
    num_waiting: int = 0
    pages_used: int = 0
    pages_open: int = 0
    pages_total: int = 0
    page_size: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0
    drafting_steps: int = 0
    rows_settled: int = 0
    rows_verified: int = 0
    rows_drafted: int = 0
    rows_scored: int = 0
    rows_wasted: int = 0
    tokens_ar: int = 0
    tokens_diffusion: int = 0
    tokens_verified: int = 0
    tokens_forced: int = 0
    tokens_revised: int = 0
    proposals: int = 0
    proposals_accepted: int = 0
    canvases_opened: int = 0
    canvases_closed: int = 0
    canvases_handed_to_ar: int = 0
    row_price_tokens: float = 0.0
    step_fixed_s: float = 0.0
    step_row_s: float = 0.0
    step_entry_s: float = 0.0
    widths_chosen: dict[int, int] = field(default_factory=dict)
    width_switches: int = 0
    width_handovers: int = 0
    width_probes: int = 0
    host_time_s: float = 0.0
    network_time_s: float = 0.0
    step_time_s: Histogram = field(default_factory=lambda: empty_histogram(STEP_TIME_BUCKETS_S))
    step_rows: Histogram = field(default_factory=lambda: empty_histogram(STEP_ROWS_BUCKETS))
    canvas_steps: Histogram = field(default_factory=lambda: empty_histogram(CANVAS_STEPS_BUCKETS))
    accepted_entropy: Histogram = field(default_factory=lambda: empty_histogram(ENTROPY_BUCKETS))
