import os
import sys

import pytest
import torch

from kernels import AllowedTokens, ScoreSpec, SparseAdjust, quantize_int8, score_rows
from kernels.score.rows import score_rows_reference

WIDTH = 32
cpu_path = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="speaks of the CPU path",
)
MODULE = sys.modules["kernels.score.rows"]
# Float32 sums of a vocabulary in another order.
CLOSE = {"atol": 3e-5, "rtol": 3e-5}


def plain(rows, device="cpu", **changes):
    numbers = torch.arange(rows, device=device)
    spec = {
        "temperature": torch.zeros(rows, device=device),
        "seeds": 1000 + numbers,
        "positions": 3 * numbers,
        "purposes": torch.zeros(rows, dtype=torch.int32, device=device),
        "attempts": torch.zeros(rows, dtype=torch.int32, device=device),
    }
    return ScoreSpec(**(spec | changes))


def draw(rows, vocab, device="cpu", dtype=torch.float32):
    hidden = torch.randn(rows, WIDTH).to(dtype).to(device)
    head = torch.randn(vocab, WIDTH).to(dtype).to(device)
    return hidden, head


def mixed_temperature(rows, device):
    return torch.tensor([(0.0, 0.7, 1.0, 2.5)[row % 4] for row in range(rows)], device=device)


def sparse(rows, vocab, device, per_row=5):
    counts = [row % (per_row + 1) for row in range(rows)]
    counts = [min(count, vocab) for count in counts]
    starts = torch.tensor([0, *counts]).cumsum(0, dtype=torch.int32)
    ids = torch.cat([torch.randperm(vocab)[:count] for count in counts]).int()
    return SparseAdjust(
        starts.to(device),
        ids.to(device),
        (0.5 + torch.rand(len(ids))).to(device),
        (4 * torch.randn(len(ids))).to(device),
    )


def bitmask(rows, vocab, device, share=0.3):
    allowed = torch.rand(3, -(-vocab // 32) * 32) < share
    allowed[:, 0] = True
    weights = 2 ** torch.arange(32, dtype=torch.int64)
    words = (allowed.view(3, -1, 32) * weights).sum(2)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    index = torch.tensor([row % 4 - 1 for row in range(rows)], dtype=torch.int32)
    return AllowedTokens(words.to(device), index.to(device)), allowed[:, :vocab]


def assert_same(hidden, head, bias, spec, close=CLOSE):
    scores = score_rows(hidden, head, bias, spec)
    expected = score_rows_reference(hidden, head, bias, spec)
    for name in ("token", "argmax", "top_ids"):
        assert_equal_or_none(getattr(scores, name), getattr(expected, name))
    numbers = ("probability", "p1", "p2", "log_sum_exp", "entropy", "given_logprob")
    for name in (*numbers, "top_logprobs", "expected_embedding"):
        assert_close_or_none(getattr(scores, name), getattr(expected, name), close)
    return scores


def assert_equal_or_none(first, second):
    assert (first is None) == (second is None)
    assert first is None or torch.equal(first, second)


def assert_close_or_none(first, second, close):
    assert (first is None) == (second is None)
    if first is not None:
        torch.testing.assert_close(first, second, **close)


@pytest.mark.parametrize(
    ("rows", "vocab"), [(0, 100), (1, 1), (1, 2), (3, 127), (2, 128), (5, 129), (17, 1000)]
)
def test_agrees_with_reference(rows, vocab, device):
    hidden, head = draw(rows, vocab, device)
    spec = plain(rows, device, temperature=mixed_temperature(rows, device))
    assert_same(hidden, head, torch.randn(vocab, device=device), spec)


def test_everything_at_once_agrees_with_reference(device):
    rows, vocab = 24, 777
    hidden, head = draw(rows, vocab, device)
    spec = plain(
        rows,
        device,
        temperature=mixed_temperature(rows, device),
        top_k=torch.tensor([(0, 1, 20, 900, 3)[row % 5] for row in range(rows)]).int().to(device),
        top_p=torch.tensor([(1.0, 0.5, 0.9)[row % 3] for row in range(rows)], device=device),
        min_p=torch.tensor([(0.0, 0.05)[row % 2] for row in range(rows)], device=device),
        adjust=sparse(rows, vocab, device),
        allowed=bitmask(rows, vocab, device)[0],
        suppressed=(5, 700),
        num_top=7,
        given=torch.randint(0, vocab, (rows,), device=device),
        embedding=torch.randn(vocab, 12, device=device),
    )
    assert_same(hidden, head, None, spec)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": torch.tensor([1, 2, 40, 0, 1000, 999, 500, 3], dtype=torch.int32)},
        {"top_p": torch.tensor([0.01, 0.3, 0.7, 0.95, 1.0, 0.999, 0.5, 0.1])},
        {"min_p": torch.tensor([0.0, 0.01, 0.1, 0.5, 0.99, 0.2, 0.3, 0.4])},
    ],
)
def test_filters_agree_with_reference(filters, device):
    hidden, head = draw(8, 1000, device)
    filters = {name: value.to(device) for name, value in filters.items()}
    for seed in range(5):
        spec = plain(
            8,
            device,
            temperature=torch.full((8,), 1.5, device=device),
            seeds=torch.full((8,), seed, device=device),
            **filters,
        )
        assert_same(0.3 * hidden, head, None, spec)


