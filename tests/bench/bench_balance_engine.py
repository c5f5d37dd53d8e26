"""The balance in the real engine: pairs of runs against every fixed policy, taken in turns.

The default model with its canvas adapter answers held-out prompts of all kinds. Every policy has an
engine of its own, warmed up; in a round each of them answers the same prompts, in an order that
rotates, and what is compared is the ratio within a round. All policies must give the same tokens,
greedy in every round and sampled in one more, or nothing is reported.

Run: nice python -m tests.bench.bench_balance_engine --prompts FILE... [--text FILE...]
         [--model PATH] [--adapter FOLDER] [--rounds 8] [--concurrencies 1 4 16]
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingParams
from sampler.engine_process import load_engine, warm_up
from tests.bench.bench_canvas_adapter import (
    AR,
    CONTEXT,
    NGRAM,
    answer_all,
    held_out_prompts,
    speculative,
)
from tests.bench.harness import print_table, write_json
from weights import load_model
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER, default_model_path

ANSWER_TOKENS = 96
POLICIES = {
    "ar": AR,
    "width_2": speculative(2),
    "width_3": speculative(3),
    "width_5": speculative(5),
    "lookup": NGRAM,
    "auto": DecodingParams(),
}


def measure(config, prompts, concurrency, num_rounds):
    """One line: auto against the best fixed policy, with the 95 % interval of their ratio."""
    engines = {policy: load_engine(config)[0] for policy in POLICIES}
    for engine in engines.values():
        warm_up(engine)
    rates = {policy: [] for policy in POLICIES}
    for number in range(num_rounds + 1):
        start = number * concurrency % len(prompts)
        chosen = (prompts + prompts)[start : start + concurrency]
        shift = number % len(POLICIES)
        found = {}
        for policy in [*list(POLICIES)[shift:], *list(POLICIES)[:shift]]:
            answers, seconds = answer_all(
                engines[policy],
                chosen,
                POLICIES[policy],
                max_tokens=ANSWER_TOKENS,
                batch=concurrency,
            )
            found[policy] = [answer.tokens for answer in answers]
            rates[policy].append(sum(map(len, found[policy])) / seconds)
        assert all(tokens == found["ar"] for tokens in found.values()), "tokens differ"
    num_equal = (num_rounds + 1) * concurrency + compare_sampled(engines, chosen)
    # The first round warms up.
    means = {policy: float(np.mean(rates[policy][1:])) for policy in POLICIES}
    best = max((p for p in POLICIES if p != "auto"), key=means.__getitem__)
    logs = np.log(np.array(rates["auto"][1:]) / np.array(rates[best][1:]))
    spread = 1.96 * logs.std(ddof=1) / len(logs) ** 0.5
    widths = engines["auto"].metrics.widths_chosen
    chosen_widths = " ".join(f"{width}:{count}" for width, count in widths.items() if count)
    return {
        "concurrency": concurrency,
        **{f"{policy}_tokens_per_s": round(rate, 1) for policy, rate in means.items()},
        "best_fixed": best,
        "auto_of_best": round(float(np.exp(logs.mean())), 3),
        "low_95": round(float(np.exp(logs.mean() - spread)), 3),
        "high_95": round(float(np.exp(logs.mean() + spread)), 3),
        "widths_chosen": chosen_widths,
        "answers_equal_to_ar": num_equal * (len(POLICIES) - 1),
    }


def compare_sampled(engines, prompts):
    """Answers with seeds at temperature 0.8 are those of `ar` too; how many prompts there were."""
    found = {
        policy: answer_all(
            engine, prompts, POLICIES[policy], temperature=0.8, max_tokens=ANSWER_TOKENS
        )[0]
        for policy, engine in engines.items()
    }
    wanted = [answer.tokens for answer in found["ar"]]
    for policy, answers in found.items():
        assert [answer.tokens for answer in answers] == wanted, policy
    return len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path, default=DEFAULT_CANVAS_ADAPTER)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--per-kind", type=int, default=20, help="prompts of each kind")
    parser.add_argument("--try", action="store_true", dest="tries", help="nothing is written")
    arguments = parser.parse_args()
    path = arguments.model or default_model_path(Path.home() / ".cache" / "estuary")
    model = load_model(
        path, dtype=torch.float32, device=torch.device("cpu"), context_length=CONTEXT
    )
    prompts = held_out_prompts(arguments, model)
    # Kinds in turn, so that every round has some of each.
    np.random.default_rng(1).shuffle(prompts)
    config = EngineConfig(
        model=str(path),
        quantization="int8",
        device="cpu",
        max_context=CONTEXT,
        canvas_adapter=str(arguments.adapter),
    )
    lines = []
    for concurrency in arguments.concurrencies:
        lines.append(measure(config, prompts, concurrency, arguments.rounds))
        print(lines[-1], flush=True)
    print_table(lines)
    if not arguments.tries:
        print(write_json("balance_engine", {"rounds": arguments.rounds, "lines": lines}))


if __name__ == "__main__":
    main()
