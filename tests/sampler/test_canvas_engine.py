"""Every kind of family over the network of hashes: what a batch, a cut, a preemption or a prefix
hit may not change."""

from dataclasses import replace

import numpy as np
import pytest

from sampler.border.request import FinishReason, TokenKind
from tests.tiny import EOS, VOCABULARY, check_engine, collect, hash_engine, request, run_all
from weights.families import (
    AcceptanceDefaults,
    DraftLimit,
    FamilyRule,
    Grid,
    Order,
    Settle,
    Speaks,
)

MASK = VOCABULARY - 1
BLOCK = FamilyRule(
    modes=("diffusion",),
    settle=Settle.BLOCK,
    draft_limit=DraftLimit.CANVAS_END,
    settled_speaks_of=Speaks.OWN,
    draft_speaks_of=Speaks.OWN,
    grid=Grid.ABSOLUTE,
    block_length=4,
    mask_token_id=MASK,
    acceptance=AcceptanceDefaults(rule="threshold", confidence=0.6),
)
EDITED = replace(
    BLOCK,
    acceptance=AcceptanceDefaults(
        rule="threshold", confidence=0.5, edit_confidence=0.7, max_edit_steps=3
    ),
)
SEEDED = replace(
    BLOCK,
    settled_speaks_of=Speaks.NEXT,
    draft_speaks_of=Speaks.NEXT,
    seeded=True,
    block_length=8,
    sub_block_length=4,
)
TWO_MODE = replace(
    BLOCK,
    modes=("ar", "diffusion", "speculative"),
    settle=Settle.CAUSAL,
    settled_speaks_of=Speaks.NEXT,
    grid=Grid.PROMPT,
    seeded=True,
    block_length=6,
)
RANKED = replace(
    BLOCK,
    modes=("ar", "diffusion", "speculative"),
    settle=Settle.CAUSAL,
    order=Order.ANY,
    draft_limit=DraftLimit.OWN_ENTRY,
    settled_speaks_of=Speaks.NOTHING,
    grid=Grid.NONE,
    block_length=None,
    suppresses_mask=True,
    can_infill=True,
    acceptance=AcceptanceDefaults(rule="rank_order", alpha_0=0.5, steps=4),
)
WHOLE = replace(
    BLOCK,
    settle=Settle.NEVER,
    draft_limit=DraftLimit.EVERYTHING,
    settled_speaks_of=Speaks.NOTHING,
    grid=Grid.NONE,
    block_length=None,
    sub_block_length=4,
    can_infill=True,
)
WINDOW = replace(
    BLOCK,
    settle=Settle.CAUSAL,
    draft_limit=DraftLimit.OWN_ENTRY,
    settled_speaks_of=Speaks.NOTHING,
    grid=Grid.NONE,
    block_length=None,
    width=5,
    acceptance=AcceptanceDefaults("entropy_distance", entropy_bound=1.2, distance_weight=0.05),
)
RULES = {
    "window": (WINDOW, None),
    "block": (BLOCK, None),
    "edited": (EDITED, None),
    "seeded": (SEEDED, None),
    "two_mode_ar": (TWO_MODE, {"mode": "ar"}),
    "two_mode_diffusion": (TWO_MODE, {"mode": "diffusion"}),
    "two_mode_speculative": (TWO_MODE, {"mode": "speculative"}),
    "two_mode_auto": (TWO_MODE, {"mode": "auto"}),
    "ranked": (RANKED, {"mode": "diffusion"}),
    "ranked_ar": (RANKED, {"mode": "ar"}),
    "ranked_adaptive": (RANKED, {"mode": "diffusion", "confidence": 0.6, "rule": "threshold"}),
    "ranked_windows": (RANKED, {"mode": "diffusion", "block_length": 5}),
    "ranked_auto": (RANKED, {"mode": "auto"}),
    "ranked_speculative": (RANKED, {"mode": "speculative", "width": 3}),
    "whole": (WHOLE, None),
    "whole_prefix_cache": (WHOLE, {"cache": "prefix"}),
    "whole_dual_cache": (WHOLE, {"cache": "dual"}),
}
EXACT = [name for name in RULES if name not in ("whole_prefix_cache", "whole_dual_cache")]
PROMPTS = {
    "a": [5, 6, 7],
    "b": list(range(3, 30)),
    "c": [9],
    "d": [5, 6, MASK, 8, 9, 10, 11, 12],
    "e": [*range(3, 30), 1, 1, 1],
}
LENGTHS = {"a": 11, "b": 8, "c": 1, "d": 13, "e": 6}