def test_filters_keep_ties_together(device):
    logits = torch.tensor([2.0, 2.0, 2.0, 0.0, -1.0], device=device)
    rows = 200
    drawn = draw_from(logits, rows, top_k=torch.ones(rows, dtype=torch.int32, device=device))
    assert set(drawn.tolist()) == {0, 1, 2}
    drawn = draw_from(logits, rows, top_p=torch.full((rows,), 0.1, device=device))
    assert set(drawn.tolist()) == {0, 1, 2}


def draw_from(logits, rows, **changes):
    """Tokens drawn at temperature 1 from given logits."""
    hidden = torch.ones(rows, 1, device=logits.device)
    spec = {"temperature": torch.ones(rows, device=logits.device)} | changes
    return score_rows(
        hidden, logits[:, None].clone(), None, plain(rows, logits.device, **spec)
    ).token


def test_top_p_keeps_the_smallest_set_that_holds_the_mass(device):
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1], device=device).log()
    drawn = draw_from(logits, 400, top_p=torch.full((400,), 0.7, device=device))
    assert set(drawn.tolist()) == {0, 1}


def test_draws_follow_the_tempered_distribution(device):
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0], device=device)
    rows = 4000
    drawn = draw_from(logits, rows, temperature=torch.full((rows,), 2.0, device=device))
    frequency = torch.bincount(drawn, minlength=4) / rows
    torch.testing.assert_close(frequency, (logits / 2).softmax(0), atol=0.03, rtol=0)


def test_uniform_row_has_entropy_log_vocabulary(device):
    hidden, head = torch.zeros(1, WIDTH, device=device), torch.randn(500, WIDTH, device=device)
    scores = score_rows(hidden, head, None, plain(1, device))
    torch.testing.assert_close(scores.entropy.cpu(), torch.tensor([500.0]).log())
    torch.testing.assert_close(scores.p2.cpu(), torch.tensor([1 / 500]))
    assert scores.argmax.item() == 0


def test_lowest_id_wins_a_tie(device):
    head = torch.zeros(300, 1, device=device)
    head[[70, 150, 299]] = 3.0
    scores = score_rows(torch.ones(2, 1, device=device), head, None, plain(2, device))
    assert scores.argmax.tolist() == [70, 70]
    assert scores.token.tolist() == [70, 70]
    torch.testing.assert_close(scores.p1, scores.p2)


def test_extreme_logits_stay_finite(device):
    head = torch.tensor([[3e4], [-3e4], [0.0]], device=device)
    spec = plain(2, device, temperature=torch.tensor([0.0, 0.001], device=device))
    scores = assert_same(torch.ones(2, 1, device=device), head, None, spec)
    assert scores.token.tolist() == [0, 0]
    assert scores.entropy.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_drawn_and_have_no_probability(temperature, device):
    rows, vocab = 16, 333
    hidden, head = draw(rows, vocab, device)
    allowed, flags = bitmask(rows, vocab, device)
    spec = plain(
        rows,
        device,
        temperature=torch.full((rows,), temperature, device=device),
        allowed=allowed,
        suppressed=(0, 4),
        given=torch.full((rows,), 4, device=device),
    )
    scores = assert_same(hidden, head, None, spec)
    flags[:, [0, 4]] = False
    masked = [row for row in range(rows) if row % 4]
    assert all(flags[row % 4 - 1, scores.token[row]] for row in masked)
    assert scores.given_logprob.eq(float("-inf")).all()


def test_one_allowed_token_is_certain(device):
    hidden, head = draw(1, 100, device)
    words = torch.zeros(1, 4, dtype=torch.int32, device=device)
    words[0, 2] = 1 << 5
    rows = torch.zeros(1, dtype=torch.int32, device=device)
    spec = plain(1, device, allowed=AllowedTokens(words, rows), num_top=2)
    scores = assert_close_scores(hidden, head, spec)
    assert scores.token.item() == 69
    assert scores.p1.item() == 1.0
    assert scores.p2.item() == 0.0
    assert scores.entropy.item() == 0.0
    # The logit and the sum over all of them come from two products.
    assert abs(scores.top_logprobs[0, 0].item()) < 1e-5
    assert scores.top_logprobs[0, 1].item() == float("-inf")


