"""The curve of `diffusion` mode: quality of answers against tokens per forward; `ar` is its end."""

import math
import random
import re

import torch

from kernels import PagedBatch
from sampler.border.request import DecodingMode, DecodingParams, EvoParams
from sampler.engine import Engine
from sampler.state.latent_knobs import DELTA_MAX, DELTA_MIN
from tests.bench.canvas_answers import (
    AR,
    Answer,
    answer_all,
    one_page_cache,
    tokens_per_forward,
)
from weights.network.interface import NetworkInput
from weights.training.data.prompts import Prompt

Row = dict[str, object]
Sum = tuple[Prompt, int]

CURVE_WIDTH = 8
MASKS_BELOW = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
MOVING_BELOW = (0.0, 0.05, 0.3)
SAMPLED_AT = 0.8
PERPLEXITY_TOKENS = 256


def by_canvas(**knobs: object) -> DecodingParams:
    """Diffusion on a canvas whose latents move so."""
    return DecodingParams(mode=DecodingMode.DIFFUSION, width=CURVE_WIDTH, evo=EvoParams(**knobs))


def masks(bound: float, **knobs: object) -> DecodingParams:
    """t stays at 1: drafts of rows that hold nothing are taken below an uncertainty."""
    still = {"delta_min": 0.0, "delta_max": 0.0, "finalize_uncertainty": 0.0}
    own = {"order": "left_to_right", "uncertainty": "entropy", **knobs}
    return by_canvas(**still, **own, jump_uncertainty=bound)


def moving(bound: float) -> DecodingParams:
    """Latents move as in the reading: rows of low t have seen what they guessed themselves."""
    least, most = DELTA_MIN, DELTA_MAX
    return by_canvas(
        delta_min=least,
        delta_max=most,
        finalize_uncertainty=bound,
        jump_uncertainty=bound / 2,
        uncertainty="entropy",
        order="any",
    )


def curve() -> list[tuple[str, object, DecodingParams, float]]:
    """Name, bound, decoding and temperature of every point of the curve of `diffusion`."""
    points = [("ar", "-", AR, 0.0), (f"ar, temperature {SAMPLED_AT}", "-", AR, SAMPLED_AT)]
    points += [("t stays 1, left to right", bound, masks(bound), 0.0) for bound in MASKS_BELOW]
    points += [
        ("t stays 1, any order", 0.1, masks(0.1, order="any"), 0.0),
        ("t stays 1, by confidence", 0.1, masks(0.1, uncertainty="confidence"), 0.0),
        ("t stays 1, by confidence", 0.3, masks(0.3, uncertainty="confidence"), 0.0),
    ]
    return points + [("t falls", bound, moving(bound), 0.0) for bound in MOVING_BELOW]


def measure_diffusion(
    engine: Engine,
    prompts: list[Prompt],
    model,
    tests: list[Sum],
    *,
    max_tokens: int,
) -> list[Row]:
    """Quality against tokens per forward as the bound for readiness rises; `ar` is the end."""
    rows = []
    for name, bound, decoding, temperature in curve():
        options = {"temperature": temperature, "max_tokens": max_tokens}
        answers, _ = answer_all(engine, prompts, decoding, **options)
        rows.append(
            {
                "latents": name,
                "uncertainty_below": bound,
                "tokens_per_forward": round(tokens_per_forward(answers), 3),
                "perplexity_under_base": round(perplexity(model, prompts, answers), 3),
                "distinct_2": round(distinct(answers, 2), 4),
                "distinct_4": round(distinct(answers, 4), 4),
                "exact_answers": exact_rate(engine, model, tests, decoding, temperature),
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
        cache = one_page_cache(network, PERPLEXITY_TOKENS)
        hidden = network.forward(NetworkInput(ids, rows, rows[first - 1 : -1], batch), cache)
        log_p = torch.nn.functional.linear(hidden, network.head_weight).log_softmax(-1)
        total -= float(log_p.gather(1, ids[first:, None]).sum())
        count += len(ids) - first
    return math.exp(total / max(count, 1))


def distinct(answers: list[Answer], n: int) -> float:
    """Distinct n-grams of all answers, as a share of all n-grams."""
    grams = [a.tokens[i : i + n] for a in answers for i in range(len(a.tokens) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def sums(count: int, model) -> list[Sum]:
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


def exact_rate(
    engine: Engine, model, tests: list[Sum], decoding: DecodingParams, temperature: float
) -> float:
    """Share of sums whose answer names the right number last."""
    asked = [prompt for prompt, _ in tests]
    answers, _ = answer_all(engine, asked, decoding, temperature=temperature, max_tokens=40)
    right = 0
    for (_, wanted), answer in zip(tests, answers, strict=True):
        text = model.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        numbers = re.findall(r"\d+", text)
        right += bool(numbers) and int(numbers[-1]) == wanted
    return round(right / max(len(tests), 1), 3)
