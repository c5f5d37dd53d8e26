"""What the canvas adapter is worth: tokens per forward, wall clock and quality by mode and kind.

Run: python -m tests.bench.bench_canvas_adapter --prompts FILE... [--text FILE...]
         [--model PATH] [--adapter FOLDER] [--per-kind 50] [--max-tokens 96] [--quick]

FILE: JSON lines with a `prompt` or a `question`, prose a paragraph a line. Only prompts that
training holds out are used (and those of a question file named test*, which training never had).
Every speculative answer is compared with that of `ar`, token for token, before its figure counts.
"""

import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels import PagedBatch, allocate_kv_cache
from sampler.engine import Engine
from sampler.engine_config import EngineConfig
from sampler.engine_process import load_engine
from sampler.request import (
    DecodingMode,
    DecodingParams,
    EvoParams,
    Request,
    RequestStats,
    SamplingParams,
)
from tests.bench.harness import print_table, write_json
from weights import Quantize, load_model
from weights.fetch import DEFAULT_CANVAS_ADAPTER, default_model_path
from weights.network import NetworkInput
from weights.training.prompts import Prompt, is_held_out, read_prompts

Row = dict[str, object]

CONTEXT = 512
BATCH = 32
WIDTHS = (3, 5)
MAIN_WIDTH = 5
FINALIZE = (0.0, 0.02, 0.05, 0.1, 0.3)
PERPLEXITY_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    tokens: tuple[int, ...]
    stats: RequestStats


def held_out_prompts(arguments: argparse.Namespace, model) -> list[Prompt]:
    """The same number of every kind, none of which training has seen."""
    generator = random.Random(7)
    by_kind = defaultdict(list)
    asked = read_prompts(
        arguments.prompts, tokenizer=model.tokenizer, template=model.chat_template, seed=7
    )
    tests = {
        line["question"]
        for path in arguments.prompts
        if path.name.startswith("test")
        for line in map(json.loads, path.read_text().splitlines())
    }
    for prompt in asked:
        text = model.tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
        is_unseen = prompt.is_held_out
        if prompt.kind == "arithmetic" and tests:
            is_unseen = any(question in text for question in tests)
        if is_unseen:
            by_kind[prompt.kind].append(prompt)
    for path in sorted(arguments.text):
        lines = [
            line
            for line in path.read_text(encoding="utf-8").split("\n")
            if len(line) >= 600 and is_held_out(line)
        ]
        for line in generator.sample(lines, min(len(lines), arguments.per_kind)):
            ids = model.tokenizer.encode(line, add_special_tokens=False)
            by_kind["prose"].append(Prompt("prose", tuple(ids[:48]), True))
    chosen = []
    for kind in sorted(by_kind):
        generator.shuffle(by_kind[kind])
        chosen += by_kind[kind][: arguments.per_kind]
    return chosen


