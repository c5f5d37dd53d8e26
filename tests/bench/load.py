"""A load generator for completions over HTTP: seeded lengths and arrivals, streams timed by token.

Traffic goes to loopback only, with a bounded number of requests and a time limit for each.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import httpx

from tests.bench.harness import percentiles

REQUEST_TIMEOUT_S = 600.0
WORDS = [
    "river",
    "sea",
    "tide",
    "water",
    "stone",
    "bridge",
    "light",
    "morning",
    "letter",
    "garden",
    "engine",
    "paper",
    "window",
    "market",
    "winter",
    "summer",
    "music",
    "answer",
    "question",
    "number",
    "story",
    "road",
    "village",
    "city",
    "mountain",
    "harbour",
    "train",
]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: so many requests of so many tokens, so many at a time.

    arrivals_per_s: mean rate of seeded exponential arrivals, or None: as fast as places free up
    prompts:        texts to ask with, drawn by the seed; random words without any
    """

    num_requests: int
    concurrency: int
    prompt_words: tuple[int, int]
    max_tokens: tuple[int, int]
    arrivals_per_s: float | None = None
    seed: int = 0
    prompts: tuple[str, ...] = ()


@dataclass(slots=True)
class Timing:
    """One answer: monotonic seconds of sending and of every token, and what it was charged."""

    sent_s: float
    token_times_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    done_s: float = 0.0


def bodies(workload: Workload, *, model: str) -> list[dict[str, object]]:
    """The request bodies of a workload: the same ones for the same seed."""
    draw = random.Random(workload.seed)
    requests = []
    for number in range(workload.num_requests):
        if workload.prompts:
            text = draw.choice(workload.prompts)
        else:
            words = [draw.choice(WORDS) for _ in range(draw.randint(*workload.prompt_words))]
            text = f"{number}. Write about " + " ".join(words)
        requests.append(
            {
                "model": model,
                "prompt": text,
                "max_tokens": draw.randint(*workload.max_tokens),
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
    return requests


async def run(url: str, workload: Workload, *, model: str, extra: dict[str, object]) -> float:
    """Send a workload once, thrown away; returns its seconds (a warm-up)."""
    timings, seconds = await measure(url, workload, model=model, extra=extra)
    assert len(timings) == workload.num_requests, "every request is answered"
    return seconds


async def measure(
    url: str, workload: Workload, *, model: str, extra: dict[str, object]
) -> tuple[list[Timing], float]:
    """Send a workload; the timing of every answer and the seconds it took in all."""
    places = asyncio.Semaphore(workload.concurrency)
    draw = random.Random(workload.seed + 1)
    limits = httpx.Limits(max_connections=workload.concurrency + 1)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits) as client:

        async def one(body: dict[str, object]) -> Timing:
            async with places:
                return await _stream(client, {**body, **extra})

        started_s = time.perf_counter()
        tasks = []
        for body in bodies(workload, model=model):
            if workload.arrivals_per_s is not None:
                await asyncio.sleep(draw.expovariate(workload.arrivals_per_s))
            tasks.append(asyncio.create_task(one(body)))
        timings = await asyncio.gather(*tasks)
        return list(timings), time.perf_counter() - started_s


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> Timing:
    timing = Timing(sent_s=time.perf_counter())
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            content = (await response.aread()).decode()
            raise RuntimeError(f"status {response.status_code}: {content[:200]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            choice = next(iter(chunk.get("choices", ())), {})
            if choice.get("text"):
                timing.token_times_s.append(time.perf_counter())
            if choice.get("finish_reason") == "length":
                timing.num_tokens = body["max_tokens"]
            if chunk.get("usage"):
                timing.num_tokens = chunk["usage"]["completion_tokens"]
    timing.done_s = time.perf_counter()
    # A server that sends no usage and stopped early: one chunk is one token there.
    timing.num_tokens = timing.num_tokens or len(timing.token_times_s)
    return timing


def decode_tokens_per_s(timings: list[Timing]) -> float:
    """Tokens per second of one answer after its first token, the mean over all answers."""
    tokens = sum(t.num_tokens - 1 for t in timings)
    return tokens / sum(t.done_s - t.token_times_s[0] for t in timings)


def summary(timings: list[Timing], seconds: float) -> dict[str, object]:
    """Throughput, time to first token and time between tokens of a measured workload."""
    first = [t.token_times_s[0] - t.sent_s for t in timings if t.token_times_s]
    between = [
        later - earlier
        for t in timings
        for earlier, later in zip(t.token_times_s, t.token_times_s[1:], strict=False)
    ]
    num_tokens = sum(t.num_tokens for t in timings)
    result: dict[str, object] = {
        "requests_per_s": len(timings) / seconds,
        "tokens_per_s": num_tokens / seconds,
    }
    for name, values in (("ttft_ms", first), ("itl_ms", between)):
        for point, value in percentiles(values or [0.0], 50, 95, 99).items():
            result[f"{name}_{point}"] = 1e3 * value
    return result
