"""Decoding from the cache gives what running every sequence afresh gives, at every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import allocate_kv_cache
from sampler.step.runner import Runner
from sampler.step.step_buffer import StepBuffer
from sampler.step.step_input import build_step_input
from tests.sampler.golden_engine import golden_engine, golden_model
from tests.tiny import request
from weights import RuleOverrides

TOLERANCE = 1e-5  # hidden rows after the final norm; the same sums in another order
CASES = {
    "llama": (None, {}),
    "gpt2": (None, {}),
    "sdar": (None, {"confidence": 0.3}),
    "llada2": (RuleOverrides(mask_token_id=155, block_length=8), {"confidence": 0.3}),
    "bd3lm": (None, {"rule": "first_hitting"}),
    "fast_dllm_v2": (RuleOverrides(mask_token_id=155, block_length=8), {"confidence": 0.3}),
    "nemotron_labs_diffusion": (None, {"mode": "diffusion", "confidence": 0.6}),
    "nemotron_labs_diffusion/speculative": (None, {"mode": "speculative"}),
    "esolm": (None, {"mode": "diffusion", "steps": 6, "alpha_0": 0.6}),
    "esolm/adaptive": (None, {"mode": "diffusion", "confidence": 0.2, "rule": "threshold"}),
    "esolm/speculative": (None, {"mode": "speculative", "width": 3}),
}


def empty_cache(like):
    layers, pages, page_size, heads, width = like.keys.shape
    return allocate_kv_cache(
        num_layers=layers,
        num_pages=pages,
        page_size=page_size,
        num_kv_heads=heads,
        head_dim=width,
        dtype=like.keys.dtype,
        device=like.keys.device,
    )


class ComparingRunner:
    """Runs each step from the cache, and once more from nothing, and compares the scored rows."""

    def __init__(self, runner, engine):
        self.runner = runner
        self.engine = engine
        self.plan = None
        self.num_compared = 0

    def run(self, step, spec):
        cached = self.runner.network.forward(step.network, self.runner.cache)
        afresh = self.afresh(step)
        assert torch.allclose(cached, afresh, atol=TOLERANCE, rtol=TOLERANCE)
        self.num_compared += len(cached)
        return self.runner.run(step, spec)

    def afresh(self, step):
        engine, plan = self.engine, self.plan
        whole = replace(plan, first=np.zeros_like(plan.first))
        full = build_step_input(
            whole,
            engine.table,
            engine.rule,
            mask_token_id=engine.vocabulary.mask_id or 0,
            wants_prompt=None,
            buffer=StepBuffer(torch.device("cpu")),
        )
        network = Runner(self.runner.network, empty_cache(self.runner.cache))
        # The same rows are scored; they stand further back when everything is run.
        counts = (plan.draft_stop - plan.first, whole.draft_stop)
        starts = [np.cumsum(count) - count for count in counts]
        spans = step.scored.spans
        rows = step.scored.rows - starts[0][spans] + plan.first[spans] + starts[1][spans]
        network_input = replace(full.network, score_rows=torch.from_numpy(rows))
        return network.network.forward(self.with_latents(network_input, step), network.cache)

    def with_latents(self, network_input, step):  # noqa: ARG002
        """What a family with latents adds to the input."""
        return network_input


@pytest.mark.parametrize("name", CASES)
def test_cached_rows_equal_rows_computed_afresh(name):
    overrides, decoding = CASES[name]
    engine = golden_engine(golden_model(name.split("/")[0], overrides), max_rows=19, context=32)
    comparing = ComparingRunner(engine.runner, engine)
    engine.runner = comparing
    plan = engine.scheduler.plan

    def remembered(**arguments):
        comparing.plan = plan(**arguments)
        return comparing.plan

    engine.scheduler.plan = remembered
    for number in range(3):
        prompt = [(7 * i + 3 * number) % 90 + 1 for i in range(5 + 4 * number)]
        one = request(str(number), prompt, max_tokens=14, decoding=decoding, seed=number)
        engine.submit(one)
    with torch.inference_mode():
        while engine.has_work:
            for delta in engine.step().deltas:
                assert delta.error is None, delta.error
    assert comparing.num_compared >= 20
