import numpy as np
import pytest

from sampler.balance.acceptance_model import AcceptanceModel

WIDTHS = (0, 2, 4, 8, 16, 32)
ONE = np.array([0])


def model_of(num_seats=1, *, learns=True):
    model = AcceptanceModel(num_seats=num_seats, widths=WIDTHS, learns=learns)
    for seat in range(num_seats):
        model.seat(seat)
    return model


def rounds(model, seats, hazard, *, offered=15, uncertainty=0.05, num_rounds=1, seed=0):
    """Rounds of texts whose drafts are confirmed with probability `hazard` by distance."""
    generator = np.random.default_rng(seed)
    hazard = np.broadcast_to(hazard, (offered,))
    for _ in range(num_rounds):
        hits = generator.random((seats.size, offered)) < hazard
        confirmed = np.where(hits.all(1), offered, hits.argmin(1))
        model.observe_rounds(
            seats, np.full(seats.size, offered), confirmed, np.full(seats.size, uncertainty)
        )


def geometric(hazard, width):
    """1 + the expected confirmed ones of width - 1 drafts."""
    return sum(hazard**d for d in range(width))


def test_a_round_gains_at_least_one_token_and_at_most_its_width():
    tokens = model_of().expected_tokens(ONE)[0]
    assert tokens[1:] == pytest.approx(np.maximum.accumulate(tokens[1:]))
    assert (tokens >= 1).all()
    assert (tokens[1:] <= WIDTHS[1:]).all()


@pytest.mark.parametrize("hazard", [0.1, 0.4, 0.7, 0.9])
def test_expectations_are_calibrated(hazard):
    seats = np.arange(32)
    model = model_of(32)
    rounds(model, seats, hazard, num_rounds=150)
    tokens = model.expected_tokens(seats).mean(0)
    assert tokens[1] == pytest.approx(geometric(hazard, 2), rel=0.1)
    assert tokens[3] == pytest.approx(geometric(hazard, 8), rel=0.12)


def test_hazards_that_fall_with_distance_are_learned():
    seats = np.arange(16)
    model = model_of(16)
    hazard = 0.95 * 0.9 ** np.arange(15)
    rounds(model, seats, hazard, num_rounds=600)
    survival = np.cumprod(hazard)
    tokens = model.expected_tokens(seats).mean(0)
    assert tokens[2] == pytest.approx(1 + survival[:3].sum(), rel=0.1)
    assert tokens[4] == pytest.approx(1 + survival.sum(), rel=0.1)


def test_drafts_behind_the_window_say_nothing():
    seats = np.arange(8)
    model = model_of(8)
    rounds(model, seats, 1.0, offered=3, num_rounds=50)
    assert model.expected_tokens(seats)[:, 3].min() > 5


def test_a_text_that_changes_is_noticed_in_a_few_rounds():
    model = model_of()
    rounds(model, ONE, 1.0, num_rounds=10)
    easy = model.expected_tokens(ONE)[0, 4]
    rounds(model, ONE, 0.0, num_rounds=3)
    hard = model.expected_tokens(ONE)[0, 4]
    assert easy > 8
    assert hard < 2.2


def test_uncertainty_says_nothing_before_it_was_seen_with_rounds():
    model = model_of(2)
    before = model.expected_tokens(np.arange(2))
    for _ in range(40):
        model.observe_singles(np.arange(2), np.array([0.0005, 0.6]))
    assert model.expected_tokens(np.arange(2)) == pytest.approx(before)


def test_how_uncertainty_goes_with_confirmation_is_learned():
    # The opposite of the prior: certain tokens are followed by misses.
    seats = np.arange(16)
    model = model_of(32)
    for number in range(200):
        rounds(model, seats, 0.0, uncertainty=0.0005, seed=number)
        rounds(model, seats + 16, 1.0, uncertainty=0.6, seed=number)
    model.seat(0)
    model.seat(1)
    for _ in range(5):
        model.observe_singles(np.array([0]), np.array([0.0005]))
        model.observe_singles(np.array([1]), np.array([0.6]))
    tokens = model.expected_tokens(np.array([0, 1]))[:, 3]
    assert tokens[1] > 1.5 * tokens[0]


def test_a_new_sequence_begins_with_what_texts_are_like():
    hard, easy = model_of(16), model_of(16)
    seats = np.arange(16)
    rounds(hard, seats, 0.1, num_rounds=200)
    rounds(easy, seats, 0.9, num_rounds=200)
    hard.seat(0)
    easy.seat(0)
    assert easy.expected_tokens(ONE)[0, 3] > 2 * hard.expected_tokens(ONE)[0, 3]


def test_a_model_that_does_not_learn_depends_on_the_sequence_alone():
    busy, alone = model_of(8, learns=False), model_of(8, learns=False)
    rounds(busy, np.arange(1, 8), 0.0, num_rounds=100)
    rounds(busy, ONE, 0.8, num_rounds=5)
    rounds(alone, ONE, 0.8, num_rounds=5)
    assert busy.expected_tokens(ONE).tolist() == alone.expected_tokens(ONE).tolist()


def test_the_report_says_what_was_learned():
    model = model_of(16)
    rounds(model, np.arange(16), 0.9, num_rounds=100)
    report = model.report()
    assert report.num_rounds == 1600
    assert sum(report.mix) == pytest.approx(1)
    assert report.mix[-3] + report.mix[-2] > 0.5
