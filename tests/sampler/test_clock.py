"""Clocks that jump: no answer changes, nothing divides by it, and the engine goes on."""

import math

import pytest

from tests.sampler.test_canvas_engine import RULES, requests_for
from tests.tiny import hash_engine, run_all


class JumpingClock:
    """Monotonic seconds that stand still, creep, or leap by days."""

    def __init__(self):
        self.now_s = 1000.0
        self._leaps = [0.0, 1e-9, 0.002, 86_400.0, 0.0, 1e7]
        self._count = 0

    def __call__(self):
        self.now_s += self._leaps[self._count % len(self._leaps)]
        self._count += 1
        return self.now_s


@pytest.mark.parametrize("name", ["two_mode_auto", "two_mode_ar", "block", "ranked_auto"])
def test_a_clock_that_jumps_changes_no_answer(name):
    rule, decoding = RULES[name]
    steady = run_all(hash_engine(rule), *requests_for(decoding))
    engine = hash_engine(rule, clock=JumpingClock())
    jumped = run_all(engine, *requests_for(decoding))
    assert {n: tokens for n, (tokens, _) in jumped.items()} == {
        n: tokens for n, (tokens, _) in steady.items()
    }
    assert engine.scheduler.pool.num_held == 0
    prices = (engine.metrics.step_fixed_s, engine.metrics.step_row_s, engine.metrics.step_entry_s)
    assert all(math.isfinite(price) and price >= 0 for price in prices)
    stats = [deltas[-1].stats for _, deltas in jumped.values()]
    assert all(each.scheduled_s <= each.first_token_s <= each.finished_s for each in stats)
