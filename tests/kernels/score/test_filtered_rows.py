"""Rows with all their logits in memory: filters, draws and top lists made without sorting."""

from dataclasses import replace

import pytest
import torch

from kernels import score_rows
from kernels.noise import noise_keys
from kernels.score.buffer import row_stride
from kernels.score.filter_kernel import launch_draw_filtered_
from kernels.score.filtered_rows import score_full_rows
from kernels.score.partials import NEVER
from kernels.score.rows import score_rows_reference
from kernels.score.spec import RowScores
from kernels.score.top_kernel import launch_top_tokens
from tests.kernels.score.test_rows import bitmask, draw, mixed_temperature, plain, sparse

pytestmark = pytest.mark.kernel
# Masses are float32 sums: a run of equal logits this near to p may fall on either side.
NEAR = 1e-6


def in_buffer(logits):
    """The same logits in rows that are padded as a kept buffer pads them."""
    rows, vocab = logits.shape
    padded = torch.empty(rows, row_stride(vocab), device=logits.device)[:, :vocab]
    return padded.copy_(logits)


def blank_scores(logits):
    rows = logits.shape[0]
    empty = torch.zeros(rows, device=logits.device)
    return RowScores(
        token=torch.zeros(rows, dtype=torch.int64, device=logits.device),
        probability=empty.clone(),
        argmax=logits.argmax(1),
        p1=empty,
        p2=empty,
        log_sum_exp=logits.logsumexp(1),
        entropy=empty,
    )


def kept_by_definition(logits, temperature, top_k, top_p, min_p):
    """Which tokens [V] a row keeps, or None where float32 may decide either way."""
    tempered = logits / temperature
    kept = logits > NEVER / 2
    if 0 < top_k < len(logits):
        kept &= tempered >= tempered.sort(descending=True).values[top_k - 1]
    if top_p < 1:
        masses = (tempered.double() - tempered.max().double()).exp() * kept
        likelier = (masses[None] * (tempered[None] > tempered[:, None])).sum(1) / masses.sum()
        if ((likelier - top_p).abs() < NEAR)[kept & (likelier > 0)].any():
            return None
        kept &= likelier < top_p
    if min_p > 0:
        kept &= tempered >= tempered.max() + torch.tensor(min_p).log().to(tempered)
    return kept


def filters(rows, device):
    top_k = torch.tensor([(0, 1, 7, 50, 999)[row % 5] for row in range(rows)]).int()
    top_p = torch.tensor([(1.0, 0.9, 0.3, 1e-30)[row % 4] for row in range(rows)])
    min_p = torch.tensor([(0.0, 0.0, 0.02)[row % 3] for row in range(rows)])
    return {"top_k": top_k.to(device), "top_p": top_p.to(device), "min_p": min_p.to(device)}


@pytest.mark.parametrize("step", [0.0, 0.5, 100.0], ids=["distinct", "ties", "all equal"])
def test_what_is_kept_is_what_the_definition_keeps(step, device):
    rows, vocab = 20, 500
    logits = 4 * torch.randn(rows, vocab, device=device)
    logits = (logits / step).round() * step if step else logits
    logits[:, ::9] = NEVER
    temperature = torch.tensor([(1.0, 0.7, 1.7)[row % 3] for row in range(rows)], device=device)
    spec = plain(rows, device, temperature=temperature, **filters(rows, device))
    keys = noise_keys(spec.seeds, spec.positions, spec.purposes, spec.attempts)
    scores = blank_scores(logits)
    cutoffs = launch_draw_filtered_(in_buffer(logits), keys, spec, scores)
    undecided = 0
    for row in range(rows):
        one = [float(part[row]) for part in (spec.top_p, spec.min_p)]
        wanted = kept_by_definition(logits[row], temperature[row], int(spec.top_k[row]), *one)
        if wanted is None:
            undecided += 1
            continue
        kept = (logits[row] / temperature[row] >= cutoffs[row]) & (logits[row] > NEVER / 2)
        assert torch.equal(kept, wanted), row
        if torch.isfinite(cutoffs[row]):
            assert wanted[scores.token[row]]
    assert undecided <= 1


def test_drawn_tokens_are_spread_over_all_that_is_kept(device):
    logits = torch.tensor([[2.0, 1.0, 2.0, 0.0, -1.0]], device=device).repeat(40, 1)
    ones = torch.ones(40, device=device)
    spec = plain(40, device, temperature=ones, top_k=(3 * ones).int())
    keys = noise_keys(spec.seeds, spec.positions, spec.purposes, spec.attempts)
    scores = blank_scores(logits)
    launch_draw_filtered_(in_buffer(logits), keys, spec, scores)
    assert sorted(scores.token.unique().tolist()) == [0, 1, 2]
    expected = logits.log_softmax(1).exp().gather(1, scores.token[:, None])[:, 0]
    torch.testing.assert_close(scores.probability, expected)


