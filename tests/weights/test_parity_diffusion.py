"""Logits of diffusion families against implementations by others: every mask is limits."""

import pytest
import torch

from tests.weights.runs import (
    Span,
    all_pages,
    block_limits,
    causal_limits,
    new_cache,
    open_golden,
    run_step,
    whole_logits,
)
from weights import RuleOverrides, load_model
from weights.network.feed_forward import route

# Float32 in another order of operations differs by up to 2e-5 on logits of this scale.
TOLERANCE = 1e-4


def load(golden, family, **overrides):
    case = open_golden(golden / family)
    model = load_model(
        case.folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        overrides=RuleOverrides(**overrides),
    )
    return case, model


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def chunked_blocks(network, ids, sizes, block_length):
    """Block-causal logits of a sequence run in parts cut at block edges."""
    cache, rows, start = new_cache(network, len(ids)), [], 0
    for size in sizes:
        part = ids[start : start + size]
        limits = block_limits(start, len(part), block_length, len(ids))
        rows.append(run_step(network, cache, [Span(part, start, limits, all_pages(len(ids)))]))
        start += size
    return torch.cat(rows)


BLOCK_CASES = [
    ("sdar", "forward_block4", 4, {}),
    ("sdar", "forward_block4_masked", 4, {}),
    ("sdar", "forward_block10", 10, {}),
    ("llada2", "forward_block8", 8, {"mask_token_id": 155}),
    ("llada2", "forward_block8_masked", 8, {"mask_token_id": 155}),
    ("llada2", "forward_block20", 20, {"mask_token_id": 155}),
    ("fast_dllm_v2", "forward_block8", 8, {"mask_token_id": 155}),
    ("fast_dllm_v2", "forward_block8_masked", 8, {"mask_token_id": 155}),
    ("bd3lm", "forward_clean", 4, {}),
    ("bd3lm", "forward_masked", 4, {}),
]


@pytest.mark.parametrize(("family", "name", "block_length", "overrides"), BLOCK_CASES)
def test_block_causal_logits(golden, family, name, block_length, overrides):
    case, model = load(golden, family, **overrides)
    ids, wanted = case[f"{name}.input_ids"][0].tolist(), case[f"{name}.logits"][0]
    limits = block_limits(0, len(ids), block_length, len(ids))
    assert_close(whole_logits(model.network, ids, limits=limits), wanted)


