"""The speed table of the Eso-LM paper as ratios of one run, and what batching gains.

Every sampler decodes L tokens with L forwards (NFE = L), one sequence at a time, with the same
170 M architecture and random weights. MDLM without a cache is the median of five full forwards
times L. BD3-LM is measured as its authors run it, with the finished block stored by a forward
of its own, and as our engine does, where storing rides along with the next draft. Correctness
first: decoding is checked against running every step afresh before anything is timed.

From: Sahoo et al. 2025, arXiv 2506.01928, generation-speed table (NFE = L).
Run: python -m tests.bench.bench_eso_speed [--lengths 512 1024 2048] [--device cuda]
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from sampler.spans.canvas_spans import CanvasSpans
from tests.bench.harness import print_table, write_json
from tests.bench.harness_gpu import require_gpu
from tests.bench.random_network import diffusion_transformer, engine_over
from tests.tiny import request
from weights import FamilyRule
from weights.families import AcceptanceDefaults, DraftLimit, Grid, Order, Settle, Speaks

MASK = 50_257
AR = FamilyRule()
ESO = FamilyRule(
    modes=("diffusion",),
    order=Order.ANY,
    draft_limit=DraftLimit.OWN_ENTRY,
    settled_speaks_of=Speaks.NOTHING,
    draft_speaks_of=Speaks.OWN,
    mask_token_id=MASK,
    suppresses_mask=True,
    acceptance=AcceptanceDefaults("rank_order", alpha_0=0.0, steps=1),
)
BD3 = FamilyRule(
    modes=("diffusion",),
    settle=Settle.BLOCK,
    draft_limit=DraftLimit.CANVAS_END,
    settled_speaks_of=Speaks.NOTHING,
    draft_speaks_of=Speaks.OWN,
    grid=Grid.ABSOLUTE,
    mask_token_id=MASK,
    suppresses_mask=True,
    acceptance=AcceptanceDefaults("first_hitting"),
)
MDLM = replace(
    BD3, settle=Settle.NEVER, draft_limit=DraftLimit.EVERYTHING, grid=Grid.NONE, order=Order.ANY
)


class StoresApart(CanvasSpans):
    """BD3-LM as published: a finished block is stored by a forward that drafts nothing."""

    def spans(self, table, seats):
        plan = super().spans(table, seats)
        stores = plan.settle_stop > plan.first
        return replace(plan, draft_stop=np.where(stores, plan.settle_stop, plan.draft_stop))


def steps_of(engine, length, *, num_sequences=1):
    """Run whole answers; seconds and context length of every forward."""
    for number in range(num_sequences):
        engine.submit(request(str(number), [11], max_tokens=length, seed=number))
    seconds = []
    while engine.has_work:
        started_s = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started_s)
    return seconds


def build(name, network, length):
    context = length + 32
    if name == "AR":
        return engine_over(network, AR, context=context)
    if name == "Eso-LM (B)":
        return engine_over(network, ESO, context=context)
    block = int(name.split("=")[1].split()[0])
    engine = engine_over(network, replace(BD3, block_length=block), context=context)
    if name.endswith("as published"):
        engine.rule = engine.scheduler.rule = engine.advance.rule = StoresApart(
            engine.scheduler.family
        )
    return engine


def mdlm_seconds(network, length):
    """Median of five full forwards over all L positions, times L."""
    engine = engine_over(network, MDLM, context=length + 32)
    engine.submit(request("x", [11], max_tokens=length, seed=0))
    times = []
    for _ in range(5):
        started_s = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started_s)
    return float(np.median(times)) * length


SAMPLERS = (
    "AR",
    "Eso-LM (B)",
    "BD3-LM L'=4 as published",
    "BD3-LM L'=4 ours",
    "BD3-LM L'=16 as published",
    "BD3-LM L'=16 ours",
)


def check_parity(network):
    """Each sampler gives the same tokens in a batch of two as alone, on a short answer."""
    for name in SAMPLERS:
        answers = []
        for companions in (0, 1):
            engine = build(name, network, 96)
            tokens = []
            for number in range(companions + 1):
                engine.submit(request(str(number), [11 + number], max_tokens=24, seed=number))
            while engine.has_work:
                output = engine.step()
                pairs = zip(output.tokens.request_ids, output.tokens.token_ids, strict=True)
                tokens += [token for name_, token in pairs if name_ == "0"]
                for delta in output.deltas:
                    tokens += delta.token_ids if delta.request_id == "0" else ()
            answers.append(tokens)
        assert answers[0][:24] == answers[1][:24], f"{name}: a batch changes the answer"


def measure(network, length):
    rows = []
    for name in SAMPLERS:
        seconds = steps_of(build(name, network, length), length)
        rows.append({"L": length, "sampler": name, "forwards": len(seconds), "s": sum(seconds)})
    mdlm = mdlm_seconds(network, length)
    rows.append({"L": length, "sampler": "MDLM, no cache", "forwards": length, "s": mdlm})
    by_name = {row["sampler"]: row["s"] for row in rows}
    for row in rows:
        row["relative to AR"] = row["s"] / by_name["AR"]
        row["MDLM is slower by"] = mdlm / row["s"]
        row["relative to Eso-LM"] = row["s"] / by_name["Eso-LM (B)"]
    return rows


def batching_gain(network, *, num_requests=16, length=64):
    """Throughput of 16 concurrent diffusion requests over one after the other."""
    rule = replace(ESO, acceptance=AcceptanceDefaults("rank_order", alpha_0=0.5, steps=16))
    one = [sum(steps_of(engine_over(network, rule, context=length + 32), length)) for _ in range(3)]
    together = engine_over(network, rule, context=length + 32, num_sequences=num_requests)
    seconds = sum(steps_of(together, length, num_sequences=num_requests))
    return {
        "concurrent requests": num_requests,
        "tokens/s alone": length / float(np.median(one)),
        "tokens/s together": num_requests * length / seconds,
        "gain": num_requests * float(np.median(one)) / seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        require_gpu()
    network = diffusion_transformer(
        max_positions=max(arguments.lengths) + 64, device=arguments.device
    )
    check_parity(network)
    gain = batching_gain(network)
    print_table([gain])
    rows = [row for length in arguments.lengths for row in measure(network, length)]
    print_table(rows)
    name = "eso_speed" if arguments.device == "cpu" else "eso_speed_gpu"
    print(write_json(name, {"unit": "s", "rows": rows, "batching": gain}))


if __name__ == "__main__":
    main()
