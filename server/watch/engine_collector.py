"""The engine's counters and gauges as Prometheus metrics, read when a scrape asks for them.

`vllm:` names, types and meanings are those that existing dashboards and the Gateway API
inference extension read.
"""

import math
from collections.abc import Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sampler.border.engine_metrics import EngineMetrics, Histogram
from server.engine import Engine


class EngineCollector(Collector):
    """Collects from the engine's latest snapshot."""

    def __init__(self, engine: Engine, *, model_name: str, with_vllm_names: bool) -> None:
        self._engine = engine
        self._model_name = model_name
        self._with_vllm_names = with_vllm_names

    def describe(self) -> list[Metric]:
        """Nothing: what there is to collect is not known before the engine has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric of the engine."""
        metrics = self._engine.metrics
        yield from self._own(metrics)
        if self._with_vllm_names:
            yield from self._vllm(metrics)

    def _own(self, metrics: EngineMetrics) -> Iterator[Metric]:
        labels = {"model_name": self._model_name}
        yield _gauge("estuary_engine_up", "1 while the engine runs", self._engine.is_alive, labels)
        yield _gauge("estuary_requests_running", "Running requests", metrics.num_running, labels)
        yield _gauge("estuary_requests_waiting", "Waiting requests", metrics.num_waiting, labels)
        yield _gauge("estuary_pages_used", "Cache pages in use", metrics.pages_used, labels)
        yield _gauge("estuary_pages_open", "Pages of open canvases", metrics.pages_open, labels)
        yield _gauge("estuary_pages_capacity", "Cache pages", metrics.pages_total, labels)
        for name, text, value in (
            ("estuary_forward_passes", "Runs of the network", metrics.steps),
            ("estuary_preemptions", "Sequences that gave up their pages", metrics.num_preemptions),
            ("estuary_prompt_tokens", "Prompt tokens of requests", metrics.prompt_tokens),
            ("estuary_prefix_queries", "Prompt tokens looked up", metrics.prefix_queries),
            ("estuary_prefix_hits", "Prompt tokens found", metrics.prefix_hits),
            ("estuary_rows_scored", "Rows whose scores were computed", metrics.rows_scored),
            ("estuary_rows_wasted", "Drafted rows not accepted", metrics.rows_wasted),
            (
                "estuary_forced_tokens",
                "Tokens that grammars put into canvases",
                metrics.tokens_forced,
            ),
            ("estuary_revised_tokens", "Tokens changed after placement", metrics.tokens_revised),
            ("estuary_proposals", "Tokens put forward for verification", metrics.proposals),
            ("estuary_proposals_accepted", "Proposals confirmed", metrics.proposals_accepted),
            ("estuary_host_seconds", "Planning and applying steps", metrics.host_time_s),
            ("estuary_network_seconds", "Running the network", metrics.network_time_s),
        ):
            yield _counter(name, text, {"": value}, labels)
        yield _counter(
            "estuary_rows",
            "Rows run",
            {
                "settle": metrics.rows_settled,
                "verify": metrics.rows_verified,
                "draft": metrics.rows_drafted,
            },
            labels,
            by="kind",
        )
        yield _counter(
            "estuary_tokens",
            "Answer tokens",
            {
                "ar": metrics.tokens_ar,
                "diffusion": metrics.tokens_diffusion,
                "verified": metrics.tokens_verified,
            },
            labels,
            by="kind",
        )
        yield _counter(
            "estuary_canvases",
            "Canvases by what became of them",
            {
                "opened": metrics.canvases_opened,
                "closed": metrics.canvases_closed,
                "handed_to_ar": metrics.canvases_handed_to_ar,
            },
            labels,
            by="event",
        )
        yield _histogram("estuary_step_seconds", "Time of a step", metrics.step_time_s, labels)
        yield _histogram("estuary_step_rows", "Rows of a step", metrics.step_rows, labels)
        yield from _balance(metrics, labels)

    def _vllm(self, metrics: EngineMetrics) -> Iterator[Metric]:
        labels = {"model_name": self._model_name, "engine": "0"}
        used = metrics.pages_used / metrics.pages_total if metrics.pages_total else 0.0
        yield _gauge("vllm:num_requests_running", "Running", metrics.num_running, labels)
        yield _gauge("vllm:num_requests_waiting", "Waiting", metrics.num_waiting, labels)
        yield _gauge("vllm:kv_cache_usage_perc", "Pages in use, 0 to 1", used, labels)
        yield _gauge(
            "vllm:cache_config_info",
            "Sizes of the cache",
            1,
            labels
            | {
                "block_size": str(metrics.page_size),
                "num_gpu_blocks": str(metrics.pages_total),
            },
        )
        for name, text, value in (
            ("vllm:num_preemptions", "Preemptions", metrics.num_preemptions),
            ("vllm:prompt_tokens", "Prompt tokens", metrics.prompt_tokens),
            ("vllm:generation_tokens", "Answer tokens", metrics.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up", metrics.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found", metrics.prefix_hits),
        ):
            yield _counter(name, text, {"": value}, labels)
        yield _histogram("vllm:iteration_tokens_total", "Rows of a step", metrics.step_rows, labels)
        modes = self._engine.info.modes
        if "speculative" in modes:
            yield from _speculative(metrics, labels)
        if "diffusion" in modes:
            yield from _diffusion(metrics, labels)


