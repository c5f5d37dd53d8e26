"""What the balance must reach against every fixed choice, on a part of the benchmark's sweep."""

import pytest

from tests.bench.bench_balance import compared, point

POINTS = [
    ("easy", "memory_bound", 1),
    ("easy", "memory_bound", 16),
    ("easy", "memory_bound", 128),
    ("easy", "compute_bound", 4),
    ("mixed", "memory_bound", 1),
    ("mixed", "memory_bound", 16),
    ("mixed", "memory_bound", 128),
    ("mixed", "compute_bound", 16),
    ("hard", "memory_bound", 1),
    ("hard", "memory_bound", 64),
    ("tail", "memory_bound", 1),
    ("tail", "memory_bound", 128),
    ("recorded", "memory_bound", 1),
    ("recorded", "memory_bound", 32),
    ("recorded", "compute_bound", 4),
]


@pytest.fixture(scope="module")
def lines():
    return {key: compared(*key, point(*key, num_tokens=max(8000, 250 * key[2]))) for key in POINTS}


@pytest.mark.parametrize("key", POINTS, ids=str)
def test_auto_is_hardly_behind_the_best_fixed_policy_anywhere(lines, key):
    assert lines[key]["of_best_fixed"] >= 0.97
    assert lines[key]["of_ar"] >= 0.97


@pytest.mark.parametrize("concurrency", [1, 16])
def test_auto_is_well_ahead_on_mixed_texts(lines, concurrency):
    assert lines["mixed", "memory_bound", concurrency]["of_best_fixed"] >= 1.3


def test_a_tail_that_does_not_converge_costs_fewer_steps(lines):
    assert lines["tail", "memory_bound", 1]["steps_saved"] >= 0.25


def test_a_saturated_machine_runs_hardly_a_row_more_than_ar(lines):
    assert lines["mixed", "compute_bound", 16]["of_ar"] >= 0.99