def assert_close_scores(hidden, head, spec):
    scores = score_rows(hidden, head, None, spec)
    expected = score_rows_reference(hidden, head, None, spec)
    torch.testing.assert_close(scores.log_sum_exp, expected.log_sum_exp, **CLOSE)
    return scores


def test_bias_of_minus_infinity_bans_a_token(device):
    hidden, head = draw(1, 50, device)
    best = int(score_rows(hidden, head, None, plain(1, device)).argmax)
    adjust = SparseAdjust(
        torch.tensor([0, 1], dtype=torch.int32, device=device),
        torch.tensor([best], dtype=torch.int32, device=device),
        torch.ones(1, device=device),
        torch.tensor([float("-inf")], device=device),
    )
    scores = assert_same(hidden, head, None, plain(1, device, adjust=adjust))
    assert scores.argmax.item() != best
    assert scores.entropy.isfinite().all()


def test_penalty_divides_positive_and_multiplies_negative_logits(device):
    head = torch.tensor([[4.0], [-4.0], [1.0]], device=device)
    adjust = SparseAdjust(
        torch.tensor([0, 2], dtype=torch.int32, device=device),
        torch.tensor([1, 0], dtype=torch.int32, device=device),
        torch.full((2,), 2.0, device=device),
        torch.tensor([0.5, 0.0], device=device),
    )
    spec = plain(1, device, adjust=adjust, num_top=3)
    scores = score_rows(torch.ones(1, 1, device=device), head, None, spec)
    expected = torch.tensor([2.0, 1.0, -7.5]).log_softmax(0)
    torch.testing.assert_close(scores.top_logprobs[0].cpu(), expected)
    assert scores.top_ids[0].tolist() == [0, 2, 1]


def test_row_draws_the_same_alone_and_among_others(device):
    hidden, head = draw(12, 400, device)
    temperature = mixed_temperature(12, device)
    together = score_rows(hidden, head, None, plain(12, device, temperature=temperature))
    spec = plain(12, device, temperature=temperature)
    alone = ScoreSpec(
        *(value[6:7] for value in (spec.temperature, spec.seeds, spec.positions)),
        *(value[6:7] for value in (spec.purposes, spec.attempts)),
    )
    single = score_rows(hidden[6:7], head, None, alone)
    assert torch.equal(single.token, together.token[6:7])
    torch.testing.assert_close(single.entropy, together.entropy[6:7], **CLOSE)


def test_many_rows_are_scored_in_tiles(monkeypatch):
    hidden, head = draw(50, 600)
    spec = plain(
        50,
        temperature=mixed_temperature(50, "cpu"),
        adjust=sparse(50, 600, "cpu"),
        allowed=bitmask(50, 600, "cpu")[0],
        num_top=3,
        given=torch.randint(0, 600, (50,)),
        embedding=torch.randn(600, 4),
    )
    monkeypatch.setattr(MODULE, "TILE_BYTES", 7 * 600 * 4)
    assert_same(hidden, head, None, spec)


@cpu_path
def test_no_tile_of_logits_is_larger_than_the_bound(monkeypatch):
    sizes = []
    original = torch.Tensor.exp
    monkeypatch.setattr(MODULE, "TILE_BYTES", 10 * 400 * 4)
    monkeypatch.setattr(
        torch.Tensor, "exp", lambda self: (sizes.append(self.numel()), original(self))[1]
    )
    score_rows(*draw(35, 400), None, plain(35))
    assert max(sizes) == 10 * 400


@cpu_path
def test_int8_head_agrees_with_reference_and_rows_stay_independent():
    hidden, head = draw(9, 640)
    packed = quantize_int8(head)
    spec = plain(9, temperature=mixed_temperature(9, "cpu"))
    together = assert_same(hidden, packed, None, spec)
    single = score_rows(hidden[:1], packed, None, plain(1))
    assert torch.equal(single.log_sum_exp, together.log_sum_exp[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_top": 65}, r"num_top must be in \[0, 64\]"),
        ({"suppressed": (100,)}, r"suppressed ids must be in \[0, 100\)"),
        ({"temperature": torch.zeros(3)}, r"temperature must be \[2\]"),
        (
            {
                "allowed": AllowedTokens(
                    torch.zeros(1, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
                )
            },
            "must hold 4 words, got 3",
        ),
    ],
)
def test_bad_spec_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        score_rows(*draw(2, 100), None, plain(2, **changes))
