"""An engine under a steady load of made-up prompts: throughput and latency."""

import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass

from sampler import DecodingMode, DecodingParams, EngineConfig, Request, SamplingParams
from sampler.balance.step_time import StepTimeReport
from sampler.engine_process import load_engine, warm_up
from server.engine import Engine
from server.shell.decision_chart import Decisions, watch_decisions

_PERCENTILES = (50, 95, 99)
# Each stops after a second or two.
_STEP_TIME_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class BenchLoad:
    """How many requests of what size, and how many of them at a time."""

    num_requests: int
    concurrency: int
    prompt_tokens: int
    answer_tokens: int
    mode: str
    seed: int


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured; lists of seconds hold one entry per request.

    decisions: of the balance, sampled over time
    """

    model: str
    load: BenchLoad
    elapsed_s: float
    first_token_s: list[float]
    per_token_s: list[float]
    num_steps: int
    decisions: list[Decisions]

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of all requests in a second."""
        return self.load.num_requests * self.load.answer_tokens / self.elapsed_s

    def table(self) -> str:
        """The numbers for people."""
        rows = [
            f"model               {self.model}",
            f"requests            {self.load.num_requests}, {self.load.concurrency} at a time",
            f"prompt, answer      {self.load.prompt_tokens}, {self.load.answer_tokens} tokens",
            f"time                {self.elapsed_s:.2f} s",
            f"throughput          {self.tokens_per_s:.1f} tokens/s",
            f"steps               {self.num_steps}",
        ]
        for percent in _PERCENTILES:
            first = percentile(self.first_token_s, percent) * 1000
            each = percentile(self.per_token_s, percent) * 1000
            rows.append(f"p{percent:<3} first, each    {first:.1f} ms, {each:.2f} ms")
        return "\n".join(rows)

    def json(self) -> str:
        """The numbers for machines."""
        return json.dumps(asdict(self) | {"tokens_per_s": self.tokens_per_s}, indent=2) + "\n"


async def bench(engine: Engine, load: BenchLoad) -> BenchResult:
    """Run the load once; raises ValueError for a load that cannot be run."""
    for name, value in (
        ("num_requests", load.num_requests),
        ("concurrency", load.concurrency),
        ("prompt_tokens", load.prompt_tokens),
        ("answer_tokens", load.answer_tokens),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    await engine.start()
    try:
        longest = load.prompt_tokens + load.answer_tokens
        if longest > engine.info.context_length:
            raise ValueError(
                f"prompt and answer may have at most {engine.info.context_length} tokens, "
                f"got {longest}"
            )
        return await _run(engine, load)
    finally:
        await engine.stop(drain_s=0.0)


async def _run(engine: Engine, load: BenchLoad) -> BenchResult:
    places = asyncio.Semaphore(load.concurrency)
    requests = _requests(engine, load)
    steps_before = engine.metrics.steps
    decisions: list[Decisions] = []
    watching = asyncio.create_task(watch_decisions(engine, decisions))
    started_s = time.monotonic()
    try:
        times = await asyncio.gather(*(_answer(engine, request, places) for request in requests))
    finally:
        watching.cancel()
    return BenchResult(
        model=engine.info.name,
        load=load,
        elapsed_s=time.monotonic() - started_s,
        first_token_s=[first for first, _ in times],
        per_token_s=[each for _, each in times],
        num_steps=engine.metrics.steps - steps_before,
        decisions=decisions,
    )


def _requests(engine: Engine, load: BenchLoad) -> list[Request]:
    drawn = random.Random(load.seed)
    params = SamplingParams(
        max_tokens=load.answer_tokens,
        temperature=0.0,
        ignore_eos=True,
        decoding=DecodingParams(mode=DecodingMode(load.mode)),
    )
    return [
        Request(
            id=f"bench-{number}",
            prompt=tuple(
                drawn.randrange(engine.info.vocab_size) for _ in range(load.prompt_tokens)
            ),
            params=params,
        )
        for number in range(load.num_requests)
    ]


async def _answer(
    engine: Engine, request: Request, places: asyncio.Semaphore
) -> tuple[float, float]:
    """Seconds to the first token, and from there on for each token."""
    async with places:
        started_s = time.monotonic()
        first_s: float | None = None
        num_tokens = 0
        async for delta in engine.submit(request):
            if delta.token_ids and first_s is None:
                first_s = time.monotonic()
            num_tokens += len(delta.token_ids)
        ended_s = time.monotonic()
    first_s = ended_s if first_s is None else first_s
    return first_s - started_s, (ended_s - first_s) / max(num_tokens - 1, 1)


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def measure_step_time(config: EngineConfig) -> StepTimeReport:
    """Load a model in this process, run step shapes of all sizes, and say what steps cost.

    Raises CheckpointError or ValueError as `load_engine` does.
    """
    engine, _ = load_engine(config)
    for _ in range(_STEP_TIME_ROUNDS):
        warm_up(engine)
    return engine.step_time.report()


def step_time_table(report: StepTimeReport) -> str:
    """The report as lines of text."""
    lines = [
        f"fixed {1e3 * report.fixed_s:.3f} ms, a row {1e6 * report.row_s:.2f} us, a scored row "
        f"{1e6 * report.scored_row_s:.2f} us more, a cache entry "
        f"{1e9 * report.cache_entry_s:.2f} ns, rows with latents {1e3 * report.latents_s:.3f} ms",
        *(f"above {rows} rows a row costs {1e6 * cost:.2f} us more" for rows, cost in report.bends),
        f"{report.num_steps} steps seen, median error {report.median_error:.1%}",
        "",
        " rows    ms  us a row",
        *(
            f"{rows:>5} {1e3 * seconds:>6.2f} {1e6 * seconds / rows:>9.1f}"
            for rows, seconds in report.knots
        ),
    ]
    return "\n".join(lines)
