"""Latent canvases over the network of hashes: verified drafts, moving latents, any batch."""

from dataclasses import replace

import numpy as np
import pytest

from sampler.state.latent_knobs import MAX_REFINE_STEPS
from sampler.step.step_input import RowKind
from tests.tiny import HashRunner, hash_engine, request, run_all
from weights.families import latent_rule
from weights.network.latent_config import LatentConfig, LatentDefaults

CALIBRATION = ((0.0, 0.0), (0.5, 0.3), (1.0, 0.9))
CONFIG = LatentConfig(size=8, num_levels=64, speaks_of_next=True, width=6, calibration=CALIBRATION)
NEXT = latent_rule(CONFIG)
OWN = latent_rule(replace(CONFIG, speaks_of_next=False))
PROMPTS = [(3, 1, 4), (1, 5), (9, 2, 6, 5, 3, 5, 8, 9, 7), (9,)]
FEW = 3  # tokens, so that drafts are often what the verifier draws


def answers(rule, decoding, *, temperature=0.0, max_tokens=21, vocabulary=FEW, **options):
    options = {"max_rows": 2048, **options}
    engine = hash_engine(rule, num_pages=512, context=64, vocabulary=vocabulary, eos=(), **options)
    requests = [
        request(
            str(i),
            [t % vocabulary for t in prompt],
            max_tokens=max_tokens,
            decoding=decoding,
            temperature=temperature,
            seed=i + 5,
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    return run_all(engine, *requests), engine


def tokens(found):
    return {name: got for name, (got, _) in found.items()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("branches", ["all", "full", "none"])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16])
def test_verified_drafts_give_the_tokens_of_ar(width, branches, temperature):
    decoding = {"mode": "speculative", "width": width, "branches": branches}
    found, engine = answers(NEXT, decoding, temperature=temperature)
    wanted, alone = answers(NEXT, {"mode": "ar"}, temperature=temperature)
    assert tokens(found) == tokens(wanted)
    if width > 1:
        assert engine.metrics.tokens_verified > 0
        assert engine.metrics.proposals > engine.metrics.proposals_accepted
    if width > 1 and branches == "all":
        assert engine.metrics.steps < alone.metrics.steps


def test_auto_gives_the_tokens_of_ar():
    found, _ = answers(NEXT, {}, temperature=1.0, max_tokens=40)
    wanted, _ = answers(NEXT, {"mode": "ar"}, temperature=1.0, max_tokens=40)
    assert tokens(found) == tokens(wanted)


EVO = [
    {},
    {"delta_min": 0.1, "delta_max": 0.4, "finalize_uncertainty": 0.5, "t_plan": 1.0},
    {"renoise": True, "hysteresis": 0.05, "finalize_uncertainty": 0.3},
    {"ode": "heun", "finalize_uncertainty": 0.0, "jump_uncertainty": 0.0},
    {"t_ar": 0.5, "t_plan": 0.9, "finalize_uncertainty": 0.8},
    {"delta_min": 0.0, "delta_max": 0.0, "finalize_uncertainty": 0.0, "max_refine_steps": 2},
    {"uncertainty": "confidence", "finalize_uncertainty": 0.6},
    {"uncertainty": "margin", "finalize_uncertainty": 0.6, "jump_uncertainty": 0.5},
    {"order": "left_to_right", "finalize_uncertainty": 0.8, "delta_max": 0.5, "t_plan": 1.0},
]
# Drafts of rows that know nothing of their own tokens, as far from the left as they are certain.
MASKS = {
    "delta_min": 0.0,
    "delta_max": 0.0,
    "finalize_uncertainty": 0.0,
    "uncertainty": "confidence",
    "order": "left_to_right",
}


@pytest.mark.parametrize("rule", [NEXT, OWN], ids=["next", "own"])
@pytest.mark.parametrize("evo", EVO, ids=range(len(EVO)))
def test_moving_latents_give_the_same_tokens_alone_and_in_a_batch(rule, evo):
    decoding = {"mode": "diffusion", "width": 5, "evo": evo}
    found, _ = answers(rule, decoding, temperature=1.0, vocabulary=50)
    assert all(len(got) == 21 for got in tokens(found).values())
    for i, prompt in enumerate(PROMPTS):
        alone = hash_engine(rule, num_pages=64, context=64, eos=(), max_rows=2048)
        one = request("one", prompt, max_tokens=21, decoding=decoding, temperature=1.0, seed=i + 5)
        assert run_all(alone, one)["one"][0] == tokens(found)[str(i)]
        # Whatever becomes certain, patience ends; one more step settles a prompt.
        assert alone.metrics.steps <= 21 * evo.get("max_refine_steps", MAX_REFINE_STEPS) + 1


@pytest.mark.parametrize("rule", [NEXT, OWN], ids=["next", "own"])
@pytest.mark.parametrize(
    ("options", "num_pages"), [({}, 20), ({"max_rows": 16}, 64), ({"page_size": 16}, 6)]
)
def test_preempted_and_cut_canvases_go_on_where_they_were(rule, options, num_pages):
    decoding = {"mode": "diffusion", "width": 5, "evo": EVO[1]}

    def run(**more):
        engine = hash_engine(rule, context=64, eos=(), **more)
        requests = [
            request(str(i), p, max_tokens=21, decoding=decoding, temperature=1.0, seed=i)
            for i, p in enumerate(PROMPTS)
        ]
        return tokens(run_all(engine, *requests)), engine

    wanted, _ = run(num_pages=256, max_rows=2048)
    found, engine = run(num_pages=num_pages, **options)
    assert found == wanted
    if num_pages < 64:
        assert engine.metrics.num_preemptions > 0


@pytest.mark.parametrize("rule", [NEXT, OWN], ids=["next", "own"])
def test_progress_never_rises_without_renoising(rule):
    engine = hash_engine(rule, num_pages=64, context=64, eos=(), max_rows=2048)
    decoding = {"mode": "diffusion", "width": 6, "evo": EVO[1]}
    engine.submit(request("one", (3, 1, 4), max_tokens=30, decoding=decoding, temperature=1.0))
    before = {}
    while engine.has_work:
        engine.step()
        table = engine.table
        for position in range(int(table.final[0]), int(table.canvas_stop[0])):
            column = position % table.latents.columns
            t = float(table.latents.progress[0, column])
            assert t <= before.get(position, 1.0)
            before[position] = t
    assert min(before.values()) < 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_canvas_that_trusts_no_draft_is_ar(width, temperature):
    decoding = {"mode": "diffusion", "width": width, "evo": {**MASKS, "jump_uncertainty": 0.0}}
    found, engine = answers(NEXT, decoding, temperature=temperature)
    wanted, alone = answers(NEXT, {"mode": "ar"}, temperature=temperature)
    assert tokens(found) == tokens(wanted)
    assert engine.metrics.steps == alone.metrics.steps


def test_the_looser_the_bound_the_fewer_the_forwards():
    steps = []
    for bound in (0.0, 0.1, 0.3, 0.6, 0.96):
        decoding = {"mode": "diffusion", "width": 6, "evo": {**MASKS, "jump_uncertainty": bound}}
        found, engine = answers(NEXT, decoding, vocabulary=50)
        assert all(len(got) == 21 for got in tokens(found).values())
        steps.append(engine.metrics.steps)
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < steps[0] / 3


@pytest.mark.parametrize("rule", [NEXT, OWN], ids=["next", "own"])
@pytest.mark.parametrize("order", ["any", "left_to_right"])
def test_from_left_to_right_nothing_is_filled_behind_an_open_position(rule, order):
    engine = hash_engine(rule, num_pages=64, context=64, eos=(), max_rows=2048)
    evo = {**MASKS, "jump_uncertainty": 0.5, "order": order}
    decoding = {"mode": "diffusion", "width": 6, "evo": evo}
    engine.submit(request("one", (3, 1, 4), max_tokens=30, decoding=decoding, temperature=1.0))
    num_behind = 0
    while engine.has_work:
        engine.step()
        table = engine.table
        canvas = table.is_open[0, int(table.final[0]) : int(table.canvas_stop[0])]
        num_behind += int((~canvas).sum())
    assert (num_behind == 0) == (order == "left_to_right")


def test_what_a_checkpoint_says_of_its_latents_holds_where_a_request_is_silent():
    own = LatentDefaults(**MASKS, jump_uncertainty=0.4)
    rule = latent_rule(replace(CONFIG, defaults=own))
    wanted, _ = answers(
        NEXT, {"mode": "diffusion", "evo": {**MASKS, "jump_uncertainty": 0.4}}, vocabulary=50
    )
    silent, _ = answers(rule, {"mode": "diffusion"}, vocabulary=50)
    assert tokens(silent) == tokens(wanted)
    named, engine = answers(
        rule, {"mode": "diffusion", "evo": {"jump_uncertainty": 0.0}}, vocabulary=50
    )
    alone, of_ar = answers(NEXT, {"mode": "ar"}, vocabulary=50)
    assert tokens(named) == tokens(alone)
    assert engine.metrics.steps == of_ar.metrics.steps


@pytest.mark.parametrize("rule", [NEXT, OWN], ids=["next", "own"])
def test_one_position_is_forced_when_nothing_becomes_certain(rule):
    evo = {
        "delta_min": 0.0,
        "delta_max": 0.0,
        "finalize_uncertainty": 0.0,
        "jump_uncertainty": 0.0,
        "max_refine_steps": 3,
    }
    engine = hash_engine(rule, num_pages=64, context=64, eos=(), max_rows=2048)
    decoding = {"mode": "diffusion", "width": 6, "evo": evo}
    found = run_all(engine, request("one", (3, 1), max_tokens=12, decoding=decoding))
    assert len(found["one"][0]) == 12
    # A settled row draws the first position of a next-speaking canvas in every step.
    assert engine.metrics.steps == (12 if rule is NEXT else 36)


def test_a_canvas_of_one_position_is_the_sampler_of_ar():
    for temperature in (0.0, 1.0):
        decoding = {"mode": "diffusion", "width": 1}
        found, _ = answers(NEXT, decoding, temperature=temperature)
        wanted, _ = answers(NEXT, {"mode": "ar"}, temperature=temperature)
        assert tokens(found) == tokens(wanted)


def test_all_modes_share_a_step():
    engine = hash_engine(NEXT, num_pages=256, context=64, eos=(), max_rows=2048, vocabulary=FEW)
    modes = ("ar", "speculative", "diffusion", "auto")
    alone = {}
    for i, mode in enumerate(modes):
        single = hash_engine(NEXT, num_pages=64, context=64, eos=(), max_rows=2048, vocabulary=FEW)
        one = request(mode, (1, 2), max_tokens=20, decoding={"mode": mode}, temperature=1.0, seed=i)
        alone |= tokens(run_all(single, one))
        engine.submit(one)
    found = run_all(engine)
    assert tokens(found) == alone


def test_auto_repeats_what_the_text_repeats_without_drafting():
    class Periodic(HashRunner):
        def run(self, step, spec):
            scores = super().run(step, spec)
            token = step.scored.positions % 7
            # Drafts are never right, so that the balance gives them up.
            token = np.where(step.scored.kinds == RowKind.DRAFT, 7, token)
            return replace(scores, token=token, argmax=token)

    engine = hash_engine(NEXT, num_pages=512, context=256, vocabulary=9, eos=())
    engine.runner = Periodic(512, engine.table.page_size)
    one = request("a", list(range(7)), max_tokens=150, temperature=0.0)
    found, _ = run_all(engine, one)["a"]
    assert found == [position % 7 for position in range(7, 157)]
    assert engine.metrics.tokens_verified > 110
    assert engine.metrics.steps < 40


def test_prompt_lookup_and_predictions_are_verified_beside_a_canvas():
    for decoding in ({"mode": "speculative", "drafts": "ngram", "width": 4}, {"drafts": "ngram"}):
        found, engine = answers(NEXT, decoding, temperature=1.0, max_tokens=40)
        wanted, alone = answers(NEXT, {"mode": "ar"}, temperature=1.0, max_tokens=40)
        assert tokens(found) == tokens(wanted)
        assert engine.metrics.proposals_accepted > 0
        assert engine.metrics.steps < alone.metrics.steps
