"""Frames of deltas: what they say of drafts, proposals and open positions of every family."""

import pytest

from sampler.border.request import FrameState, TokenKind
from tests.sampler.test_canvas_engine import RULES, requests_for
from tests.sampler.test_latent_engine import FEW, NEXT
from tests.tiny import hash_engine, request, run_all

LATENT = {"mode": "diffusion", "width": 6, "evo": {"delta_min": 0.1, "delta_max": 0.3}}
VERIFIED = {"mode": "speculative", "width": 4}
DRAFTING = ["two_mode_speculative", "ranked_speculative", "latent"]


def frames_of(rule, decoding, **options):
    """The frames of one answer, and its tokens."""
    framed = {**(decoding or {}), "frames": True}
    one = request("one", (1, 2, 0, 1), max_tokens=30, decoding=framed, temperature=1.0, seed=3)
    engine = hash_engine(rule, eos=(), max_rows=2048, **options)
    tokens, deltas = run_all(engine, one)["one"]
    return [delta.frame for delta in deltas if delta.frame is not None], tokens


def speculative(name):
    if name == "latent":
        return frames_of(NEXT, VERIFIED | {"drafts": "canvas"}, vocabulary=FEW)
    rule, decoding = RULES[name]
    return frames_of(rule, decoding)


@pytest.mark.parametrize("name", RULES)
def test_what_is_final_in_a_frame_stays_as_it_is(name):
    rule, decoding = RULES[name]
    framed = {**(decoding or {}), "frames": True}
    tokens, deltas = run_all(hash_engine(rule), *requests_for(framed, names=["d"]))["d"]
    final = [
        position
        for delta in deltas
        if delta.frame is not None
        for position in delta.frame.positions
        if position.state is FrameState.FINAL and position.offset < len(tokens)
    ]
    assert final
    assert [position.token_id for position in final] == [tokens[p.offset] for p in final]


@pytest.mark.parametrize("name", DRAFTING)
def test_proposals_are_drafts_until_they_are_verified(name):
    frames, tokens = speculative(name)
    drafts = [
        position
        for frame in frames
        for position in frame.positions
        if position.state is FrameState.DRAFT
    ]
    refused = [p for p in drafts if p.offset < len(tokens) and p.token_id != tokens[p.offset]]
    assert refused
    assert {position.kind for position in drafts} == {TokenKind.VERIFIED}
    assert all(0 < position.probability <= 1 for position in drafts)


def test_a_proposal_that_was_looked_up_has_no_probability():
    frames, _ = frames_of(NEXT, VERIFIED, vocabulary=FEW)
    proposed = [p.probability for f in frames for p in f.positions if p.state is FrameState.DRAFT]
    assert 0 in proposed
    assert max(proposed) > 0


def test_open_positions_of_a_latent_canvas_have_their_progress():
    frames, _ = frames_of(NEXT, LATENT)
    for frame in frames:
        canvas = set(range(frame.base, frame.base + frame.length))
        filled = {position.offset for position in frame.positions}
        assert {offset for offset, _ in frame.progress} == canvas - filled
    seen = [t for frame in frames for _, t in frame.progress]
    assert max(seen) == 1
    assert 0 < min(seen) < 0.8


@pytest.mark.parametrize("name", ["block", "two_mode_ar", "ranked"])
def test_other_canvases_have_none(name):
    rule, decoding = RULES[name]
    frames, _ = frames_of(rule, decoding)
    assert {frame.progress for frame in frames} == {()}
