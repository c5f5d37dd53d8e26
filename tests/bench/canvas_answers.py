"""Answers of an engine to many prompts, a batch at a time, and how many forwards they took."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from kernels import KVCache, allocate_kv_cache
from sampler.border.request import (
    DecodingMode,
    DecodingParams,
    Request,
    RequestStats,
    SamplingParams,
)
from sampler.engine import Engine
from weights.network.interface import Network
from weights.training.data.prompts import Prompt

BATCH = 32
AR = DecodingParams(mode=DecodingMode.AR)


def one_page_cache(network: Network, num_entries: int) -> KVCache:
    """A cache of one page, for a single text."""
    return allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=1,
        page_size=num_entries,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
        is_zeroed=network.is_row_exact,
    )


@dataclass(frozen=True)
class Answer:
    tokens: tuple[int, ...]
    stats: RequestStats


def answer_all(
    engine: Engine,
    prompts: Iterable[Prompt],
    decoding: DecodingParams,
    *,
    temperature: float = 0.0,
    max_tokens: int,
    batch: int = BATCH,
    ignore_eos: bool = False,
) -> tuple[list[Answer], float]:
    """Answers in the order of the prompts, so many at a time, and the seconds it took."""
    waiting = [
        Request(
            id=str(i),
            prompt=prompt.token_ids,
            # A request with a seed gets widths that do not depend on what rows cost here.
            params=SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=i if temperature else None,
                ignore_eos=ignore_eos,
                decoding=decoding,
            ),
        )
        for i, prompt in enumerate(prompts)
    ][::-1]
    total = len(waiting)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(total)}
    stats: dict[str, RequestStats] = {}
    running = 0
    started = time.perf_counter()
    while len(stats) < total:
        while waiting and running < batch:
            engine.submit(waiting.pop())
            running += 1
        output = engine.step()
        for name, token in zip(output.tokens.request_ids, output.tokens.token_ids, strict=True):
            tokens[name].append(token)
        for delta in output.deltas:
            assert delta.error is None, delta.error
            tokens[delta.request_id].extend(delta.token_ids)
            if delta.stats is not None:
                stats[delta.request_id] = delta.stats
                running -= 1
    seconds = time.perf_counter() - started
    return [Answer(tuple(tokens[str(i)]), stats[str(i)]) for i in range(total)], seconds


def tokens_per_forward(answers: Iterable[Answer]) -> float:
    """Over all answers: tokens behind the first, which the prompt's own forward draws."""
    answers = list(answers)
    forwards = sum(max(a.stats.steps - 1, 0) for a in answers)
    return sum(max(len(a.tokens) - 1, 0) for a in answers) / max(forwards, 1)
