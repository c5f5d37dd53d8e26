"""Host time of a step (plan, build, apply) with a network that does nothing.


Run: python -m tests.bench.bench_step_overhead [--sequences 256] [--steps 300]
"""

import argparse
import time

import numpy as np
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import Request, SamplingParams
from sampler.engine import Engine, EngineLimits
from sampler.step.runner import HostScores
from sampler.step.score_spec import Vocabulary
from tests.bench.harness import percentiles, print_table, write_json
from tests.tiny import CAUSAL_RULE

PROMPT_TOKENS = 128
VOCABULARY = 32_000


class IdleRunner:
    """Draws the same token for every row and takes no time for it, as far as that goes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, step, _spec):
        started_s = time.perf_counter()
        count = step.scored.rows.size
        ids = np.full(count, 7, dtype=np.int64)
        numbers = np.full(count, 0.5, dtype=np.float32)
        scores = HostScores(ids, numbers, ids, numbers, numbers, numbers)
        self.seconds += time.perf_counter() - started_s
        return scores


def build(num_sequences: int, max_tokens: int) -> tuple[Engine, IdleRunner]:
    runner = IdleRunner()
    context = PROMPT_TOKENS + max_tokens
    config = EngineConfig(
        model="none", max_sequences=num_sequences, max_rows=max(8192, num_sequences)
    )
    engine = Engine(
        runner=runner,
        rule=CAUSAL_RULE,
        vocabulary=Vocabulary(size=VOCABULARY, eos_ids=frozenset({2})),
        config=config,
        limits=EngineLimits(
            context_length=context,
            num_pages=num_sequences * (context // config.page_size + 1),
        ),
        device=torch.device("cpu"),
    )
    for number in range(num_sequences):
        prompt = tuple((np.arange(PROMPT_TOKENS) * (number + 3) % VOCABULARY).tolist())
        params = SamplingParams(max_tokens=max_tokens, temperature=0.7, seed=number)
        engine.submit(Request(id=f"cmpl-{number:032d}", prompt=prompt, params=params))
    return engine, runner


def measure(num_sequences: int, num_steps: int) -> dict[str, object]:
    engine, runner = build(num_sequences, max_tokens=num_steps + 50)
    while engine.metrics.generation_tokens < 10 * num_sequences:
        engine.step()
    times_ms = []
    for _ in range(num_steps):
        before_s = runner.seconds
        started_s = time.perf_counter()
        engine.step()
        times_ms.append((time.perf_counter() - started_s - (runner.seconds - before_s)) * 1e3)
    assert engine.metrics.num_running == num_sequences, "every sequence still runs"
    return {"sequences": num_sequences, **percentiles(times_ms, 10, 50, 90, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(count, arguments.steps) for count in arguments.sequences]
    print("host milliseconds of one step, one new token per sequence")
    print_table(rows)
    print(write_json("step_overhead", {"unit": "ms", "rows": rows}))


if __name__ == "__main__":
    main()
