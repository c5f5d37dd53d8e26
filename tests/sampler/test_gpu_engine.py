"""On a GPU the kernels give, through the whole engine, the tokens that the definitions give."""

import pytest
import torch

from tests.sampler.golden_engine import golden_cases, golden_engine, golden_model
from tests.tiny import request, run_all
from weights import RuleOverrides

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CASES = {
    "llama": (None, {}),
    "qwen3": (None, {}),
    "gpt2": (None, {}),
    "sdar": (None, {"confidence": 0.5}),
    "llada2": (RuleOverrides(mask_token_id=155, block_length=8), {"confidence": 0.5}),
    "llada": (None, {"confidence": 0.5, "sub_block_length": 8}),
    "dream": (None, {"confidence": 0.5}),
    "nemotron_labs_diffusion": (None, {"mode": "diffusion", "confidence": 0.7}),
    "nemotron_labs_diffusion/speculative": (None, {"mode": "speculative"}),
    "esolm": (None, {"mode": "diffusion", "steps": 6, "alpha_0": 0.6}),
    "esolm/speculative": (None, {"mode": "speculative", "width": 3}),
}


def answers_on(device, name):
    overrides, decoding = CASES[name]
    engine = golden_engine(golden_model(name.split("/")[0], overrides, device=device), context=32)
    requests = [
        request(
            str(number),
            [(7 * i + 3 * number) % 90 + 1 for i in range(4 + 3 * number)],
            max_tokens=16,
            decoding=decoding,
            seed=number,
        )
        for number in range(4)
    ]
    answers = run_all(engine, *requests)
    return {one: tokens for one, (tokens, _) in answers.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_decode_gives_the_same_tokens_on_a_gpu(name):
    assert answers_on("cuda", name) == answers_on("cpu", name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_greedy_decoding_on_a_gpu_gives_the_golden_tokens(family):
    entry = golden_cases(family)["decode_greedy_short"].entry
    engine = golden_engine(golden_model(family, device="cuda"))
    one = request("one", entry["prompt_ids"], max_tokens=entry["max_new_tokens"])
    assert run_all(engine, one)["one"][0] == entry["new_tokens"]
