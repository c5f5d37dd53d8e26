"""The default model itself; needs it in the cache folder."""

import os
from pathlib import Path

import pytest
import torch

from tests.weights.runs import greedy_ids, whole_logits
from weights import Quantize, load_model
from weights.files.default_model import default_model_path

PATH = default_model_path(
    Path(os.environ.get("ESTUARY_CACHE_DIR", Path.home() / ".cache" / "estuary"))
)
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not PATH.is_file(), reason="needs the default model (make model)"),
]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model():
    return load(None)


def load(quantize):
    return load_model(
        PATH,
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantize=quantize,
        context_length=512,
    )


def prompt_ids(model):
    text = model.chat_template.render(QUESTION, add_generation_prompt=True)
    return model.tokenizer.encode(text, add_special_tokens=True)


def test_it_knows_the_capital_of_france(model):
    prompt = prompt_ids(model)
    ids, _ = greedy_ids(model.network, prompt, 10, stop_id=2)
    answer = model.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


def test_its_facts_are_those_of_the_file(model):
    assert model.family.name == "llama"
    assert model.generation.eos_token_ids == (2,)
    assert model.tokenizer.vocab_size == 49152
    assert prompt_ids(model)[:3] == [1, 9690, 198]


def test_int8_prefers_the_same_tokens(model):
    prompt = prompt_ids(model)
    small = load(Quantize.INT8)
    float_logits = whole_logits(model.network, prompt)
    int8_logits = whole_logits(small.network, prompt)
    agreement = (float_logits.argmax(-1) == int8_logits.argmax(-1)).float().mean()
    # Near-ties in the middle of a fixed template may flip; most of its positions may not.
    assert agreement > 0.8