def _balance(metrics: EngineMetrics, labels: Mapping[str, str]) -> Iterator[Metric]:
    yield _counter(
        "estuary_balance_choices",
        "Choices between AR (width 0) and drafts, by width",
        {str(width): count for width, count in metrics.widths_chosen.items()},
        labels,
        by="width",
    )
    for name, text, value in (
        ("estuary_balance_switches", "Changes of a sequence's width", metrics.width_switches),
        ("estuary_balance_handovers", "Changes from drafts to AR", metrics.width_handovers),
        ("estuary_balance_probes", "Drafts made to see", metrics.width_probes),
    ):
        yield _counter(name, text, {"": value}, labels)
    for name, text, gauge in (
        ("estuary_row_price_tokens", "What a row must gain", metrics.row_price_tokens),
        ("estuary_step_fixed_seconds", "Modelled time of any step", metrics.step_fixed_s),
        ("estuary_step_row_seconds", "Modelled time of one more row", metrics.step_row_s),
        ("estuary_step_entry_seconds", "Modelled time of a cache entry", metrics.step_entry_s),
    ):
        yield _gauge(name, text, gauge, labels)
    yield _histogram(
        "estuary_canvas_steps", "Drafting steps of a canvas", metrics.canvas_steps, labels
    )
    yield _histogram(
        "estuary_accepted_entropy_nats",
        "Entropy of accepted tokens",
        metrics.accepted_entropy,
        labels,
    )


def _speculative(metrics: EngineMetrics, labels: Mapping[str, str]) -> Iterator[Metric]:
    for name, text, value in (
        ("vllm:spec_decode_num_drafts", "Canvases put forward", metrics.canvases_opened),
        ("vllm:spec_decode_num_draft_tokens", "Tokens put forward", metrics.proposals),
        ("vllm:spec_decode_num_accepted_tokens", "Confirmed", metrics.proposals_accepted),
    ):
        yield _counter(name, text, {"": value}, labels)


def _diffusion(metrics: EngineMetrics, labels: Mapping[str, str]) -> Iterator[Metric]:
    for name, text, value in (
        ("vllm:diffusion_num_denoising_steps", "Steps", metrics.drafting_steps),
        ("vllm:diffusion_num_canvas_positions", "Rows drafted", metrics.rows_drafted),
        ("vllm:diffusion_num_committed_tokens", "Tokens accepted", metrics.tokens_diffusion),
    ):
        yield _counter(name, text, {"": value}, labels)


def _gauge(name: str, text: str, value: float, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), float(value))
    return family


def _counter(
    name: str,
    text: str,
    values: Mapping[str, float],
    labels: Mapping[str, str],
    *,
    by: str | None = None,
) -> Metric:
    """A counter; with `by`, one sample for each entry of `values`, else the only entry's."""
    names = list(labels) if by is None else [*labels, by]
    family = CounterMetricFamily(name, text, labels=names)
    for key, value in values.items():
        own = list(labels.values()) if by is None else [*labels.values(), key]
        family.add_metric(own, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram, labels: Mapping[str, str]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound, in_bucket in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        count += in_bucket
        buckets.append(("+Inf" if bound == math.inf else str(bound), count))
    family.add_metric(list(labels.values()), buckets, histogram.total)
    return family
