"""Logits and greedy transcripts of causal families against implementations by others."""

import pytest
import torch

from tests.weights.runs import (
    Span,
    all_pages,
    causal_limits,
    chunked_logits,
    greedy_ids,
    new_cache,
    open_golden,
    run_step,
    whole_logits,
)
from weights import load_model

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]
# Float32 in another order of operations differs by up to 2e-5 on logits of this scale.
TOLERANCE = 1e-4
DECODES = ["decode_greedy_short", "decode_greedy_long_prompt", "decode_greedy_eos"]


@pytest.fixture(params=FAMILIES)
def golden_case(request, golden):
    return open_golden(golden / request.param)


@pytest.fixture
def network(golden_case):
    return load(golden_case.folder).network


def load(folder):
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def test_whole_sequence_gives_the_logits(golden_case, network):
    ids, wanted = golden_case["forward_causal.input_ids"], golden_case["forward_causal.logits"]
    got = torch.stack([whole_logits(network, row.tolist()) for row in ids])
    assert_close(got, wanted)


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 1, 13, 19], [39, 1]])
def test_parts_of_a_sequence_give_the_logits(golden_case, network, sizes):
    ids, wanted = golden_case["forward_causal.input_ids"], golden_case["forward_causal.logits"]
    assert_close(chunked_logits(network, ids[0].tolist(), sizes), wanted[0])


def test_two_sequences_in_one_step_give_the_logits(golden_case, network):
    ids, wanted = golden_case["forward_causal.input_ids"], golden_case["forward_causal.logits"]
    cache = new_cache(network, 40, num_sequences=2)
    spans = [
        Span(row.tolist(), 0, causal_limits(0, 40), all_pages(40, number))
        for number, row in enumerate(ids)
    ]
    assert_close(run_step(network, cache, spans), wanted.flatten(0, 1))


@pytest.mark.parametrize("case", DECODES)
def test_greedy_decoding_gives_the_transcript(golden_case, network, case):
    prompt = golden_case[f"{case}.prompt_ids"][0].tolist()
    wanted = golden_case[f"{case}.final_ids"][0].tolist()
    ids, logits = greedy_ids(network, prompt, len(wanted) - len(prompt))
    assert ids == wanted
    assert_close(logits, golden_case[f"{case}.step_logits"][0])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_positions_may_jump(golden, family):
    case = open_golden(golden / family)
    network = load(case.folder).network
    ids = case["forward_positions.input_ids"][0].tolist()
    positions = case["forward_positions.position_ids"][0].tolist()
    wanted = case["forward_positions.logits"][0]
    assert_close(whole_logits(network, ids, positions=positions), wanted)
    assert_close(chunked_logits(network, ids, [9, 31], positions=positions), wanted)


def test_scored_rows_come_in_the_order_asked(golden_case, network):
    ids = golden_case["forward_causal.input_ids"][0].tolist()
    span = Span(ids, 0, causal_limits(0, 40), all_pages(40))
    got = run_step(network, new_cache(network, 40), [span], score_rows=[39, 3, 3])
    wanted = golden_case["forward_causal.logits"][0]
    assert_close(got, wanted[[39, 3, 3]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(golden_case, dtype):
    model = load_model(golden_case.folder, dtype=dtype, device=torch.device("cpu"))
    ids = golden_case["forward_causal.input_ids"][0].tolist()
    wanted = golden_case["forward_causal.logits"][0]
    got = whole_logits(model.network, ids).float()
    # bfloat16 keeps 8 bits: a few hundredths of the logits' scale after two layers.
    assert (got - wanted).std() < 0.03 * wanted.std()


def test_end_of_text_is_read_from_the_config(golden):
    assert load(golden / "llama").generation.eos_token_ids == (2,)
