import itertools
from dataclasses import replace

import pytest
import torch

from kernels import AllowedTokens, finish_scores, join_partials, quantize_int8, score_rows
from kernels.noise import noise_keys
from kernels.noise_kernel import launch_noise_keys
from kernels.score import rows_kernel as score_rows_kernel
from kernels.score.finish_kernel import launch_finish_scores
from kernels.score.partials import finish_scores_reference, merge_partials
from kernels.score.rows import score_partials_reference, score_rows_reference
from kernels.score.rows_kernel import launch_score_partials
from kernels.score.wide_rows import with_wide_rows
from tests.kernels.score.test_rows import (
    CLOSE,
    assert_close_or_none,
    bitmask,
    draw,
    mixed_temperature,
    plain,
    sparse,
)

pytestmark = pytest.mark.kernel
NUMBERS = ("probability", "p1", "p2", "log_sum_exp", "entropy", "given_logprob")


def launch(hidden, head, bias, spec):
    vocab = head.shape[0] if isinstance(head, torch.Tensor) else head.out_features
    partials = launch_score_partials(hidden, head, bias, spec, vocab_start=0, full_vocab=vocab)
    return finish_scores(partials, spec)


def assert_same(scores, expected, close=CLOSE):
    assert torch.equal(scores.token, expected.token)
    assert torch.equal(scores.argmax, expected.argmax)
    for name in (*NUMBERS, "expected_embedding"):
        first, second = getattr(scores, name), getattr(expected, name)
        assert_close_or_none(first, second, close)


def full_spec(rows, vocab, device, **changes):
    options = {
        "temperature": mixed_temperature(rows, device),
        "adjust": sparse(rows, vocab, device),
        "allowed": bitmask(rows, vocab, device)[0],
        "suppressed": (5, 40),
        "given": torch.randint(0, vocab, (rows,), device=device),
    }
    return plain(rows, device, **(options | changes))


@pytest.mark.parametrize("rows", [15, 16, 17, 33])
@pytest.mark.parametrize("vocab", [63, 64, 65, 300])
def test_sizes_straddle_the_edges_of_tiles(rows, vocab, device):
    hidden, head = draw(rows, vocab, device)
    spec = full_spec(rows, vocab, device)
    assert_same(launch(hidden, head, None, spec), score_rows_reference(hidden, head, None, spec))


@pytest.mark.parametrize("latent", [0, 24])
def test_programs_that_take_many_tiles_fold_them(latent, monkeypatch, device):
    monkeypatch.setattr(score_rows_kernel, "_PROGRAMS", 2)
    hidden, head = draw(20, 700, device)
    embedding = torch.randn(700, latent, device=device) if latent else None
    spec = full_spec(20, 700, device, embedding=embedding)
    assert_same(launch(hidden, head, None, spec), score_rows_reference(hidden, head, None, spec))


def test_float16_rows_agree_with_reference(device):
    hidden, head = draw(20, 700, device, dtype=torch.float16)
    bias = torch.randn(700, device=device).half()
    spec = full_spec(20, 700, device)
    # The reference rounds its logits, of up to about 16, to float16.
    close = {"atol": 2e-2, "rtol": 2e-2}
    scores, expected = (
        launch(hidden, head, bias, spec),
        launch(hidden.float(), head.float(), bias, spec),
    )
    assert (scores.token == expected.token).float().mean() > 0.9
    torch.testing.assert_close(scores.entropy, expected.entropy, **close)
    torch.testing.assert_close(scores.log_sum_exp, expected.log_sum_exp, **close)


def test_int8_head_multiplies_rounded_weights(device):
    hidden, head = draw(9, 200, device)
    packed = quantize_int8(head)
    spec = full_spec(9, 200, device)
    expected = score_rows_reference(hidden, packed.dense(), None, spec)
    assert_same(launch(hidden, packed, None, spec), expected)


@pytest.mark.parametrize("latent", [24, 64, 128, 256, 512, 576])
def test_expected_embedding_agrees_with_reference(latent, device):
    hidden, head = draw(19, 300, device)
    embedding = torch.randn(300, latent, device=device)
    spec = full_spec(19, 300, device, embedding=embedding)
    assert_same(launch(hidden, head, None, spec), score_rows_reference(hidden, head, None, spec))


