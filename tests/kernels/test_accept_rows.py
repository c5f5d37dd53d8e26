import pytest
import torch

from kernels import (
    accept_distance,
    accept_entropy_bound,
    accept_factor,
    accept_margin,
    accept_quota,
    accept_threshold,
    edit_tokens,
    leading_run,
    rank_positions,
    remask_tokens,
    residual_draw,
    verify_drawn,
    verify_ratio,
)

OPEN = torch.tensor([[1, 1, 0, 1, 1]]).bool()
CONFIDENCE = torch.tensor([[0.5, 0.9, 1.0, 0.95, 0.1]])


def on(*positions):
    flags = torch.zeros(1, 5, dtype=torch.bool)
    flags[0, list(positions)] = True
    return flags


def test_positions_are_ranked_open_first_and_ties_leftmost():
    preference = torch.tensor([[0.5, 0.9, 2.0, 0.9, float("-inf")]])
    assert rank_positions(preference, OPEN).tolist() == [[2, 0, 4, 1, 3]]


@pytest.mark.parametrize(
    ("quota", "accepted"), [(0, on(3)), (1, on(3)), (2, on(1, 3)), (9, on(0, 1, 3, 4))]
)
def test_quota(quota, accepted):
    assert torch.equal(accept_quota(CONFIDENCE, OPEN, torch.tensor([quota])), accepted)


@pytest.mark.parametrize(
    ("threshold", "accepted"), [(0.9, on(1, 3)), (0.99, on(3)), (0.05, on(0, 1, 3, 4))]
)
def test_threshold_accepts_at_least_the_best(threshold, accepted):
    rule = accept_threshold(CONFIDENCE, OPEN, torch.tensor([threshold]))
    assert torch.equal(rule, accepted)


def test_margin():
    second = torch.tensor([[0.4, 0.1, 0.0, 0.05, 0.1]])
    rule = accept_margin(CONFIDENCE, second, OPEN, torch.tensor([0.85]))
    assert torch.equal(rule, on(3))


@pytest.mark.parametrize(
    ("factor", "accepted"),
    [(0.01, on(3)), (0.3, on(1, 3)), (2.0, on(0, 1, 3)), (5.0, on(0, 1, 3, 4))],
)
def test_factor(factor, accepted):
    assert torch.equal(accept_factor(CONFIDENCE, OPEN, torch.tensor([factor])), accepted)


@pytest.mark.parametrize(
    ("bound", "accepted"),
    [(0.0, on(3)), (0.1, on(1, 3)), (0.29, on(1, 3)), (0.31, on(0, 1, 3)), (9.0, on(0, 1, 3, 4))],
)
def test_entropy_bound_counts_the_earlier_ones(bound, accepted):
    entropy = torch.tensor([[0.5, 0.2, 0.0, 0.1, 2.0]])
    assert torch.equal(accept_entropy_bound(entropy, OPEN, torch.tensor([bound])), accepted)


@pytest.mark.parametrize("rows", [1, 40])
def test_entropy_bound_agrees_with_a_plain_loop(rows):
    entropy = 3 * torch.rand(rows, 33)
    is_open = torch.rand(rows, 33) < 0.6
    bound = 4 * torch.rand(rows)
    expected = torch.zeros_like(is_open)
    for row in range(rows):
        positions = sorted(is_open[row].nonzero()[:, 0].tolist(), key=lambda p: entropy[row, p])
        total = 0.0
        for place, position in enumerate(positions):
            if place and total > bound[row]:
                break
            expected[row, position] = True
            total += float(entropy[row, position])
    assert torch.equal(accept_entropy_bound(entropy, is_open, bound), expected)


def test_distance_prefers_the_left():
    entropy = torch.tensor([[0.3, 0.3, 0.0, 0.3, 0.1]])
    weight = torch.tensor([0.1])
    assert torch.equal(accept_distance(entropy, OPEN, torch.tensor([0.35]), weight), on(0))
    assert torch.equal(accept_distance(entropy, OPEN, torch.tensor([0.45]), weight), on(0, 1))
    assert torch.equal(accept_distance(entropy, OPEN, torch.tensor([0.0]), weight), on(0))


RULES = {
    "quota": lambda x, o: accept_quota(x, o, torch.zeros(len(x), dtype=torch.int64)),
    "threshold": lambda x, o: accept_threshold(x, o, torch.ones(len(x))),
    "margin": lambda x, o: accept_margin(x, x, o, torch.ones(len(x))),
    "factor": lambda x, o: accept_factor(x, o, torch.zeros(len(x))),
    "entropy_bound": lambda x, o: accept_entropy_bound(x, o, torch.zeros(len(x)) - 1),
    "distance": lambda x, o: accept_distance(x, o, torch.zeros(len(x)), torch.zeros(len(x))),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [1, 7, 32])
