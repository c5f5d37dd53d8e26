"""Counts of penalties are those of the tokens that stand in the answer, whatever happened to it."""

from collections import Counter

import numpy as np
import pytest

from sampler.border.request import TokenLogprob
from sampler.state.notes import SeatNotes
from sampler.state.sequence_table import SeatState, Stage
from tests.sampler.test_canvas_engine import BLOCK, EDITED, RULES
from tests.sampler.test_latent_engine import NEXT
from tests.tiny import CAUSAL_RULE, hash_engine, request

NARROWING = {"t_ar": 0.5, "t_plan": 0.9, "finalize_uncertainty": 0.0, "jump_uncertainty": 0.4}
CASES = {
    "causal": (CAUSAL_RULE, None),
    "edited": (EDITED, None),
    "remasked": (BLOCK, {"remask": 0.6, "steps": 4, "block_length": 8, "rule": "quota"}),
    "narrowed": (NEXT, {"mode": "diffusion", "width": 8, "evo": NARROWING}),
    "handed_to_ar": (RULES["two_mode_diffusion"][0], {"mode": "diffusion", "max_steps": 1}),
    "verified": RULES["two_mode_speculative"],
    "checked": RULES["ranked_speculative"],
    "ranked": RULES["ranked"],
}


def standing(table, seat):
    """How often each token stands in the answer; what is only proposed does not."""
    stop = table.canvas_stop[seat] if table.stage[seat] != Stage.VERIFY else table.final[seat]
    ranks = np.arange(stop)
    positions = ranks if table.order is None else table.order[seat, :stop]
    filled = positions[~table.is_open[seat, positions]]
    return Counter(table.tokens[seat, filled[filled >= table.prompt_length[seat]]].tolist())


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_answer_after_every_step(name):
    rule, decoding = CASES[name]
    engine = hash_engine(rule, eos=(), max_rows=256)
    for number in range(4):
        engine.submit(
            request(
                str(number),
                [5, 6, 7 + number],
                max_tokens=24,
                decoding=decoding,
                seed=number,
                temperature=1.0,
                frequency_penalty=0.5,
            )
        )
    drifted = []
    while engine.has_work:
        engine.step()
        table = engine.table
        drifted += [
            (engine.metrics.steps, seat)
            for seat in np.flatnonzero(table.state == SeatState.RUNNING).tolist()
            if table.notes[seat].token_counts != standing(table, seat)
        ]
    assert drifted == []
    assert engine.metrics.generation_tokens == 4 * 24


def test_a_position_counts_once_however_often_it_is_filled():
    notes = SeatNotes(counts_tokens=True)
    notes.fill(7, 3)
    notes.fill(8, 3)
    notes.fill(7, 4)
    assert notes.token_counts == {3: 1, 4: 1}


def test_what_is_taken_back_leaves_nothing():
    notes = SeatNotes(counts_tokens=True)
    notes.fill(7, 3)
    notes.logprobs[7] = TokenLogprob(token_id=3, logprob=-1.0)
    notes.take_back(7)
    notes.take_back(9)
    assert not notes.token_counts
    assert not notes.logprobs


def test_without_penalties_nothing_is_counted():
    notes = SeatNotes()
    notes.fill(7, 3)
    notes.take_back(7)
    assert not notes.token_counts