@pytest.mark.parametrize("num_top", [1, 6, 64])
def test_top_lists_take_the_lowest_ids_of_equals(num_top, device):
    logits = torch.randn(5, 300, device=device).mul(2).round()
    logits[:, 40:60] = NEVER
    logits[4] = 0.0
    scores = blank_scores(logits)
    is_listed = torch.tensor([1, 0, 1, 1, 1], dtype=torch.int32, device=device)
    ids, logprobs = launch_top_tokens(in_buffer(logits), scores, is_listed, num_top)
    ordered = logits.sort(dim=1, descending=True, stable=True)
    listed = is_listed.bool()
    assert torch.equal(ids[listed], ordered.indices[listed, :num_top])
    expected = ordered.values - scores.log_sum_exp[:, None]
    torch.testing.assert_close(logprobs[listed], expected[listed, :num_top])
    assert ids[1].eq(0).all()
    assert logprobs[1].eq(float("-inf")).all()


def half_case(device, rows=12, vocab=400):
    """Peaks of about 22 that 16-bit logits could not tell apart."""
    hidden, head = draw(rows, vocab, device, dtype=torch.float16)
    hidden[:, 0], head[:, 0] = 4.0, 0.0
    head[7, 0], head[9, 0], head[11, 0] = 5.5, 5.502, 5.498
    hidden[:, 1:] /= 64
    spec = plain(
        rows,
        device,
        temperature=mixed_temperature(rows, device),
        given=torch.full((rows,), 9, device=device),
        num_top=5,
        **filters(rows, device),
    )
    return hidden, head, spec


def test_half_precision_gives_the_scores_of_float32(device):
    """Logits rounded to 16 bits would give probabilities above 1 and ties at the top."""
    hidden, head, spec = half_case(device)
    scores = score_rows(hidden, head, None, spec)
    expected = score_rows_reference(hidden.float(), head.float(), None, spec)
    for name in ("token", "argmax", "top_ids"):
        assert torch.equal(getattr(scores, name), getattr(expected, name)), name
    for name in ("probability", "p1", "p2", "log_sum_exp", "given_logprob", "top_logprobs"):
        close = {"atol": 3e-5, "rtol": 3e-5}
        torch.testing.assert_close(getattr(scores, name), getattr(expected, name), **close)
    greedy = (spec.temperature == 0) | (spec.top_k == 1)
    assert torch.equal(scores.token[greedy], scores.argmax[greedy])
    assert torch.equal(scores.top_ids[:, 0], scores.argmax)


@pytest.mark.parametrize("is_wide", [True, False])
def test_no_probability_of_half_precision_exceeds_one(is_wide, device):
    hidden, head, spec = half_case(device)
    if not is_wide:
        spec = replace(spec, top_k=None, top_p=None, min_p=None, num_top=0)
    scores = score_rows(hidden, head, None, spec)
    assert scores.probability.max() <= 1
    assert scores.p1.max() <= 1
    assert scores.given_logprob.max() <= 0
    if is_wide:
        assert scores.top_logprobs.max() <= 0


@pytest.mark.parametrize("fitting", [1, 3, 100])
def test_tiles_of_rows_change_nothing(fitting, device):
    rows, vocab = 7, 130
    hidden, head = draw(rows, vocab, device)
    spec = plain(
        rows,
        device,
        temperature=mixed_temperature(rows, device),
        adjust=sparse(rows, vocab, device),
        allowed=bitmask(rows, vocab, device)[0],
        suppressed=(5, 40),
        num_top=3,
        **filters(rows, device),
    )
    bias = torch.randn(vocab, device=device)
    scores = score_full_rows(hidden, head, bias, spec, num_bytes=fitting * 4 * 192)
    expected = score_rows_reference(hidden, head, bias, spec)
    assert torch.equal(scores.token, expected.token)
    assert torch.equal(scores.top_ids, expected.top_ids)
    torch.testing.assert_close(scores.top_logprobs, expected.top_logprobs)


@pytest.mark.parametrize("is_wide", [True, False])
def test_a_row_that_is_no_number_shows_in_its_log_sum_exp(is_wide, device):
    hidden, head = draw(3, 200, device)
    hidden[1] = float("nan")
    ones = torch.ones(3, device=device)
    wide = {"top_p": 0.9 * ones, "top_k": (5 * ones).int(), "num_top": 2} if is_wide else {}
    scores = score_rows(hidden, head, None, plain(3, device, temperature=ones, **wide))
    assert scores.log_sum_exp.isnan().tolist() == [False, True, False]
    assert scores.token.max() < 200