@pytest.mark.parametrize(("family", "name", "block_length", "overrides"), BLOCK_CASES)
def test_blocks_against_the_cache_give_the_same_logits(
    golden, family, name, block_length, overrides
):
    case, model = load(golden, family, **overrides)
    ids, wanted = case[f"{name}.input_ids"][0].tolist(), case[f"{name}.logits"][0]
    sizes = [block_length] * -(-len(ids) // block_length)
    assert_close(chunked_blocks(model.network, ids, sizes, block_length), wanted)


@pytest.mark.parametrize("family", ["llada", "dream", "mdlm"])
@pytest.mark.parametrize("name", ["forward_clean", "forward_masked"])
def test_bidirectional_logits(golden, family, name):
    case, model = load(golden, family)
    ids, wanted = case[f"{name}.input_ids"], case[f"{name}.logits"]
    length = ids.shape[1]
    got = [whole_logits(model.network, row.tolist(), limits=[length] * length) for row in ids]
    assert_close(torch.stack(got), wanted)


def test_all_masks_at_once(golden):
    case, model = load(golden, "mdlm")
    ids, wanted = case["forward_all_mask.input_ids"], case["forward_all_mask.logits"]
    got = whole_logits(model.network, ids[0].tolist(), limits=[ids.shape[1]] * ids.shape[1])
    assert_close(got, wanted[0])


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_padding_before_the_text_is_not_seen(golden, family):
    case, model = load(golden, family)
    ids = case["forward_left_padded.input_ids"][0].tolist()
    mask = case["forward_left_padded.attention_mask"][0]
    padding = int((mask == 0).sum())
    positions = None
    if "forward_left_padded.position_ids" in case.tensors:
        positions = case["forward_left_padded.position_ids"][0].tolist()
    got = whole_logits(
        model.network,
        ids,
        limits=[len(ids)] * len(ids),
        positions=positions,
        firsts=[padding] * len(ids),
    )
    assert_close(got[padding:], case["forward_left_padded.logits"][0, padding:])


@pytest.mark.parametrize("name", ["forward_masked", "forward_clean", "forward_all_mask"])
def test_any_order_logits(golden, name):
    case, model = load(golden, "esolm")
    got = [
        whole_logits(model.network, ids.tolist(), positions=order.tolist())
        for ids, order in zip(case[f"{name}.rank_ids"], case[f"{name}.order"], strict=True)
    ]
    assert_close(torch.stack(got), case[f"{name}.logits_by_rank"])


@pytest.mark.parametrize(
    "name", ["loglik_mixed_order", "loglik_left_to_right", "loglik_random_order"]
)
def test_any_order_likelihood_rows_see_lower_ranks_and_themselves(golden, name):
    case, model = load(golden, "esolm")
    order = case[f"{name}.order"]
    length = len(order)
    masks = [model.family.rule.mask_token_id] * length
    for row, wanted in zip(case[f"{name}.input_ids"], case[f"{name}.logits_by_rank"], strict=True):
        span = Span(
            [*row[order].tolist(), *masks],
            0,
            [*causal_limits(0, length), *range(length)],
            all_pages(2 * length),
            positions=[*order.tolist(), *order.tolist()],
            windows=[(0, 0)] * length + [(length + r, length + r + 1) for r in range(length)],
        )
        cache = new_cache(model.network, 2 * length)
        got = run_step(model.network, cache, [span])
        assert_close(got[length:], wanted)


def test_noisy_blocks_see_clean_blocks_before_them_and_themselves(golden):
    case, model = load(golden, "bd3lm")
    noisy, clean = case["forward_noisy_clean.xt"], case["forward_noisy_clean.x0"]
    length, block = noisy.shape[1], 4
    starts = [entry // block * block for entry in range(length)]
    span = Span(
        [*clean[0].tolist(), *noisy[0].tolist()],
        0,
        [*block_limits(0, length, block, length), *starts],
        all_pages(2 * length),
        positions=[*range(length), *range(length)],
        windows=[(0, 0)] * length + [(length + s, length + s + block) for s in starts],
    )
    got = run_step(model.network, new_cache(model.network, 2 * length), [span])
    assert_close(got[length:], case["forward_noisy_clean.logits"][0])


def test_experts_are_chosen_and_weighed_as_published(golden, monkeypatch):
    case, model = load(golden, "llada2", mask_token_id=155)
    seen = []

    def recording(*args):
        seen.append(route(*args))
        return seen[-1]

    monkeypatch.setattr("weights.network.feed_forward.route", recording)
    ids = case["forward_block8.input_ids"][0].tolist()
    whole_logits(model.network, ids, limits=block_limits(0, 40, 8, 40))
    for layer, (chosen, weights) in zip((1, 2), seen, strict=True):
        by_index = chosen.argsort(-1)
        wanted = case[f"forward_block8.router_experts_layer{layer}"]
        assert torch.equal(chosen.gather(-1, by_index), wanted)
        wanted_weights = case[f"forward_block8.router_weights_layer{layer}"]
        torch.testing.assert_close(weights.gather(-1, by_index), wanted_weights)


NLD = "nemotron_labs_diffusion"


@pytest.mark.parametrize("name", ["forward_causal", "forward_positions"])
def test_two_mode_causal_logits(golden, name):
    case, model = load(golden, NLD)
    ids, positions = case[f"{name}.input_ids"], case[f"{name}.position_ids"]
    got = [
        whole_logits(model.network, row.tolist(), positions=at.tolist())
        for row, at in zip(ids, positions.expand_as(ids), strict=True)
    ]
    assert_close(torch.stack(got), case[f"{name}.logits"])


@pytest.mark.parametrize(
    ("name", "is_causal", "is_speculative"),
    [
        ("denoise_seed_masks", False, False),
        ("denoise_all_masks", False, False),
        ("denoise_partial", False, False),
        ("denoise_no_masks", False, False),
        ("denoise_seed_masks_lora", False, True),
        ("commit_block", True, False),
    ],
)
def test_two_mode_block_against_causal_context(golden, name, is_causal, is_speculative):
    case, model = load(golden, NLD)
    context = case[f"{name}.context_ids"][0].tolist()
    block = case[f"{name}.block_ids"][0].tolist()
    start, end = len(context), len(context) + len(block)
    pages, cache = all_pages(end), new_cache(model.network, end)
    run_step(model.network, cache, [Span(context, 0, causal_limits(0, start), pages)])
    limits = causal_limits(start, len(block)) if is_causal else [end] * len(block)
    positions = case[f"{name}.position_ids"][0].tolist()
    got = run_step(
        model.network,
        cache,
        [Span(block, start, limits, pages, positions)],
        draft_rows=[True] * len(block) if is_speculative else None,
    )
    assert_close(got, case[f"{name}.logits"][0])


def test_draft_adapter_touches_drafted_rows_only(golden):
    case, model = load(golden, NLD)
    context = case["denoise_seed_masks_lora.context_ids"][0].tolist()
    block = case["denoise_seed_masks_lora.block_ids"][0].tolist()
    start, end = len(context), len(context) + len(block)
    limits = [*causal_limits(0, start), *[end] * len(block)]
    span = Span([*context, *block], 0, limits, all_pages(end))
    is_draft = [False] * start + [True] * len(block)
    mixed = run_step(model.network, new_cache(model.network, end), [span], draft_rows=is_draft)
    plain = whole_logits(model.network, context)
    assert_close(mixed[start:], case["denoise_seed_masks_lora.logits"][0])
    assert_close(mixed[:start], plain)
