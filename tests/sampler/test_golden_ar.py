"""Greedy decoding through the whole engine gives the tokens of the original implementations."""

import pytest

from tests.sampler.golden_engine import golden_cases, golden_engine, golden_model
from tests.tiny import request, run_all

CASES = [
    (family, name)
    for family in ("llama", "qwen2", "qwen3", "gpt2")
    for name in golden_cases(family)
    if name.startswith("decode_")
]


def requests_of(case, name="one"):
    entry = case.entry
    eos = entry["eos_token_id"]
    return request(
        name,
        entry["prompt_ids"],
        max_tokens=entry["max_new_tokens"],
        stop_token_ids=() if eos is None else (eos,),
    )


@pytest.mark.parametrize(("family", "name"), CASES)
def test_greedy_decoding_gives_the_golden_tokens(family, name):
    case = golden_cases(family)[name]
    tokens, _ = run_all(golden_engine(golden_model(family)), requests_of(case))["one"]
    assert tokens == case.entry["new_tokens"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_all_cases_in_one_batch_with_small_chunks_give_the_same(family):
    cases = {n: c for n, c in golden_cases(family).items() if n.startswith("decode_")}
    engine = golden_engine(golden_model(family), max_rows=11)
    answers = run_all(engine, *(requests_of(case, name) for name, case in cases.items()))
    assert {n: answers[n][0] for n in cases} == {
        n: case.entry["new_tokens"] for n, case in cases.items()
    }
