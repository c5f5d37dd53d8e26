import importlib
from dataclasses import replace

import pytest
import torch

from kernels import (
    PURPOSE_DRAFT,
    AllowedTokens,
    SparseAdjust,
    quantize_int8,
    ratio_rows,
    score_rows,
)
from tests.kernels.score.test_rows import WIDTH, draw, plain

ROWS, VOCAB = 20_000, 7
# Four standard deviations of a share of so many draws.
CLOSE = 4 * 0.5 / ROWS**0.5


def verified(hidden, drafted, head, spec, *, rows=None):
    """(proposals, tokens, probabilities) of drafting with the drafted rows and verifying."""
    drafts = replace(
        spec,
        purposes=torch.full_like(spec.purposes, PURPOSE_DRAFT),
        adjust=None,
        allowed=None,
    )
    proposed = score_rows(drafted, head, None, drafts).token
    rows = torch.arange(hidden.shape[0]) if rows is None else rows
    token, probability = ratio_rows(
        hidden, drafted[rows], head, None, spec, rows=rows, proposed=proposed[rows]
    )
    return proposed[rows], token, probability


def same_rows(**changes):
    """Two different rows, each many times over, and a spec that draws each time anew."""
    one, head = draw(2, VOCAB)
    one = one / 4
    spec = plain(ROWS, temperature=torch.full((ROWS,), 0.8))
    return one[:1].expand(ROWS, -1), one[1:].expand(ROWS, -1), head, replace(spec, **changes)


def shares(token):
    return torch.bincount(token, minlength=VOCAB) / len(token)


def distribution(hidden, head, *, keep=VOCAB):
    logits = (hidden[0] @ head.t()) / 0.8
    kth = logits.sort(descending=True).values[keep - 1]
    return logits.masked_fill(logits < kth, float("-inf")).softmax(0)


def test_tokens_are_distributed_as_the_target():
    hidden, drafted, head, spec = same_rows()
    proposed, token, _ = verified(hidden, drafted, head, spec)
    p, q = distribution(hidden, head), distribution(drafted, head)
    torch.testing.assert_close(shares(proposed), q, atol=CLOSE, rtol=0)
    torch.testing.assert_close(shares(token), p, atol=CLOSE, rtol=0)
    kept = (proposed == token).float().mean()
    torch.testing.assert_close(kept, torch.minimum(p, q).sum(), atol=CLOSE, rtol=0)
    assert (p - q).abs().max() > 10 * CLOSE


def test_filters_hold_for_both_sides():
    hidden, drafted, head, spec = same_rows(top_k=torch.full((ROWS,), 3, dtype=torch.int32))
    proposed, token, _ = verified(hidden, drafted, head, spec)
    p, q = distribution(hidden, head, keep=3), distribution(drafted, head, keep=3)
    torch.testing.assert_close(shares(token), p, atol=CLOSE, rtol=0)
    kept = (proposed == token).float().mean()
    torch.testing.assert_close(kept, torch.minimum(p, q).sum(), atol=CLOSE, rtol=0)


def test_what_only_the_target_forbids_is_refused():
    hidden, drafted, head, spec = same_rows()
    words = torch.tensor([[0b1011010]], dtype=torch.int32)
    allowed = AllowedTokens(words, torch.zeros(ROWS, dtype=torch.int32))
    proposed, token, probability = verified(hidden, drafted, head, replace(spec, allowed=allowed))
    is_allowed = torch.tensor([bool(0b1011010 >> t & 1) for t in range(VOCAB)])
    assert not is_allowed[proposed].all()
    assert is_allowed[token].all()
    p = distribution(hidden, head) * is_allowed
    torch.testing.assert_close(shares(token), p / p.sum(), atol=CLOSE, rtol=0)
    untempered = (hidden[0] @ head.t()).masked_fill(~is_allowed, float("-inf")).softmax(0)
    torch.testing.assert_close(probability, untempered[token], atol=1e-5, rtol=1e-5)


def test_bias_of_the_target_counts():
    hidden, drafted, head, spec = same_rows()
    starts = torch.arange(ROWS + 1, dtype=torch.int32)
    ids = torch.full((ROWS,), 2, dtype=torch.int32)
    bias = SparseAdjust(starts, ids, torch.ones(ROWS), torch.full((ROWS,), 1.5))
    _, token, _ = verified(hidden, drafted, head, replace(spec, adjust=bias))
    logits = hidden[0] @ head.t()
    logits[2] += 1.5
    torch.testing.assert_close(shares(token), (logits / 0.8).softmax(0), atol=CLOSE, rtol=0)


def test_a_draft_from_the_targets_own_distribution_is_always_kept():
    hidden, _, head, spec = same_rows(suppressed=(3,))
    proposed, token, _ = verified(hidden, hidden, head, spec)
    assert torch.equal(proposed, token)
    assert not token.eq(3).any()


def test_greedy_rows_take_the_likeliest_token():
    hidden, head = draw(50, 200)
    drafted = hidden + 0.3 * torch.randn_like(hidden)
    proposed, token, _ = verified(hidden, drafted, head, plain(50))
    assert torch.equal(token, (hidden @ head.t()).argmax(1))
    assert 0 < (proposed == token).sum() < 50


@pytest.mark.parametrize("tile_rows", [1, 7])
def test_tiles_and_other_rows_change_nothing(tile_rows, monkeypatch):
    hidden, head = draw(40, 300)
    drafted = hidden + 0.3 * torch.randn_like(hidden)
    spec = plain(40, temperature=torch.full((40,), 1.0))
    whole = verified(hidden, drafted, head, spec)
    module = importlib.import_module("kernels.score.ratio")
    monkeypatch.setattr(module, "TILE_BYTES", 4 * 4 * 300 * tile_rows)
    some = torch.tensor([3, 17, 4, 39])
    part = verified(hidden, drafted, head, spec, rows=some)
    for first, second in zip(whole, part, strict=True):
        torch.testing.assert_close(first[some], second)


def test_an_int8_head_verifies_too():
    hidden, head = draw(30, 300)
    packed = quantize_int8(head)
    spec = plain(30, temperature=torch.ones(30))
    proposed, token, _ = verified(hidden, hidden, packed, spec)
    assert torch.equal(proposed, token)


def test_no_rows():
    none = torch.zeros(0, dtype=torch.int64)
    token, probability = ratio_rows(
        torch.zeros(4, WIDTH), torch.zeros(0, WIDTH), torch.zeros(9, WIDTH), None, plain(4),
        rows=none, proposed=none,
    )  # fmt: skip
    assert token.shape == probability.shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_tokens_and_reads_nothing_back():
    hidden, head = draw(40, 300)
    drafted = hidden + 0.3 * torch.randn_like(hidden)
    proposed, token, _ = verified(hidden, drafted, head, plain(40, temperature=torch.ones(40)))
    spec = plain(40, "cuda", temperature=torch.ones(40, device="cuda"))
    tensors = [tensor.cuda() for tensor in (hidden, drafted, head)]
    choices = {"rows": torch.arange(40, device="cuda"), "proposed": proposed.cuda()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, _ = ratio_rows(*tensors, None, spec, **choices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Two tokens within rounding may change places.
    assert (found.cpu() == token).float().mean() > 0.9