def test_every_rule_accepts_one_open_position_at_least_and_no_other(rule, width):
    preference, is_open = torch.rand(50, width), torch.rand(50, width) < 0.4
    accepted = RULES[rule](preference, is_open)
    assert not (accepted & ~is_open).any()
    assert torch.equal(accepted.any(1), is_open.any(1))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_an_empty_batch(rule):
    assert RULES[rule](torch.zeros(0, 4), torch.zeros(0, 4).bool()).shape == (0, 4)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_reads_anything_back_on_the_host(rule):
    """Tensors without memory: reading a number, or a shape that depends on one, fails."""
    with torch.device("meta"):
        accepted = RULES[rule](torch.rand(6, 9), torch.zeros(6, 9, dtype=torch.bool))
    assert (accepted.shape, accepted.dtype) == ((6, 9), torch.bool)


def test_no_verification_reads_anything_back_on_the_host():
    with torch.device("meta"):
        ids, flags = torch.zeros(6, 9, dtype=torch.int64), torch.zeros(6, 9, dtype=torch.bool)
        numbers, rows = torch.rand(6, 9), torch.rand(6)
        outputs = (
            verify_drawn(ids, ids, flags),
            verify_ratio(numbers, numbers, numbers, flags),
            edit_tokens(ids, ids, numbers, flags, rows),
            remask_tokens(numbers, flags, numbers, rows),
        )
        drawn = residual_draw(torch.rand(6, 50), torch.rand(6, 50), torch.rand(6, 50))
    assert all((one.shape, one.dtype) == ((6, 9), torch.bool) for one in outputs)
    assert drawn.shape == (6,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_accepts_the_same(rule):
    preference, is_open = torch.rand(50, 32), torch.rand(50, 32) < 0.4
    expected = RULES[rule](preference, is_open)
    with torch.device("cuda"):
        accepted = RULES[rule](preference.cuda(), is_open.cuda())
    assert torch.equal(accepted.cpu(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_padding_does_not_change_a_row(rule):
    preference, is_open = torch.rand(20, 9), torch.rand(20, 9) < 0.5
    padded = torch.full((20, 12), 5.0)
    padded[:, :9] = preference
    padded_open = torch.zeros(20, 12, dtype=torch.bool)
    padded_open[:, :9] = is_open
    accepted = RULES[rule](padded, padded_open)
    assert torch.equal(accepted[:, :9], RULES[rule](preference, is_open))
    assert not accepted[:, 9:].any()


def test_leading_run():
    assert torch.equal(leading_run(torch.tensor([[1, 1, 0, 1, 1]]).bool()), on(0, 1))


def test_drawn_verification_stops_at_the_first_difference():
    proposed = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]])
    drawn = torch.tensor([[5, 6, 0, 8, 9], [5, 6, 7, 8, 9]])
    is_proposed = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    verified = verify_drawn(proposed, drawn, is_proposed)
    assert verified.sum(1).tolist() == [2, 3]


def test_edit_changes_only_surely_different_tokens():
    token, current = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 9, 9, 9, 9]])
    confidence = torch.tensor([[0.9, 0.9, 0.4, 0.9, 0.9]])
    is_filled = torch.tensor([[1, 1, 1, 0, 1]]).bool()
    assert torch.equal(
        edit_tokens(token, current, confidence, is_filled, torch.tensor([0.5])), on(1, 4)
    )


def test_remask_share_follows_confidence():
    confidence = torch.tensor([[0.1, 0.9]]).expand(20_000, 2)
    is_filled = torch.ones(20_000, 2, dtype=torch.bool)
    remasked = remask_tokens(
        confidence, is_filled, torch.rand(20_000, 2), torch.full((20_000,), 0.5)
    )
    expected = 0.5 * torch.tensor([-0.1, -0.9]).softmax(0)
    torch.testing.assert_close(remasked.float().mean(0), expected, atol=0.015, rtol=0)


def test_nothing_filled_is_never_remasked():
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert not remask_tokens(torch.rand(2, 3), none, torch.zeros(2, 3), torch.ones(2)).any()


def test_ratio_acceptance_and_residual_give_the_target_distribution():
    count = 40_000
    target = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draft = torch.tensor([0.0, 1.0, 0.0, -0.5])
    p, q = target.softmax(0), draft.softmax(0)
    proposed = torch.multinomial(q, count, replacement=True)
    kept = verify_ratio(
        p[proposed][:, None],
        q[proposed][:, None],
        torch.rand(count, 1),
        torch.ones(count, 1, dtype=torch.bool),
    )
    gumbel = -torch.rand(count, 4).log().neg().log()
    residual = residual_draw(target.expand(count, 4), draft.expand(count, 4), gumbel)
    token = torch.where(kept[:, 0], proposed, residual)
    frequency = torch.bincount(token, minlength=4) / count
    torch.testing.assert_close(frequency, p, atol=0.012, rtol=0)


def test_residual_of_equal_distributions_is_the_target():
    logits = torch.tensor([[0.0, 2.0]])
    assert residual_draw(logits, logits, torch.zeros(1, 2)).tolist() == [1]