@pytest.mark.parametrize("latent", [128, 576])
def test_expected_embedding_of_half_precision(latent, device):
    hidden, head = draw(19, 300, device, dtype=torch.float16)
    # A view whose lines do not follow each other: columns of a wider table.
    embedding = torch.randn(300, latent + 8, device=device).half()[:, :latent]
    spec = full_spec(19, 300, device, embedding=embedding)
    scores = launch(hidden, head, None, spec)
    expected = launch(
        hidden.float(), head.float(), None, replace(spec, embedding=embedding.float())
    )
    close = {"atol": 5e-3, "rtol": 5e-3}
    torch.testing.assert_close(scores.expected_embedding, expected.expected_embedding, **close)


def test_a_wide_embedding_is_made_in_parts(monkeypatch, device):
    monkeypatch.setattr(score_rows_kernel, "most_latents", lambda _dtype: 64)
    hidden, head = draw(19, 300, device)
    spec = full_spec(19, 300, device, embedding=torch.randn(300, 150, device=device))
    assert_same(launch(hidden, head, None, spec), score_rows_reference(hidden, head, None, spec))


@pytest.mark.parametrize("ranks", [2, 3])
def test_partials_of_ranks_merge_to_the_whole(ranks, device):
    hidden, head = draw(10, 320, device)
    embedding = torch.randn(320, 8, device=device)
    spec = full_spec(10, 320, device, embedding=embedding)
    edges = [0, 96, 320] if ranks == 2 else [0, 64, 224, 320]
    parts = []
    for start, stop in itertools.pairwise(edges):
        own = replace(spec, embedding=embedding[start:stop])
        place = {"vocab_start": start, "full_vocab": 320}
        parts.append(launch_score_partials(hidden, head[start:stop], None, own, **place))
    scores = finish_scores(join_partials(parts), spec)
    assert_same(scores, score_rows_reference(hidden, head, None, spec))


