import pytest

from tests.bench.grid_simulator import (
    BATCHES,
    Heads,
    Span,
    ideal,
    makespan,
    over_ideal,
    programs,
    tile_time,
)

TARGET = 1.15
EVEN = ["256 rows, 4k each", "1 row, 128k", "64 canvases of 32, 2k"]


def test_programs_fill_places_in_their_order():
    assert makespan([1.0] * 8, places=4) == 2
    assert makespan([1.0, 1.0, 1.0, 3.0], places=2) == 4
    assert makespan([3.0, 1.0, 1.0, 1.0], places=2) == 3


@pytest.mark.parametrize("name", EVEN)
def test_even_batches_end_nearly_together(name):
    assert 1 <= over_ideal(BATCHES[name]) <= TARGET


def test_one_long_span_among_short_ones_is_the_last_to_end():
    """One number of splits for all spans; a work list would end this."""
    assert over_ideal(BATCHES["255 rows of 1k, one of 64k"]) > TARGET


def test_all_tiles_of_a_span_are_counted_once():
    heads = Heads(query=8, key_value=8)
    alone = ideal([Span(1, 6400)], heads)
    assert ideal([Span(1, 6400)] * 3, heads) == pytest.approx(3 * alone)
    times, resident = programs([Span(1, 6400)], heads)
    assert len(times) % heads.key_value == 0
    # 200 tiles of 32 entries in each head, and one more for every program to start.
    assert sum(times) == pytest.approx(
        resident * (200 * heads.key_value + len(times)) * tile_time(16, 32, heads.dim)
    )
