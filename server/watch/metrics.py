"""Metrics of requests and of HTTP, observed in the API process, and the registry of all."""

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sampler import FinishReason, Request, RequestStats
from server.engine import Engine
from server.settings import Settings
from server.text.answer_text import Piece
from server.watch.engine_collector import EngineCollector

TIME_TO_FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
# The first four are finer than what others have: diffusion passes a thousand tokens a second.
INTER_TOKEN_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS_PER_FORWARD_BUCKETS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
HTTP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CHOICES_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

# Fields that clients of other servers send. Others share one label, so that nobody can make
# series without end.
_NAMED_PARAMS = frozenset(
    {
        "length_penalty",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "regex",
        "ebnf",
        "json_schema",
        "response_format",
        "tools",
        "tool_choice",
        "repetition_detection",
        "mirostat",
        "typical_p",
        "tfs_z",
        "cache_prompt",
        "n_predict",
        "num_ctx",
        "keep_alive",
        "options",
        "format",
        "think",
        "enable_thinking",
        "min_length",
        "max_length",
        "top_a",
        "dry_multiplier",
        "xtc_probability",
        "extra_body",
        "response_model",
    }
)


def length_buckets(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to the limit."""
    buckets = []
    power = 1
    while power <= limit:
        buckets += [float(power * step) for step in (1, 2, 5) if power * step <= limit]
        power *= 10
    return tuple(buckets)


@dataclass(frozen=True, slots=True)
class RequestHistograms:
    """Observed when a request finishes, but for inter_token."""

    first_token: Histogram
    inter_token: Histogram
    per_output_token: Histogram
    end_to_end: Histogram
    queue: Histogram
    inference: Histogram
    prefill: Histogram
    decode: Histogram
    prompt_tokens: Histogram
    answer_tokens: Histogram
    max_tokens: Histogram
    params_max_tokens: Histogram
    computed_prompt_tokens: Histogram
    preemptions: Histogram


class ServerMetrics:
    """Everything that `/metrics` shows.

    model_name:  the label of every series
    max_tokens:  the model's context length, which bounds the length buckets
    """

    def __init__(
        self, engine: Engine, settings: Settings, *, model_name: str, max_tokens: int
    ) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._with_vllm_names = settings.metrics_compat == "vllm"
        self._registry.register(
            EngineCollector(
                engine,
                model_name=model_name,
                with_vllm_names=self._with_vllm_names,
            )
        )
        self._vllm = self._request_histograms(max_tokens) if self._with_vllm_names else None
        self._define_vllm_counters()
        self._define_own()
        self._define_http()

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def observe_request(self, request: Request) -> "RequestObserver":
        """What follows one request from now to its end."""
        return RequestObserver(self, request)

    def count_choices(self, num_choices: int) -> None:
        """Count a body by how many answers it asks for."""
        if self._with_vllm_names:
            self._params_n.labels(self._model_name, "0").observe(num_choices)

    def count_rejection(self, reason: str) -> None:
        """Count a request that was not taken."""
        self._rejections.labels(self._model_name, reason).inc()
        if self._with_vllm_names:
            self._vllm_rejections.labels(self._model_name, reason).inc()

    def count_cancelled(self) -> None:
        """Count a request that was given up before it had ended."""
        self._finished.labels(self._model_name, str(FinishReason.ABORT)).inc()
        if self._with_vllm_names:
            self._success.labels(self._model_name, "0", str(FinishReason.ABORT)).inc()

    def count_timeout(self) -> None:
        """Count a body whose answers did not end in time."""
        self._timeouts.labels(self._model_name).inc()

    def count_disconnect(self) -> None:
        """Count a client that left before its answer was complete."""
        self._disconnects.labels(self._model_name).inc()

    def count_ignored(self, names: tuple[str, ...]) -> None:
        """Count fields that nobody knows."""
        for name in names:
            label = name if name in _NAMED_PARAMS else "other"
            self._ignored.labels(self._model_name, label).inc()

    def http_started(self) -> None:
        """A request has come in."""
        self._http_active.labels(self._model_name).inc()

    def http_finished(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """A request has been answered; `route` is the template, never the raw path."""
        self._http_active.labels(self._model_name).dec()
        self._http_requests.labels(route, method, f"{status // 100}xx").inc()
        self._http_seconds.labels(route, method).observe(seconds)

    def request_tokens(self, *, seconds: float, num_tokens: int, is_first: bool) -> None:
        """Tokens of one request have come, `seconds` after the ones before."""
        if is_first:
            self._first_text.observe(seconds)
            return
        self._inter_chunk.observe(seconds)
        if self._vllm is not None:
            for _ in range(num_tokens):
                self._vllm.inter_token.observe(seconds / num_tokens)

    def request_finished(
        self,
        request: Request,
        *,
        finish: FinishReason,
        num_tokens: int,
        stats: RequestStats | None,
        times: "RequestTimes",
    ) -> None:
        """A request has ended; `stats` are missing when a stop string ended it."""
        if self._with_vllm_names:
            self._success.labels(self._model_name, "0", str(finish)).inc()
        self._finished.labels(self._model_name, str(finish)).inc()
        if stats is not None and stats.steps:
            self._tokens_per_forward.observe(stats.answer_tokens / stats.steps)
        histograms = self._vllm
        if histograms is None or finish in (FinishReason.ABORT, FinishReason.ERROR):
            return
        histograms.first_token.observe(times.first_token_s - request.arrived_s)
        histograms.end_to_end.observe(times.finished_s - request.arrived_s)
        histograms.decode.observe(times.finished_s - times.first_token_s)
        histograms.prompt_tokens.observe(len(request.prompt))
        histograms.answer_tokens.observe(num_tokens)
        histograms.max_tokens.observe(num_tokens)
        histograms.params_max_tokens.observe(request.params.max_tokens)
        if num_tokens > 1:
            per_token = (times.finished_s - times.first_token_s) / (num_tokens - 1)
            histograms.per_output_token.observe(per_token)
        if stats is not None:
            histograms.queue.observe(stats.scheduled_s - request.arrived_s)
            histograms.inference.observe(stats.finished_s - stats.scheduled_s)
            histograms.prefill.observe(stats.first_token_s - stats.scheduled_s)
            histograms.computed_prompt_tokens.observe(len(request.prompt) - stats.cached_tokens)
            histograms.preemptions.observe(stats.num_preemptions)

    def _request_histograms(self, max_tokens: int) -> RequestHistograms:
        lengths = length_buckets(max_tokens)
        return RequestHistograms(
            first_token=self._vllm_histogram(
                "time_to_first_token_seconds", TIME_TO_FIRST_TOKEN_BUCKETS_S
            ),
            inter_token=self._vllm_histogram("inter_token_latency_seconds", INTER_TOKEN_BUCKETS_S),
            per_output_token=self._vllm_histogram(
                "request_time_per_output_token_seconds", INTER_TOKEN_BUCKETS_S
            ),
            end_to_end=self._vllm_histogram("e2e_request_latency_seconds", LATENCY_BUCKETS_S),
            queue=self._vllm_histogram("request_queue_time_seconds", LATENCY_BUCKETS_S),
            inference=self._vllm_histogram("request_inference_time_seconds", LATENCY_BUCKETS_S),
            prefill=self._vllm_histogram("request_prefill_time_seconds", LATENCY_BUCKETS_S),
            decode=self._vllm_histogram("request_decode_time_seconds", LATENCY_BUCKETS_S),
            prompt_tokens=self._vllm_histogram("request_prompt_tokens", lengths),
            answer_tokens=self._vllm_histogram("request_generation_tokens", lengths),
            max_tokens=self._vllm_histogram("request_max_num_generation_tokens", lengths),
            params_max_tokens=self._vllm_histogram("request_params_max_tokens", lengths),
            computed_prompt_tokens=self._vllm_histogram(
                "request_prefill_kv_computed_tokens", lengths
            ),
            preemptions=self._vllm_histogram("request_num_preemptions", PREEMPTION_BUCKETS),
        )

    def _vllm_histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}",
            name.replace("_", " "),
            ["model_name", "engine"],
            registry=self._registry,
            buckets=buckets,
        )
        return histogram.labels(self._model_name, "0")

    def _define_vllm_counters(self) -> None:
        if not self._with_vllm_names:
            return
        self._success = Counter(
            "vllm:request_success",
            "Finished requests",
            ["model_name", "engine", "finished_reason"],
            registry=self._registry,
        )
        for reason in FinishReason:
            self._success.labels(self._model_name, "0", str(reason))
        self._vllm_rejections = Counter(
            "vllm:admission_rejections",
            "Requests that were not taken",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._params_n = Histogram(
            "vllm:request_params_n",
            "Answers asked for",
            ["model_name", "engine"],
            registry=self._registry,
            buckets=CHOICES_BUCKETS,
        )

    def _define_own(self) -> None:
        self._first_text = self._own_histogram(
            "time_to_first_final_token", TIME_TO_FIRST_TOKEN_BUCKETS_S
        )
        self._inter_chunk = self._own_histogram("inter_chunk_latency", INTER_TOKEN_BUCKETS_S)
        self._tokens_per_forward = Histogram(
            "estuary_tokens_per_forward",
            "Answer tokens per run of the network, by request",
            ["model_name"],
            registry=self._registry,
            buckets=TOKENS_PER_FORWARD_BUCKETS,
        ).labels(self._model_name)
        self._finished = self._own_counter(
            "estuary_requests_finished", "Finished requests", "finish"
        )
        self._rejections = self._own_counter(
            "estuary_admission_rejections", "Requests that were not taken", "reason"
        )
        self._ignored = self._own_counter(
            "estuary_request_params_ignored", "Unknown fields of requests", "param"
        )
        self._timeouts = self._own_counter(
            "estuary_request_timeouts", "Requests whose answer did not end in time"
        )
        self._disconnects = self._own_counter(
            "estuary_client_disconnects", "Clients that left before their answer was complete"
        )

    def _own_histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"estuary_{name}_seconds",
            name.replace("_", " "),
            ["model_name"],
            registry=self._registry,
            buckets=buckets,
        )
        return histogram.labels(self._model_name)

    def _own_counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self._registry)

    def _define_http(self) -> None:
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests",
            ["handler", "method", "status"],
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "Time until an HTTP request was answered",
            ["handler", "method"],
            registry=self._registry,
            buckets=HTTP_BUCKETS_S,
        )
        self._http_active = Gauge(
            "estuary_http_requests_active",
            "HTTP requests being answered",
            ["model_name"],
            registry=self._registry,
        )


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """When a request's first token and its end were seen, in monotonic seconds."""

    first_token_s: float
    finished_s: float


class RequestObserver:
    """Follows one request: times between its pieces, and what it was at the end."""

    def __init__(self, metrics: ServerMetrics, request: Request) -> None:
        self._metrics = metrics
        self._request = request
        self._num_tokens = 0
        self._first_token_s: float | None = None
        self._last_token_s = request.arrived_s

    def add(self, piece: Piece, *, now_s: float) -> None:
        """Tokens have come."""
        if not piece.num_tokens:
            return
        self._metrics.request_tokens(
            seconds=now_s - self._last_token_s,
            num_tokens=piece.num_tokens,
            is_first=self._first_token_s is None,
        )
        self._num_tokens += piece.num_tokens
        self._last_token_s = now_s
        if self._first_token_s is None:
            self._first_token_s = now_s

    def finish(self, piece: Piece) -> None:
        """The request has ended with this piece."""
        if piece.finish is None:
            raise ValueError("only the last piece of an answer has a finish")
        now_s = time.monotonic()
        self._metrics.request_finished(
            self._request,
            finish=piece.finish,
            num_tokens=self._num_tokens,
            stats=piece.stats,
            times=RequestTimes(
                first_token_s=now_s if self._first_token_s is None else self._first_token_s,
                finished_s=now_s,
            ),
        )
