"""What the canvas adapter is worth: tokens per forward, wall clock and quality by mode and kind.

Run: python -m tests.bench.bench_canvas_adapter --prompts FILE... [--text FILE...]
         [--model PATH] [--adapter FOLDER] [--per-kind 50] [--max-tokens 96] [--quick]

FILE: JSON lines with a `prompt` or a `question`, prose a paragraph a line. Only prompts that
training holds out are used (and those of a question file named test*, which training never had).
Every speculative answer is compared with that of `ar`, token for token, before its figure counts.
The clock and the curve of `diffusion` have results of their own, and run alone too (--only).
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams
from sampler.engine import Engine
from sampler.engine_process import load_engine, warm_up
from tests.bench.canvas_answers import AR, Answer, answer_all, tokens_per_forward
from tests.bench.diffusion_curve import CURVE_WIDTH, measure_diffusion, sums
from tests.bench.harness import print_table, write_json
from weights import Quantize, load_model
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER, default_model_path
from weights.training.data.prompts import Prompt, is_held_out, read_prompts

Row = dict[str, object]

CONTEXT = 512
WIDTHS = (3, 5)
MAIN_WIDTH = 5


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
        # As a server does: the balance knows from the start what a row costs here.
        warm_up(engine)
        clock = measure_clock(engine, timed, arguments)
        print_table(clock)
        if not arguments.quick:
            print(write_json("canvas_clock", {"prompts": len(timed), "one_stream": clock}))
    if arguments.only in (None, "diffusion"):
        tests = sums(arguments.sums, model)
        some = prompts[:: max(len(prompts) // arguments.curve_prompts, 1)]
        found = measure_diffusion(engine, some, model, tests, max_tokens=arguments.max_tokens)
        print_table(found)
        if not arguments.quick:
            counts = {"prompts": len(some), "sums": len(tests), "width": CURVE_WIDTH}
            print(write_json("canvas_diffusion", {**counts, "diffusion": found}))
    if not arguments.quick and arguments.only in (None, "drafts"):
        print(write_json("canvas_adapter", {"prompts": len(prompts), **parts}))


if __name__ == "__main__":
    main()