def requests_for(decoding, names=PROMPTS, **params):
    return [
        request(n, PROMPTS[n], max_tokens=LENGTHS[n], decoding=decoding, seed=5, **params)
        for n in names
    ]


def answers_alone(rule, decoding, **params):
    return {
        one.id: run_all(hash_engine(rule), one)[one.id][0]
        for one in requests_for(decoding, **params)
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_a_batch_gives_each_request_the_tokens_it_gets_alone(name, temperature):
    rule, decoding = RULES[name]
    params = {"temperature": temperature}
    answers = run_all(hash_engine(rule), *requests_for(decoding, **params))
    assert {n: answers[n][0] for n in PROMPTS} == answers_alone(rule, decoding, **params)


@pytest.mark.parametrize("name", RULES)
def test_every_answer_has_the_length_asked_for_and_no_mask(name):
    rule, decoding = RULES[name]
    answers = run_all(hash_engine(rule), *requests_for(decoding))
    assert {n: len(answers[n][0]) for n in PROMPTS} == LENGTHS
    assert all(MASK not in tokens for tokens, _ in answers.values())


@pytest.mark.parametrize("max_rows", [40, 53])
@pytest.mark.parametrize("name", EXACT)
def test_cutting_prompts_changes_nothing(name, max_rows):
    rule, decoding = RULES[name]
    engine = hash_engine(rule, max_rows=max_rows)
    answers = run_all(engine, *requests_for(decoding))
    assert {n: answers[n][0] for n in PROMPTS} == answers_alone(rule, decoding)


@pytest.mark.parametrize("num_pages", [13, 17])
@pytest.mark.parametrize("name", EXACT)
def test_preemption_loses_nothing(name, num_pages):
    rule, decoding = RULES[name]
    engine = hash_engine(rule, num_pages=num_pages)
    answers = run_all(engine, *requests_for(decoding))
    assert {n: answers[n][0] for n in PROMPTS} == answers_alone(rule, decoding)


@pytest.mark.parametrize("name", [n for n in EXACT if n != "whole"])
def test_a_prefix_hit_changes_nothing(name):
    rule, decoding = RULES[name]
    engine = hash_engine(rule)
    run_all(engine, *requests_for(decoding, names=["b"]))
    answers = run_all(engine, *requests_for(decoding, names=["e"]))
    assert answers["e"][0] == answers_alone(rule, decoding)["e"]
    assert answers["e"][1][-1].stats.cached_tokens >= 20


def test_bidirectional_texts_share_no_page():
    engine = hash_engine(WHOLE)
    run_all(engine, *requests_for(None, names=["b"]))
    answers = run_all(engine, *requests_for(None, names=["e"]))
    assert answers["e"][1][-1].stats.cached_tokens == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("width", [None, 2, 3, 12])
def test_speculative_decoding_gives_exactly_the_autoregressive_tokens(width, temperature):
    params = {"temperature": temperature}
    plain = run_all(hash_engine(TWO_MODE), *requests_for({"mode": "ar"}, **params))
    decoding = {"mode": "speculative", "block_length": width}
    verified = run_all(hash_engine(TWO_MODE), *requests_for(decoding, **params))
    assert {n: plain[n][0] for n in PROMPTS} == {n: verified[n][0] for n in PROMPTS}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_any_order_speculation_gives_what_decoding_in_that_order_one_by_one_gives(
    width, temperature
):
    params = {"temperature": temperature}
    # So many steps that the schedule never decodes two positions at once.
    one_by_one = {"mode": "diffusion", "alpha_0": 0.0}
    plain = run_all(hash_engine(RANKED), *requests_for(one_by_one, **params))
    decoding = {"mode": "speculative", "alpha_0": 0.0, "width": width}
    verified = run_all(hash_engine(RANKED), *requests_for(decoding, **params))
    assert {n: plain[n][0] for n in PROMPTS} == {n: verified[n][0] for n in PROMPTS}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_order_speculation_does_not_depend_on_its_width(temperature):
    answers = [
        run_all(
            hash_engine(RANKED),
            *requests_for(
                {"mode": "speculative", "alpha_0": 0.7, "width": width}, temperature=temperature
            ),
        )
        for width in (1, 4, 9)
    ]
    tokens = [{n: one[n][0] for n in PROMPTS} for one in answers]
    assert tokens[0] == tokens[1] == tokens[2]


def test_penalties_see_the_proposals_before_a_position():
    params = {"frequency_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 3}
    plain = run_all(hash_engine(TWO_MODE), *requests_for({"mode": "ar"}, **params))
    verified = run_all(hash_engine(TWO_MODE), *requests_for({"mode": "speculative"}, **params))
    assert {n: plain[n][0] for n in PROMPTS} == {n: verified[n][0] for n in PROMPTS}


def test_all_modes_share_one_batch():
    modes = ("ar", "diffusion", "speculative")
    alone = {
        m: run_all(hash_engine(TWO_MODE), request(m, PROMPTS["b"], decoding={"mode": m}))[m][0]
        for m in modes
    }
    engine = hash_engine(TWO_MODE)
    mixed = [request(m, PROMPTS["b"], decoding={"mode": m}) for m in modes]
    answers = run_all(engine, *mixed)
    assert {m: answers[m][0] for m in modes} == alone
    assert engine.metrics.rows_drafted > 0
    assert engine.metrics.rows_verified > 0


def test_a_finished_block_settles_in_the_step_that_drafts_the_next():
    engine = hash_engine(replace(BLOCK, acceptance=AcceptanceDefaults("threshold", 0.01)))
    run_all(engine, request("a", [1] * 8, max_tokens=12, decoding=None))
    assert engine.runner.row_log == [8 + 4, 4 + 4, 4 + 4]


def test_the_mask_token_in_a_prompt_is_ordinary_text():
    other = [5, 6, 7, 8, 9, 10, 11, 12]
    first = run_all(hash_engine(BLOCK), request("d", PROMPTS["d"], max_tokens=9))["d"][0]
    second = run_all(hash_engine(BLOCK), request("d", other, max_tokens=9))["d"][0]
    assert first != second


@pytest.mark.parametrize("name", ["block", "seeded", "ranked", "whole", "two_mode_diffusion"])
def test_an_answer_ends_at_its_first_stop_token(name):
    rule, decoding = RULES[name]
    full = run_all(hash_engine(rule), request("a", [5, 6, 7], max_tokens=16, decoding=decoding))
    stop = full["a"][0][6]
    engine = hash_engine(rule)
    one = request("a", [5, 6, 7], max_tokens=16, decoding=decoding, stop_token_ids=(stop,))
    tokens, deltas = run_all(engine, one)["a"]
    assert tokens == full["a"][0][: full["a"][0].index(stop) + 1]
    assert deltas[-1].finish is FinishReason.STOP
    assert engine.scheduler.pool.num_held == 0


@pytest.mark.parametrize("name", RULES)
def test_an_end_of_text_in_the_prompt_ends_nothing(name):
    """Published loops that look for it from position 0 on cut such answers to nothing."""
    rule, decoding = RULES[name]
    one = request("a", [5, EOS, 6, EOS, 7], max_tokens=8, decoding=decoding)
    full = run_all(hash_engine(rule), one)["a"][0]
    stops = replace(one, params=replace(one.params, ignore_eos=False))
    tokens, deltas = run_all(hash_engine(rule), stops)["a"]
    is_stopped = EOS in full
    assert tokens == (full[: full.index(EOS) + 1] if is_stopped else full)
    assert deltas[-1].finish is (FinishReason.STOP if is_stopped else FinishReason.LENGTH)


@pytest.mark.parametrize("name", RULES)
def test_a_trace_has_every_token_once_and_its_kind(name):
    rule, decoding = RULES[name]
    traced = {**(decoding or {}), "trace": True}
    _, deltas = run_all(hash_engine(rule), *requests_for(traced, names=["a"]))["a"]
    trace = [entry for delta in deltas for entry in delta.trace]
    stats = deltas[-1].stats
    kinds = [entry.kind for entry in trace]
    assert len(trace) == LENGTHS["a"]
    assert kinds.count(TokenKind.AR) == stats.ar_tokens
    assert kinds.count(TokenKind.DIFFUSION) == stats.diffusion_tokens
    assert kinds.count(TokenKind.VERIFIED) == stats.verified_tokens


@pytest.mark.parametrize("name", RULES)
def test_logprobs_belong_to_the_tokens_sent(name):
    rule, decoding = RULES[name]
    answers = run_all(hash_engine(rule), *requests_for(decoding, logprobs=1))
    for tokens, deltas in answers.values():
        assert [e.token_id for d in deltas for e in d.logprobs] == tokens


@pytest.mark.parametrize("name", ["block", "seeded", "whole"])
def test_remasking_reopens_tokens_and_still_ends(name):
    rule, own = RULES[name]
    decoding = {**(own or {}), "remask": 0.5, "rule": "first_hitting", "steps": 24}
    engine = hash_engine(rule)
    answers = run_all(engine, *requests_for(decoding))
    assert {n: len(answers[n][0]) for n in PROMPTS} == LENGTHS
    assert all(MASK not in tokens for tokens, _ in answers.values())
    assert engine.metrics.tokens_revised > 0
    assert {n: answers[n][0] for n in PROMPTS} == answers_alone(rule, decoding)


@pytest.mark.parametrize(
    ("name", "opens"), [("block", True), ("whole", True), ("two_mode_ar", False)]
)
def test_pages_of_open_canvases_are_counted_until_they_close(name, opens):
    rule, decoding = RULES[name]
    engine = hash_engine(rule)
    for one in requests_for(decoding):
        engine.submit(one)
    most = 0
    while engine.has_work:
        engine.step()
        assert 0 <= engine.metrics.pages_open <= engine.metrics.pages_used
        most = max(most, engine.metrics.pages_open)
    assert (most > 0) is opens
    assert engine.metrics.pages_open == 0


@pytest.mark.parametrize("name", RULES)
def test_frames_show_the_canvas_filling_and_end_with_the_answer(name):
    rule, decoding = RULES[name]
    framed = {**(decoding or {}), "frames": True}
    tokens, deltas = run_all(hash_engine(rule), *requests_for(framed, names=["d"]))["d"]
    frames = [delta.frame for delta in deltas if delta.frame is not None]
    shown = {p.offset: p.token_id for frame in frames for p in frame.positions}
    assert [shown[offset] for offset in range(len(tokens))] == tokens
    assert all(0 < p.probability <= 1 for frame in frames for p in frame.positions)
    assert [frame.step for frame in frames] == sorted(frame.step for frame in frames)
    plain = run_all(hash_engine(rule), *requests_for(decoding, names=["d"]))["d"][0]
    assert tokens == plain


@pytest.mark.parametrize("name", ["ranked", "ranked_speculative", "whole"])
def test_infill_keeps_to_its_gap_and_sees_the_suffix(name):
    rule, decoding = RULES[name]
    engine = hash_engine(rule)
    one = request("x", [5, 6], max_tokens=7, suffix=[8, 9, 10], decoding=decoding, seed=1)
    other = request("y", [5, 6], max_tokens=7, suffix=[8, 9, 11], decoding=decoding, seed=1)
    answers = run_all(engine, one, other)
    assert len(answers["x"][0]) == 7
    assert answers["x"][0] != answers["y"][0]
    assert answers["x"][1][-1].finish is FinishReason.LENGTH


def test_a_model_that_cannot_infill_says_so():
    answers = run_all(hash_engine(BLOCK), request("x", [5], suffix=[6]))
    assert answers["x"][1][0].finish is FinishReason.ERROR
    assert "suffix" in answers["x"][1][0].error


@pytest.mark.parametrize(
    ("decoding", "word"),
    [
        ({"mode": "ar"}, "diffusion"),
        ({"block_length": 0}, "block_length"),
        ({"confidence": 1.5}, "confidence"),
        ({"rule": "best"}, "threshold"),
        ({"width": 100_000}, "width"),
        ({"entropy_bound": 0.1, "margin": 0.1}, "combined"),
        ({"cache": "dual"}, "cache"),
        ({"alpha_0": -1}, "alpha_0"),
        ({"preference": "taste"}, "preference"),
    ],
)
def test_a_decoding_that_cannot_be_done_is_refused_by_name(decoding, word):
    answers = run_all(hash_engine(BLOCK), request("x", [5], decoding=decoding))
    assert answers["x"][1][0].finish is FinishReason.ERROR
    assert word in answers["x"][1][0].error


@pytest.mark.parametrize(
    "decoding",
    [
        {"rule": "quota", "quota": 2},
        {"rule": "quota", "preference": "margin", "steps": 2},
        {"rule": "left_to_right"},
        {"rule": "first_hitting"},
        {"entropy_bound": 0.5},
        {"factor": 1.2},
        {"margin": 0.3},
        {"rule": "threshold_or_quota", "confidence": 0.8, "steps": 4},
        {"rule": "time_quota", "steps": 3},
        {"rule": "threshold_in_quota", "confidence": 0.7, "steps": 3},
        {"rule": "entropy_distance", "entropy_bound": 0.6, "distance_weight": 0.05},
        {"confidence": 1.0, "max_steps": 2},
    ],
)
@pytest.mark.parametrize("name", ["block", "whole", "seeded"])
def test_every_rule_finishes_every_canvas(name, decoding):
    rule, own = RULES[name]
    engine = hash_engine(rule)
    answers = run_all(engine, *requests_for({**(own or {}), **decoding}))
    assert {n: len(answers[n][0]) for n in PROMPTS} == LENGTHS


def test_a_fixed_quota_needs_the_steps_of_its_closed_form():
    engine = hash_engine(BLOCK)
    run_all(engine, request("a", [1] * 4, max_tokens=16, decoding={"quota": 2}))
    assert engine.metrics.steps == 16 // 2


def test_first_hitting_needs_one_step_a_token_as_storing_rides_along():
    engine = hash_engine(BLOCK)
    run_all(engine, request("a", [1] * 4, max_tokens=16, decoding={"rule": "first_hitting"}))
    assert engine.metrics.steps == 16


def test_the_steps_of_a_ranked_answer_follow_the_published_expectation():
    length, steps, alpha_0 = 64, 8, 0.5
    engine = hash_engine(RANKED, num_pages=640, context=80, max_sequences=32, max_rows=2048)
    decoding = {"mode": "diffusion", "alpha_0": alpha_0, "steps": steps}
    many = [request(str(i), [1], max_tokens=length, decoding=decoding, seed=i) for i in range(32)]
    answers = run_all(engine, *many, check=False)
    expected = steps * (1 - (1 - alpha_0 / steps) ** length) + (1 - alpha_0) * length
    mean = np.mean([deltas[-1].stats.steps for _, deltas in answers.values()])
    assert mean == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", RULES)
def test_cancelling_in_the_middle_gives_back_every_page(name):
    rule, decoding = RULES[name]
    engine = hash_engine(rule)
    for one in requests_for(decoding):
        engine.submit(one)
    collect([engine.step() for _ in range(2)])
    for one in PROMPTS:
        engine.cancel(one)
        check_engine(engine)
    assert engine.scheduler.pool.num_held == 0
    assert not engine.has_work