def answer_all(
    engine: Engine,
    prompts: Iterable[Prompt],
    decoding: DecodingParams,
    *,
    temperature: float = 0.0,
    max_tokens: int,
    batch: int = BATCH,
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


def by_kind(prompts: list[Prompt], answers: list[Answer]) -> Row:
    groups = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        groups[prompt.kind].append(answer)
    means = {kind: round(tokens_per_forward(own), 3) for kind, own in sorted(groups.items())}
    return {"mean": round(sum(means.values()) / len(means), 3), **means}


def speculative(width: int, branches: str = "all", drafts: str | None = None) -> DecodingParams:
    return DecodingParams(
        mode=DecodingMode.SPECULATIVE, width=width, branches=branches, drafts=drafts
    )


NGRAM = DecodingParams(mode=DecodingMode.SPECULATIVE, drafts="ngram", width=5)
AR = DecodingParams(mode=DecodingMode.AR)


def measure_drafts(
    engine: Engine, plain: Engine, prompts: list[Prompt], arguments
) -> tuple[list[Row], int]:
    """Tokens per forward of every form of verified drafts; losslessness is checked on the way.

    plain: the base without the adapter, which must say what `ar` says with it
    """
    rows = []
    wanted = {}
    for temperature in (0.0, 0.8):
        wanted[temperature], _ = answer_all(
            engine, prompts, AR, temperature=temperature, max_tokens=arguments.max_tokens
        )
    without, _ = answer_all(plain, prompts, AR, max_tokens=arguments.max_tokens)
    assert [a.tokens for a in wanted[0.0]] == [a.tokens for a in without]
    num_compared = len(prompts)
    both, canvas = "canvas and lookup", "canvas"
    forms = [(f"{both}, width {w}", speculative(w)) for w in WIDTHS]
    forms += [
        (f"{canvas}, width {MAIN_WIDTH}", speculative(MAIN_WIDTH, drafts="canvas")),
        (
            f"{canvas}, width {MAIN_WIDTH}, two forwards",
            speculative(MAIN_WIDTH, "none", "canvas"),
        ),
        (f"lookup alone, {MAIN_WIDTH} rows", NGRAM),
    ]
    sampled = (f"{both}, width {MAIN_WIDTH}",)
    for name, decoding in forms:
        for temperature in (0.0, 0.8) if name in sampled else (0.0,):
            answers, _ = answer_all(
                engine, prompts, decoding, temperature=temperature, max_tokens=arguments.max_tokens
            )
            for prompt, one, other in zip(prompts, answers, wanted[temperature], strict=True):
                assert one.tokens == other.tokens, (name, prompt.kind, one, other)
            num_compared += len(prompts)
            rows.append({"drafts": name, "temperature": temperature, **by_kind(prompts, answers)})
            print(rows[-1], flush=True)
    return rows, num_compared


def measure_clock(engine: Engine, prompts: list[Prompt], arguments) -> list[Row]:
    """One stream, forms in turn on every prompt, so that all see the same machine."""
    forms = {
        "ar": AR,
        "auto": DecodingParams(),
        "width 2": speculative(2),
        "width 3": speculative(3),
        "width 5": speculative(5),
        "width 5, branches full": speculative(5, "full"),
        "width 5, branches none (two forwards)": speculative(5, "none"),
        "lookup alone": NGRAM,
    }
    spent, produced = defaultdict(float), Counter()
    for _ in range(arguments.rounds):
        for prompt in prompts:
            for name, decoding in forms.items():
                answers, seconds = answer_all(
                    engine, [prompt], decoding, max_tokens=arguments.max_tokens, batch=1
                )
                spent[name] += seconds
                produced[name] += len(answers[0].tokens)
    speeds = {name: produced[name] / spent[name] for name in forms}
    return [
        {"mode": name, "tokens_per_s": round(s, 2), "relative_to_ar": round(s / speeds["ar"], 3)}
        for name, s in speeds.items()
    ]


def measure_diffusion(
    engine: Engine, prompts: list[Prompt], model, tests: list[Prompt], arguments
) -> list[Row]:
    """Quality against tokens per forward as the bound for readiness rises; `ar` is the end."""
    rows = []
    for bound in (None, *FINALIZE):
        decoding = AR
        if bound is not None:
            evo = EvoParams(finalize_uncertainty=bound, jump_uncertainty=bound / 2)
            decoding = DecodingParams(mode=DecodingMode.DIFFUSION, width=8, evo=evo)
        answers, _ = answer_all(engine, prompts, decoding, max_tokens=arguments.max_tokens)
        rows.append(
            {
                "finalize_uncertainty": "ar" if bound is None else bound,
                "tokens_per_forward": round(tokens_per_forward(answers), 3),
                "perplexity_under_base": round(perplexity(model, prompts, answers), 3),
                "distinct_2": round(distinct(answers, 2), 4),
                "distinct_4": round(distinct(answers, 4), 4),
                "exact_answers": exact_rate(engine, model, tests, decoding),
            }
        )
        print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def perplexity(model, prompts: list[Prompt], answers: list[Answer]) -> float:
    """Of answers under the base: exp of the mean negative log-likelihood of their tokens."""
    total, count = 0.0, 0
    network = model.network
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor((prompt.token_ids + answer.tokens)[:PERPLEXITY_TOKENS])
        first = len(prompt.token_ids)
        if len(ids) <= first:
            continue
        rows = torch.arange(len(ids))
        batch = PagedBatch(
            span_starts=torch.tensor([0, len(ids)], dtype=torch.int32),
            page_table=torch.zeros((1, 1), dtype=torch.int32),
            slots=rows,
            limits=(rows + 1).int(),
            max_span=len(ids),
            max_limit=len(ids),
        )
        cache = allocate_kv_cache(
            num_layers=network.num_layers,
            num_pages=1,
            page_size=PERPLEXITY_TOKENS,
            num_kv_heads=network.num_kv_heads,
            head_dim=network.head_dim,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        hidden = network.forward(NetworkInput(ids, rows, rows[first - 1 : -1], batch), cache)
        log_p = torch.nn.functional.linear(hidden, network.head_weight).log_softmax(-1)
        total -= float(log_p.gather(1, ids[first:, None]).sum())
        count += len(ids) - first
    return math.exp(total / max(count, 1))


def distinct(answers: list[Answer], n: int) -> float:
    """Distinct n-grams of all answers, as a share of all n-grams."""
    grams = [a.tokens[i : i + n] for a in answers for i in range(len(a.tokens) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def sums(count: int, model) -> list[tuple[Prompt, int]]:
    """Small sums, the only arithmetic that the base can do often."""
    generator = random.Random(3)
    found = []
    for _ in range(count):
        a, b = generator.randint(2, 50), generator.randint(2, 50)
        text = model.chat_template.render(
            [{"role": "user", "content": f"What is {a} + {b}?"}], add_generation_prompt=True
        )
        ids = model.tokenizer.encode(text, add_special_tokens=False)
        found.append((Prompt("sum", tuple(ids), True), a + b))
    return found


def exact_rate(engine: Engine, model, tests, decoding: DecodingParams) -> float:
    """Share of sums whose answer names the right number last."""
    answers, _ = answer_all(engine, [p for p, _ in tests], decoding, max_tokens=40)
    right = 0
    for (_, wanted), answer in zip(tests, answers, strict=True):
        text = model.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        numbers = re.findall(r"\d+", text)
        right += bool(numbers) and int(numbers[-1]) == wanted
    return round(right / max(len(tests), 1), 3)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path, default=DEFAULT_CANVAS_ADAPTER)
    parser.add_argument("--per-kind", type=int, default=56)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2, help="of the one-stream timing")
    parser.add_argument("--timed-prompts", type=int, default=8)
    parser.add_argument("--curve-prompts", type=int, default=48)
    parser.add_argument("--sums", type=int, default=60)
    parser.add_argument("--only", choices=("drafts", "clock", "diffusion"))
    parser.add_argument("--quick", action="store_true", help="few prompts, nothing is written")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.per_kind, arguments.timed_prompts, arguments.sums = 4, 4, 8
        arguments.rounds = 1
    return arguments


def main() -> None:
    arguments = read_arguments()
    path = arguments.model or default_model_path(Path.home() / ".cache" / "estuary")
    config = EngineConfig(
        model=str(path),
        quantization=Quantize.INT8.value,
        device="cpu",
        max_context=CONTEXT,
        canvas_adapter=str(arguments.adapter),
    )
    engine, _ = load_engine(config)
    plain, _ = load_engine(replace(config, canvas_adapter=None))
    model = load_model(
        path, dtype=torch.float32, device=torch.device("cpu"), context_length=CONTEXT
    )
    prompts = held_out_prompts(arguments, model)
    print(Counter(prompt.kind for prompt in prompts), flush=True)
    parts: dict[str, object] = {}
    if arguments.only in (None, "drafts"):
        rows, parts["answers_equal_to_ar"] = measure_drafts(engine, plain, prompts, arguments)
        parts["tokens_per_forward"] = rows
    if arguments.only in (None, "clock"):
        timed = prompts[:: max(len(prompts) // arguments.timed_prompts, 1)]
        clock = measure_clock(engine, timed, arguments)
        print_table(clock)
        if not arguments.quick:
            print(write_json("canvas_clock", {"prompts": len(timed), "one_stream": clock}))
    if arguments.only in (None, "diffusion"):
        tests = sums(arguments.sums, model)
        some = prompts[:: max(len(prompts) // arguments.curve_prompts, 1)]
        parts["diffusion"] = measure_diffusion(engine, some, model, tests, arguments)
        print_table(parts["diffusion"])
    if not arguments.quick and arguments.only is None:
        print(write_json("canvas_adapter", {"prompts": len(prompts), **parts}))


if __name__ == "__main__":
    main()
