import pytest

from tests.bench.roofline import fold_time, product_time, score_row


def test_a_product_of_few_rows_reads_and_of_many_multiplies():
    reading = product_time(1, 10_000, 4096)
    assert product_time(16, 10_000, 4096) == pytest.approx(reading, rel=0.01)
    one, two = (product_time(rows, 10_000, 4096) for rows in (1024, 2048))
    assert two == pytest.approx(2 * one)


def test_a_fold_is_bound_by_its_instructions_or_by_the_cache():
    assert fold_time(256, 2048, 100) == pytest.approx(2 * fold_time(256, 2048, 50))
    assert fold_time(256, 2048, 1) == fold_time(256, 2048, 2)


def test_all_chunks_of_the_vocabulary_count():
    row = score_row(256, 151_936, 4096, 90)
    assert row["chunks"] == 10
    # The whole product at the matmul rate, whatever the chunks.
    assert row["product us"] == pytest.approx(2 * 256 * 151_936 * 4096 / 7.9e14 * 1e6)
