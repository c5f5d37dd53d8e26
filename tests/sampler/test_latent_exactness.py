"""Latent canvases of a real network: exact caching, lossless drafts, and the literal limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import PURPOSE_DRAFT, gumbel_noise
from sampler.step.latent_store import LatentStore
from sampler.step.runner import Runner
from tests.sampler.golden_engine import golden_engine
from tests.sampler.test_exact_cache import TOLERANCE, ComparingRunner
from tests.tiny import request, run_all
from tests.weights.adapters import load, write_adapter
from tests.weights.network.test_latent import run
from weights.load import Quantize
from weights.network.latent import LatentRows

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


UNVERIFIED = {
    "euler": {"mode": "diffusion", "width": 5, "evo": LOOSE},
    "heun": {"mode": "diffusion", "width": 4, "evo": {**LOOSE, "ode": "heun"}},
    "random": {"mode": "diffusion", "width": "random", "evo": LOOSE},
}
# Drafts that speak of their own position are not verified.
VERIFIED = {
    "all": {"mode": "speculative", "width": 3},
    "full": {"mode": "speculative", "width": 4, "branches": "full"},
}


@pytest.mark.parametrize(
    ("speaks", "decoding"),
    [
        pytest.param(speaks, decoding, id=f"{name}-{speaks}")
        for speaks, decodings in (("next", UNVERIFIED | VERIFIED), ("own", UNVERIFIED))
        for name, decoding in decodings.items()
    ],
)
def test_cached_rows_equal_rows_computed_afresh(folders, speaks, decoding):
    engine = latent_engine(folders[speaks], max_rows=40)
    comparing = ComparingLatents(engine.runner, engine)
    engine.runner = comparing
    plan = engine.scheduler.plan

    def remembered(**arguments):
        comparing.plan = plan(**arguments)
        return comparing.plan

    engine.scheduler.plan = remembered
    widths = np.random.default_rng(11).integers(1, 9, len(PROMPTS)).tolist()
    with torch.inference_mode():
        for number, prompt in enumerate(PROMPTS):
            own = decoding
            if decoding["width"] == "random":
                own = {**decoding, "width": widths[number]}
            engine.submit(request(str(number), prompt, max_tokens=14, decoding=own, seed=number))
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_position_in_one_jump_is_the_ar_sampler_that_asks_that_row(folders, temperature):
    """A row at t = 1 that speaks of its own position: asked, drawn from, settled, asked again."""
    decoding = {"mode": "diffusion", "width": 1, "evo": {"delta_min": 1.0, "delta_max": 1.0}}
    found = answers(folders["own"], decoding, temperature=temperature, quantize=None)
    engine = latent_engine(folders["own"])
    for seed, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for _ in range(20):
            logits = mask_logits(engine, [*text, 0], len(text), [len(text)], set(range(len(text))))
            text.append(drawn(logits, temperature, seed=seed, position=len(text)))
        assert found[str(seed)] == text[len(prompt) :]


def drawn(logits, temperature, *, seed, position):
    """The draw of a row [1, V] with the noise of a request's seed."""
    if temperature == 0:
        return int(logits.argmax())
    counters = {"seeds": seed, "positions": position, "purposes": PURPOSE_DRAFT, "attempts": 0}
    noise = gumbel_noise(
        *(torch.tensor([value]) for value in counters.values()),
        torch.arange(logits.shape[1]),
    )
    return int((logits / temperature + noise).argmax())


def test_without_early_tokens_a_canvas_is_the_fixed_step_ode(folders):
    """Greedy, nothing is ready before t = 0: Euler steps of a plain loop over the same network."""
    width, count, length = 4, 4, 10
    evo = {
        "delta_min": 1 / count,
        "delta_max": 1 / count,
        "finalize_uncertainty": 0.0,
        "jump_uncertainty": 0.0,
    }
    decoding = {"mode": "diffusion", "width": width, "evo": evo}
    engine = latent_engine(folders["own"], max_rows=256)
    submitted = [
        request(str(i), prompt, max_tokens=length, decoding=decoding)
        for i, prompt in enumerate(PROMPTS)
    ]
    found = {name: got for name, (got, _) in run_all(engine, *submitted).items()}
    for i, prompt in enumerate(PROMPTS):
        text = list(prompt)
        while len(text) < len(prompt) + length:
            size = min(width, len(prompt) + length - len(text))
            text += solved(engine, text, size, count)
        assert found[str(i)] == text[len(prompt) :]


def solved(engine, text, size, count):
    """The tokens of a canvas after so many Euler steps of all of it from t = 1 to 0."""
    latent = engine.runner.network.latent
    levels = engine.runner.network.config.latent.num_levels
    # Greedy requests begin without noise.
    z = torch.zeros(size, latent.size)
    for step in range(count):
        t, after = 1 - step / count, 1 - (step + 1) / count
        rows = torch.arange(len(text), len(text) + size)
        held = LatentRows(
            rows, rows, torch.full((size,), round(t * levels)), torch.arange(size), vectors=z
        )
        logits = canvas_logits(engine, text, held)
        # Greedy: all mass is on the most likely token.
        expected = latent.embedding[logits.argmax(-1)].float()
        z = expected + after / t * (z - expected)
    return logits.argmax(-1).tolist()


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
    network = engine.runner.network
    levels = [0 if p in filled else network.config.latent.num_levels for p in canvas]
    rows = torch.arange(final, final + len(canvas))
    held = network.latent.embedding[torch.tensor([tokens[p] for p in canvas])]
    latents = LatentRows(
        rows, rows, torch.tensor(levels), torch.arange(len(canvas)), vectors=held.float()
    )
    return canvas_logits(engine, tokens[:final], latents)


def canvas_logits(engine, text, latents):
    """Logits of the rows of a canvas behind a text [width, V]."""
    network = engine.runner.network
    hidden = run(network, text, latents=latents, num_latents=len(latents.rows))[len(text) :]
    prior, own = network.latent.prior, torch.arange(len(latents.rows))
    if prior is None:
        return torch.nn.functional.linear(hidden, network.head_weight)
    widened = prior.widen(hidden, replace(latents, rows=own, scored=own, of_scored=own))
    return torch.nn.functional.linear(widened, prior.head)
