"""How far the adaptive canvas of the Evo example agrees with its own AR decoding.

Run: python -m tests.bench.bench_evo_agreement --text FILE... [--model FOLDER] [--prompts 96]

Prompts are windows of held-out documents. Greedy answers are compared with those of `ar`, position
by position; the NLL of every answer is what the model's AR rows say of it, in nats per token. Drawn
at temperature 1, the answers of `ar` have the NLL of the model's own entropy: answers of a canvas
that came from the same distribution would have it too.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, EvoParams
from sampler.engine import Engine
from sampler.engine_process import load_engine
from tests.bench.canvas_answers import AR, Answer, answer_all, tokens_per_forward
from tests.bench.diffusion_curve import perplexity
from tests.bench.harness import print_table, write_json
from weights import load_model
from weights.training.data.prompts import Prompt
from weights.training.data.text import read_corpus

EXAMPLE = Path(__file__).parents[2] / "weights" / "examples" / "evo"
PROMPT_TOKENS, ANSWER_TOKENS, BATCH = 48, 16, 64


# Latents move as our reading has it; the checkpoint's own default lets them stand.
MOVING = {"delta_min": 1 / 32, "delta_max": 1 / 4, "order": "any", "max_refine_steps": 8}


def canvas(width: int, **knobs: object) -> DecodingParams:
    """Diffusion on a canvas of this width, with these knobs of `evo`."""
    evo = EvoParams(**{**MOVING, **knobs})
    return DecodingParams(mode=DecodingMode.DIFFUSION, width=width, evo=evo)


def still(bound: float) -> dict[str, object]:
    """t stays at 1, and drafts are taken from left to right below an uncertainty."""
    return {
        "delta_min": 0.0,
        "delta_max": 0.0,
        "finalize_uncertainty": 0.0,
        "jump_uncertainty": bound,
        "order": "left_to_right",
        "max_refine_steps": 1,
    }


def flow(steps: int) -> dict[str, object]:
    """Euler steps of one length from t = 1 to 0, and no token before."""
    return {
        "delta_min": 1 / steps,
        "delta_max": 1 / steps,
        "finalize_uncertainty": 0.0,
        "jump_uncertainty": 0.0,
        "max_refine_steps": 2 * steps,
    }


FORMS = {
    "ar": AR,
    "one position, one jump": canvas(1, **flow(1)),
    "one position, 8 steps": canvas(1, **flow(8)),
    "one position, 64 steps": canvas(1, **flow(64)),
    "adaptive, width 1": canvas(1),
    "adaptive, width 4": canvas(4),
    "adaptive, width 16": canvas(16),
    "adaptive, width 16, narrows below 0.3": canvas(16, t_ar=0.3),
    "t stays 1, left to right below 0.1": canvas(16, **still(0.1)),
    "t stays 1, left to right below 0.5": canvas(16, **still(0.5)),
}


def held_out_prompts(paths: list[Path], model, count: int) -> list[Prompt]:
    """Windows spread over the held-out documents."""
    tokens: list[int] = []
    for document in read_corpus(paths).held_out:
        tokens += [*model.tokenizer.encode(document, add_special_tokens=False), 0]
    starts = np.linspace(0, len(tokens) - PROMPT_TOKENS, count).astype(int)
    return [Prompt("held out", tuple(tokens[s : s + PROMPT_TOKENS]), True) for s in starts]


def agreement(answers: list[Answer], wanted: list[Answer]) -> dict[str, float]:
    """Shares of equal first tokens, of equal tokens, of equal answers; tokens before the first
    that differs."""
    equal = np.array(
        [
            [a == b for a, b in zip(one.tokens, other.tokens, strict=True)]
            for one, other in zip(answers, wanted, strict=True)
        ]
    )
    return {
        "equal_first": round(float(equal[:, 0].mean()), 3),
        "equal_tokens": round(float(equal.mean()), 3),
        "equal_beginning": round(float(equal.cumprod(axis=1).sum(axis=1).mean()), 2),
        "equal_answers": round(float(equal.all(axis=1).mean()), 3),
    }


def measure(engine: Engine, model, prompts: list[Prompt]) -> list[dict[str, object]]:
    """Every form against `ar`, greedy and at temperature 1."""
    rows, wanted = [], None
    for name, decoding in FORMS.items():
        options = {"max_tokens": ANSWER_TOKENS, "ignore_eos": True, "batch": BATCH}
        greedy, _ = answer_all(engine, prompts, decoding, **options)
        drawn, _ = answer_all(engine, prompts, decoding, temperature=1.0, **options)
        wanted = wanted or greedy
        rows.append(
            {
                "decoding": name,
                "tokens_per_forward": round(tokens_per_forward(greedy), 2),
                **agreement(greedy, wanted),
                "ar_nll_greedy": round(math.log(perplexity(model, prompts, greedy)), 3),
                "ar_nll_drawn": round(math.log(perplexity(model, prompts, drawn)), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, default=EXAMPLE)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="few prompts, nothing is written")
    arguments = parser.parse_args()
    count = 16 if arguments.quick else arguments.prompts
    engine, _ = load_engine(EngineConfig(model=str(arguments.model), device="cpu", dtype="float32"))
    model = load_model(arguments.model, dtype=torch.float32, device=torch.device("cpu"))
    prompts = held_out_prompts(arguments.text, model, count)
    rows = measure(engine, model, prompts)
    print_table(rows)
    if not arguments.quick:
        sizes = {"prompts": len(prompts), "tokens_each": ANSWER_TOKENS}
        print(write_json("evo_agreement", {**sizes, "agreement": rows}))


if __name__ == "__main__":
    main()
