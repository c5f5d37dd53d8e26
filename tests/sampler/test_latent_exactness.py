"""Latent canvases of a real network: exact caching, lossless drafts, and the literal limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sampler.latent_store import LatentStore
from sampler.runner import Runner
from tests.sampler.golden_engine import golden_engine
from tests.sampler.test_exact_cache import TOLERANCE, ComparingRunner
from tests.tiny import request, run_all
from tests.weights.adapters import load, write_adapter
from weights.load import Quantize

SEATS = 8
PROMPTS = [[(7 * i + 3 * n) % 90 + 1 for i in range(5 + 4 * n)] for n in range(3)]
LOOSE = {"finalize_uncertainty": 0.97, "jump_uncertainty": 0.9, "delta_max": 0.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters whose rows speak of the next position, and of their own."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        speaks: write_adapter(root / speaks, config={"speaks_of": speaks})
        for speaks in ("next", "own")
    }


def latent_engine(folder, *, quantize=None, **options):
    model = load(folder, quantize=quantize)

    def new_runner(network, cache):
        return Runner(network, cache, LatentStore(network.latent, num_seats=SEATS))

    return golden_engine(model, context=48, new_runner=new_runner, **options)


class ComparingLatents(ComparingRunner):
    """The same with latents: they move once, and both runs get the same vectors."""

    def run(self, step, spec):
        if step.latents is None:
            return super().run(step, spec)
        vectors = self.runner.latents.move(step.latents)
        latents = replace(step.network.latents, vectors=vectors)
        moved = replace(step, network=replace(step.network, latents=latents))
        self.vectors = vectors
        cached = self.runner.network.forward(moved.network, self.runner.cache)
        afresh = self.afresh(moved)
        assert torch.allclose(cached, afresh, atol=TOLERANCE, rtol=TOLERANCE)
        self.num_compared += len(cached)
        stays = torch.zeros_like(step.latents.moves)
        stays[:, 0] = 1
        still = replace(
            step.latents,
            moves=stays,
            remembers=torch.zeros_like(step.latents.remembers),
            has_noise=False,
            has_memory=False,
        )
        return self.runner.run(replace(step, latents=still), spec)

    def with_latents(self, network_input, step):
        latents = network_input.latents
        if latents is None:
            return network_input
        vectors = step.network.latents.vectors
        return replace(network_input, latents=replace(latents, vectors=vectors))


@pytest.mark.parametrize("speaks", ["next", "own"])
@pytest.mark.parametrize(
    "decoding",
    [
        {"mode": "diffusion", "width": 5, "evo": LOOSE},
        {"mode": "diffusion", "width": 4, "evo": {**LOOSE, "ode": "heun"}},
        {"mode": "speculative", "width": 3},
        {"mode": "speculative", "width": 4, "branches": "full"},
    ],
    ids=["euler", "heun", "all", "full"],
)
def test_cached_rows_equal_rows_computed_afresh(folders, speaks, decoding):
    if speaks == "own" and decoding["mode"] == "speculative":
        pytest.skip("drafts that speak of their own position are not verified")
    engine = latent_engine(folders[speaks], max_rows=40)
    comparing = ComparingLatents(engine.runner, engine)
    engine.runner = comparing
    plan = engine.scheduler.plan

    def remembered(**arguments):
        comparing.plan = plan(**arguments)
        return comparing.plan

    engine.scheduler.plan = remembered
    with torch.inference_mode():
        for number, prompt in enumerate(PROMPTS):
            engine.submit(
                request(str(number), prompt, max_tokens=14, decoding=decoding, seed=number)
            )
        while engine.has_work:
            for delta in engine.step().deltas:
                assert delta.error is None, delta.error
    assert comparing.num_compared >= 20


def answers(folder, decoding, *, temperature, quantize, only=None, **options):
    engine = latent_engine(folder, quantize=quantize, **{"max_rows": 256, **options})
    requests = [
        request(str(i), p, max_tokens=20, decoding=decoding, temperature=temperature, seed=i)
        for i, p in enumerate(PROMPTS)
        if only in (None, i)
    ]
    return {name: got for name, (got, _) in run_all(engine, *requests).items()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "decoding",
    [
        {"width": 2},
        {"width": 4},
        {"width": 4, "branches": "full"},
        {"width": 4, "branches": "none"},
    ],
    ids=["2", "4", "full", "none"],
)
def test_verified_drafts_give_the_tokens_of_ar_exactly_in_int8(folders, decoding, temperature):
    options = {"temperature": temperature, "quantize": Quantize.INT8}
    wanted = answers(folders["next"], {"mode": "ar"}, **options)
    found = answers(folders["next"], {"mode": "speculative", **decoding}, **options)
    assert found == wanted


@pytest.mark.parametrize("speaks", ["next", "own"])
def test_a_canvas_gives_the_same_tokens_alone_and_in_a_batch(folders, speaks):
    decoding = {"mode": "diffusion", "width": 5, "evo": LOOSE}
    options = {"temperature": 1.0, "quantize": Quantize.INT8}
    together = answers(folders[speaks], decoding, **options)
    for i in range(len(PROMPTS)):
        assert answers(folders[speaks], decoding, only=i, **options)[str(i)] == together[str(i)]
    paused = answers(folders[speaks], decoding, page_size=4, max_rows=20, **options)
    assert paused == together


def test_t_in_0_and_1_is_threshold_decoding(folders):
    """Latents that stay at t = 1 until they are certain are masks: compare with a plain loop."""
    width, bound, length = 5, 0.93, 20
    evo = {
        "delta_min": 0.0,
        "delta_max": 0.0,
        "finalize_uncertainty": bound,
        "jump_uncertainty": bound,
        "t_plan": 1.0,
        "max_refine_steps": 1,
    }
    decoding = {"mode": "diffusion", "width": width, "evo": evo}
    found = answers(folders["own"], decoding, temperature=0.0, quantize=None)
    engine = latent_engine(folders["own"])
    for i, prompt in enumerate(PROMPTS):
        plain, steps = threshold_decoding(engine, list(prompt), width, bound, length)
        assert found[str(i)] == plain
        assert steps < length


def threshold_decoding(engine, tokens, width, bound, length):
    """Fill masks of a sliding canvas from this certainty on, the first one where none is."""
    network = engine.runner.network
    largest = np.log(network.config.vocab_size)
    stop, start = len(tokens) + length, len(tokens)
    open_positions, steps = {}, 0
    final, tokens = start, tokens + [0] * length
    filled = set(range(start))
    while final < stop:
        canvas = list(range(final, min(final + width, stop)))
        logits = mask_logits(engine, tokens, final, canvas, filled)
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) / largest
        open_positions = [p for p in canvas if p not in filled]
        certain = [p for p in open_positions if float(entropy[p - final]) < bound]
        for position in certain or open_positions[:1]:
            tokens[position] = int(logits[position - final].argmax())
            filled.add(position)
        while final < stop and final in filled:
            final += 1
        steps += 1
    return tokens[start:], steps


def mask_logits(engine, tokens, final, canvas, filled):
    """Logits of every row of a canvas: masks where it is open, embeddings where it is filled."""
    from tests.weights.test_latent import run
    from weights.latent import LatentRows

    network = engine.runner.network
    levels = [0 if p in filled else network.config.latent.num_levels for p in canvas]
    rows = torch.arange(final, final + len(canvas))
    held = network.latent.embedding[torch.tensor([tokens[p] for p in canvas])]
    latents = LatentRows(
        rows, rows, torch.tensor(levels), torch.arange(len(canvas)), vectors=held.float()
    )
    hidden = run(network, tokens[:final], latents=latents, num_latents=len(canvas))[final:]
    return torch.nn.functional.linear(hidden, network.head_weight)
