"""Records how far the default model's drafts come true along its own answers, for the simulator.

Held-out prompts of four kinds are answered by `ar`. Behind every token of an answer one branch of
latents drafts what follows; a trace says, for every position, from how far before it every nearer
draft of it was right (`reach`), and what the base did not know of it (`uncertainty`).

Run: python -m tests.bench.record_traces --prompts FILE... [--text FILE...] [--per-kind 16]
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from kernels import PagedBatch, ScoreSpec, score_rows
from sampler.border.engine_config import EngineConfig
from sampler.engine_process import load_engine
from tests.bench.balance_simulator import TRACES
from tests.bench.bench_canvas_adapter import CONTEXT, held_out_prompts
from tests.bench.canvas_answers import AR, answer_all, one_page_cache
from weights import load_model
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER, default_model_path
from weights.network.interface import NetworkInput
from weights.network.latent import LatentRows

DRAFTS = 15
ANSWER_TOKENS = 96
# Branches of a forward: with more, masks grow faster than what they save.
FRONTIERS = 32


def spec_of(count: int) -> ScoreSpec:
    """Greedy scores of so many rows."""
    none = torch.zeros(count, dtype=torch.int64)
    return ScoreSpec(
        temperature=torch.zeros(count),
        seeds=none,
        positions=none,
        purposes=none.int(),
        attempts=none.int(),
    )


@torch.inference_mode()
def scores_of(network, num_levels: int, tokens: list[int], frontiers: list[int]):
    """Scores of the text's rows, and drafts [frontiers, DRAFTS] behind each."""
    length, extra = len(tokens), len(frontiers) * DRAFTS
    rows = length + extra
    cache = one_page_cache(network, rows)
    offsets = torch.arange(DRAFTS).repeat(len(frontiers))
    fronts = torch.tensor(frontiers).repeat_interleave(DRAFTS)
    starts = length + torch.arange(len(frontiers)).repeat_interleave(DRAFTS) * DRAFTS
    text = torch.arange(length)
    none = torch.zeros(length, dtype=torch.int32)
    batch = PagedBatch(
        span_starts=torch.tensor([0, rows], dtype=torch.int32),
        page_table=torch.zeros((1, 1), dtype=torch.int32),
        slots=torch.arange(rows),
        limits=torch.cat((text + 1, fronts + 1)).int(),
        max_span=rows,
        max_limit=rows,
        window_starts=torch.cat((none, starts.int())),
        window_stops=torch.cat((none, (starts + DRAFTS).int())),
    )
    latent = torch.arange(length, rows)
    step = NetworkInput(
        token_ids=torch.cat((torch.tensor(tokens), torch.zeros(extra, dtype=torch.int64))),
        positions=torch.cat((text, fronts + 1 + offsets)),
        score_rows=torch.arange(rows),
        batch=batch,
        latents=LatentRows(latent, latent, torch.full((extra,), num_levels), offsets),
    )
    scores = score_rows(network.forward(step, cache), network.head_weight, None, spec_of(rows))
    return scores, scores.argmax[length:].view(len(frontiers), DRAFTS)


def trace_of(network, num_levels: int, prompt: tuple[int, ...], answer: tuple[int, ...]):
    """Reach and uncertainty of every position of an answer behind its second."""
    tokens = [*prompt, *answer]
    first, stop = len(prompt) - 1, len(tokens)
    is_right = np.zeros((stop, DRAFTS + 1), dtype=np.bool_)
    largest = math.log(network.config.vocab_size)
    for start in range(first, stop, FRONTIERS):
        frontiers = list(range(start, min(start + FRONTIERS, stop)))
        scores, drafts = scores_of(network, num_levels, tokens, frontiers)
        for front, drafted in zip(frontiers, drafts.tolist(), strict=True):
            # The base draws the token behind the front itself; drafts are of those after it.
            for distance, token in enumerate(drafted, start=1):
                position = front + 1 + distance
                if position < stop:
                    is_right[position, distance] = token == tokens[position]
    uncertainty = scores.entropy[: stop - 1].numpy() / largest
    positions = range(len(prompt) + 1, stop)
    reach = [int(np.argmin(np.append(is_right[p, 1:], False))) for p in positions]
    return reach, [round(float(uncertainty[p - 1]), 4) for p in positions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--per-kind", type=int, default=16)
    arguments = parser.parse_args()
    path = default_model_path(Path.home() / ".cache" / "estuary")
    model = load_model(
        path, dtype=torch.float32, device=torch.device("cpu"), context_length=CONTEXT
    )
    prompts = held_out_prompts(arguments, model)
    config = EngineConfig(
        model=str(path),
        quantization="int8",
        device="cpu",
        max_context=CONTEXT,
        canvas_adapter=str(DEFAULT_CANVAS_ADAPTER),
    )
    engine, _ = load_engine(config)
    answers, _ = answer_all(engine, prompts, AR, max_tokens=ANSWER_TOKENS)
    num_levels = engine.family.latent.num_levels
    traces = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer.tokens) < DRAFTS:
            continue
        reach, uncertainty = trace_of(
            engine.runner.network, num_levels, prompt.token_ids, answer.tokens
        )
        traces.append({"kind": prompt.kind, "reach": reach, "uncertainty": uncertainty})
        print(len(traces), prompt.kind, np.mean([r > 0 for r in reach]).round(3), flush=True)
    TRACES.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(trace, separators=(",", ":")) for trace in traces)
    TRACES.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
