"""Exact answers against forwards on three generated tasks, for every way to decode one Evo.

Run: python -m tests.bench.bench_evo_tasks [--model FOLDER] [--cases 1000] [--name evo_tasks]

Held-out cases come from a seed that nothing was trained on. Sudoku and sums are decoded greedily,
chains at temperature 1 (their first digit is drawn). Forwards are those of a request alone.
"""

import argparse
import time
from pathlib import Path

import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, EvoParams
from sampler.engine import Engine
from sampler.engine_process import load_engine
from tests.bench.canvas_answers import AR, answer_all
from tests.bench.harness import print_table, write_json
from weights.training.data.prompts import Prompt
from weights.training.data.tasks import CANVAS_WIDTH, CHAIN, TASKS, Task, TaskTexts, is_right
from weights.training.task_recipe import HELD_OUT_SEED

EXAMPLE = Path(__file__).parents[2] / "weights" / "examples" / "evo_tasks"
BATCH = 125


def canvas(**knobs: object) -> DecodingParams:
    """Diffusion on a canvas over the whole answer, with these knobs of `evo`."""
    evo = EvoParams(**{"order": "any", **knobs})
    return DecodingParams(mode=DecodingMode.DIFFUSION, width=CANVAS_WIDTH, evo=evo)


def fixed(steps: int) -> DecodingParams:
    """Equal steps of information, and no token before the last."""
    return canvas(
        delta_min=1 / steps,
        delta_max=1 / steps,
        finalize_uncertainty=0.0,
        jump_uncertainty=0.0,
        max_refine_steps=2 * steps,
    )


def masks(bound: float) -> DecodingParams:
    """t stays 1; what is less uncertain than the bound is taken, the most certain at least."""
    return canvas(
        delta_min=0.0,
        delta_max=0.0,
        finalize_uncertainty=0.0,
        jump_uncertainty=bound,
        max_refine_steps=1,
    )


def adaptive(least: float, most: float, bound: float, *, patience: int) -> DecodingParams:
    """t moves by uncertainty; what is less uncertain than the bound is taken.

    patience: steps without any, after which the most certain one is taken
    """
    return canvas(
        delta_min=least,
        delta_max=most,
        finalize_uncertainty=bound,
        jump_uncertainty=bound,
        max_refine_steps=patience,
    )


FORMS = {
    "ar": AR,
    "one jump": fixed(1),
    "fixed path, 4 steps": fixed(4),
    "fixed path, 8 steps": fixed(8),
    "fixed path, 16 steps": fixed(16),
    "masks by confidence, below 0.003": masks(0.003),
    "masks by confidence, below 0.01": masks(0.01),
    "masks by confidence, below 0.03": masks(0.03),
    "masks by confidence, below 0.1": masks(0.1),
    "adaptive t, 0 to 1/4, below 0.01": adaptive(0.0, 1 / 4, 0.01, patience=1),
    "adaptive t, 0 to 1/2, below 0.01": adaptive(0.0, 1 / 2, 0.01, patience=1),
    "adaptive t, 0 to 1, below 0.01": adaptive(0.0, 1.0, 0.01, patience=1),
    "adaptive t, 0 to 1/4, below 0.003": adaptive(0.0, 1 / 4, 0.003, patience=1),
    "adaptive t, 1/64 to 1/4, below 0.01": adaptive(1 / 64, 1 / 4, 0.01, patience=2),
    "adaptive t, 1/16 to 1/4, below 0.01": adaptive(1 / 16, 1 / 4, 0.01, patience=16),
}


def measure(engine: Engine, task: Task, texts: torch.Tensor, form: str) -> dict[str, object]:
    """The share of exact answers and the mean forwards of one way to decode a task."""
    prompts = [
        Prompt(task.name, tuple(ids), True) for ids in texts[:, : task.prompt_length].tolist()
    ]
    started = time.perf_counter()
    answers, _ = answer_all(
        engine,
        prompts,
        FORMS[form],
        temperature=1.0 if task is CHAIN else 0.0,
        max_tokens=task.answer_length,
        batch=BATCH,
        ignore_eos=True,
    )
    tokens = torch.tensor([answer.tokens for answer in answers])
    forwards = [answer.stats.steps for answer in answers]
    return {
        "task": task.name,
        "decoding": form,
        "exact": round(float(is_right(task, texts, tokens).float().mean()), 4),
        "forwards": round(sum(forwards) / len(forwards), 2),
        "cases": len(answers),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EXAMPLE)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--name", help="of the results; nothing is written without")
    arguments = parser.parse_args()
    config = EngineConfig(
        model=str(arguments.model),
        device="cpu",
        dtype="float32",
        max_sequences=BATCH,
        max_rows=BATCH * CANVAS_WIDTH * 2,
    )
    engine, _ = load_engine(config)
    texts = TaskTexts.make(arguments.cases, seed=HELD_OUT_SEED)
    rows: list[dict[str, object]] = []
    for task in TASKS:
        if task.name not in arguments.tasks:
            continue
        drawn = texts.draw(task, arguments.cases, torch.Generator().manual_seed(HELD_OUT_SEED))
        for form in arguments.forms:
            rows.append(measure(engine, task, drawn, form))
            print(rows[-1], flush=True)
    print_table(rows)
    if arguments.name:
        print(write_json(arguments.name, {"model": arguments.model.name, "arms": rows}))


if __name__ == "__main__":
    main()
