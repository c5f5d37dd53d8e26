"""On a GPU the kernels, launched or replayed, give the tokens that the definitions give."""

import functools

import pytest
import torch

from kernels import record_graph
from sampler.border.engine_config import EngineConfig
from sampler.step.graph_runner import graph_runner
from sampler.step.runner import Runner
from tests.sampler.golden_engine import golden_cases, golden_engine, golden_model
from tests.sampler.whole_decodes import (
    CASES,
    LATENT_CASES,
    answers_of,
    answers_on,
    case_model,
    case_requests,
    hidden_ids,
)
from tests.tiny import request, run_all

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("name", [*CASES, *LATENT_CASES])
def test_a_whole_decode_gives_the_same_tokens_on_a_gpu(name):
    assert answers_on("cuda", name) == answers_on("cpu", name)


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_decode_gives_the_same_tokens_on_a_gpu(name):
    model = case_model(name, "cuda")
    graphs = functools.partial(
        graph_runner,
        record=record_graph(torch.device("cuda")),
        rule=model.family.rule,
        config=EngineConfig(model="golden", page_size=4, max_sequences=8, max_rows=256),
        context_length=32,
        suppressed=hidden_ids(model),
    )
    engine = golden_engine(
        model, context=32, new_runner=lambda network, cache: graphs(Runner(network, cache))
    )
    assert answers_of(engine, case_requests(name)) == answers_on("cpu", name)
    assert engine.runner.num_replayed > engine.runner.num_eager


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_greedy_decoding_on_a_gpu_gives_the_golden_tokens(family):
    entry = golden_cases(family)["decode_greedy_short"].entry
    engine = golden_engine(golden_model(family, device="cuda"))
    one = request("one", entry["prompt_ids"], max_tokens=entry["max_new_tokens"])
    assert run_all(engine, one)["one"][0] == entry["new_tokens"]