def test_merging_in_any_grouping_gives_the_same(device):
    hidden, head = draw(8, 512, device)
    spec = full_spec(8, 512, device)
    place = {"vocab_start": 0, "full_vocab": 512}
    partials = launch_score_partials(hidden, head, None, spec, **place)
    count = partials.tokens.shape[1]
    halves = [
        type(partials)(partials.numbers[:, part], partials.tokens[:, part], None)
        for part in (slice(0, count // 2), slice(count // 2, count))
    ]
    grouped = join_partials([merge_partials(half) for half in reversed(halves)])
    assert_same(finish_scores(grouped, spec), finish_scores(partials, spec))


@pytest.mark.parametrize("programs", [1, 7, 264])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_partials_become_scores_as_defined(rows, programs, monkeypatch, device):
    monkeypatch.setattr(score_rows_kernel, "_PROGRAMS", programs)
    hidden, head = draw(rows, 1000, device)
    spec = full_spec(rows, 1000, device)
    place = {"vocab_start": 0, "full_vocab": 1000}
    partials = launch_score_partials(hidden, head, None, spec, **place)
    assert_same(launch_finish_scores(partials, spec), finish_scores_reference(partials, spec))


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_noise_keys_are_those_of_the_definition(rows, device):
    wide = torch.randint(-(2**63), 2**63 - 1, (2, rows), device=device)
    narrow = torch.randint(0, 2**20, (rows,), dtype=torch.int32, device=device)
    purposes = (torch.arange(rows, device=device) % 5).int()
    counters = (wide[0], wide[1], purposes, narrow)
    assert torch.equal(launch_noise_keys(*counters), noise_keys(*counters))


def test_partials_agree_with_their_definition(device):
    hidden, head = draw(6, 128, device)
    spec = full_spec(6, 320, device)
    place = {"vocab_start": 64, "full_vocab": 320}
    own = merge_partials(launch_score_partials(hidden, head, None, spec, **place))
    expected = score_partials_reference(hidden, head, None, spec, **place)
    sampled = spec.temperature > 0
    torch.testing.assert_close(own.numbers[:4, 0], expected.numbers[:4, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        own.numbers[4:6, 0, sampled], expected.numbers[4:6, 0, sampled], atol=1e-4, rtol=1e-4
    )
    assert torch.equal(own.tokens[0], expected.tokens[0])
    assert torch.equal(own.tokens[1, 0, sampled], expected.tokens[1, 0, sampled])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_logits_are_never_in_memory(device):
    rows, vocab, width = 4096, 151_936, 1024
    hidden = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    head = torch.randn(vocab, width, device=device, dtype=torch.bfloat16)
    spec = plain(rows, device, temperature=torch.ones(rows, device=device))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    score_rows(hidden, head, None, spec)
    assert torch.cuda.max_memory_allocated() - before < rows * vocab * 2 / 20


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 10 * 2**30,
    reason="needs 10 GiB of GPU memory",
)
def test_a_head_of_more_than_two_to_the_31_numbers(device):
    width = 8192
    vocab = 2**31 // width + 64
    head = torch.zeros(vocab, width, device=device, dtype=torch.float16)
    head[-1] = 1e-3
    hidden = torch.ones(2, width, device=device, dtype=torch.float16)
    scores = launch(hidden, head, None, plain(2, device))
    assert scores.argmax.tolist() == [vocab - 1] * 2


def test_top_tokens_and_filters_of_wide_rows(device):
    rows, vocab = 12, 300
    hidden, head = draw(rows, vocab, device)
    wide = torch.tensor([1, 2, 7, 10], device=device)
    asks = torch.zeros(rows, dtype=torch.bool, device=device)
    asks[wide] = True
    spec = full_spec(
        rows,
        vocab,
        device,
        top_k=torch.where(asks, 20, 0).int(),
        top_p=torch.where(asks, 0.8, 1.0),
        min_p=torch.where(asks, 0.01, 0.0),
        num_top=5,
        wide_rows=wide,
    )
    partials = launch_score_partials(hidden, head, None, spec, vocab_start=0, full_vocab=vocab)
    scores = finish_scores(partials, spec)
    scores = with_wide_rows(scores, hidden, head, None, spec, tile_rows=3)
    expected = score_rows_reference(hidden, head, None, spec)
    assert_same(scores, expected)
    assert torch.equal(scores.top_ids[wide], expected.top_ids[wide])
    torch.testing.assert_close(scores.top_logprobs[wide], expected.top_logprobs[wide], **CLOSE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_is_read_back_on_the_host(device):
    rows, vocab = 12, 300
    hidden, head = draw(rows, vocab, device)
    top_p = torch.full((rows,), 0.8, device=device)
    wide = torch.arange(rows, device=device)
    embedding = torch.randn(vocab, 24, device=device)
    specs = [
        full_spec(rows, vocab, device),
        full_spec(rows, vocab, device, embedding=embedding),
        full_spec(rows, vocab, device, top_p=top_p, num_top=5, wide_rows=wide),
    ]
    for spec in specs:
        score_rows(hidden, head, None, spec)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for spec in specs:
            score_rows(hidden, head, None, spec)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_lowest_id_wins_a_tie(device):
    hidden = torch.ones(3, 32, device=device)
    head = torch.zeros(300, 32, device=device)
    head[[7, 70, 200]] = 1.0
    scores = launch(hidden, head, None, plain(3, device, suppressed=(7,)))
    assert scores.argmax.tolist() == [70] * 3
    torch.testing.assert_close(scores.p1, scores.p2)


def test_extreme_logits_stay_finite(device):
    hidden = torch.full((4, 32), 1e3, device=device)
    head = torch.randn(130, 32, device=device)
    head[5], head[6] = 1e3, -1e3
    spec = full_spec(4, 130, device, adjust=None, allowed=None, given=None, suppressed=())
    assert_same(launch(hidden, head, None, spec), score_rows_reference(hidden, head, None, spec))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_allowed_token_is_certain(temperature, device):
    hidden, head = draw(3, 300, device)
    words = torch.zeros(1, 10, dtype=torch.int32, device=device)
    words[0, 4] = 1 << 7
    rows = torch.zeros(3, dtype=torch.int32, device=device)
    spec = plain(
        3,
        device,
        temperature=torch.full((3,), temperature, device=device),
        allowed=AllowedTokens(words, rows),
    )
    scores = launch(hidden, head, None, spec)
    assert scores.token.tolist() == [135] * 3
    torch.testing.assert_close(scores.probability, torch.ones(3, device=device))
    torch.testing.assert_close(scores.entropy, torch.zeros(3, device=device), atol=1e-5, rtol=0)
    assert scores.p2.eq(0).all()


def test_no_rows(device):
    hidden, head = draw(4, 300, device)
    embedding = torch.randn(300, 24, device=device)
    scores = score_rows(hidden[:0], head, None, plain(0, device, embedding=embedding))
    assert scores.token.shape == (0,)
    assert scores.expected_embedding.shape == (0, 24)
