"""The kernels through the whole engine: definitions, launches and padding give one answer."""

import functools

import pytest

from kernels import dispatch
from sampler.border.engine_config import EngineConfig
from sampler.step.graph_runner import graph_runner
from sampler.step.runner import Runner
from tests.sampler.golden_engine import golden_engine
from tests.sampler.step.test_graph_runner import run_again
from tests.sampler.whole_decodes import (
    CASES,
    LATENT_CASES,
    answers_of,
    case_engine,
    case_model,
    case_requests,
    hidden_ids,
)

pytestmark = pytest.mark.kernel
CONTEXT = 32


def short_requests(name):
    """Few and short: the interpreter takes seconds for a step."""
    return case_requests(name, max_tokens=4)[: 1 if name in LATENT_CASES else 2]


def by_definition(name):
    return answers_of(case_engine(name, context=CONTEXT), short_requests(name))


@pytest.mark.parametrize("name", [*CASES, *LATENT_CASES])
def test_kernels_give_the_tokens_of_the_definitions(name, device, monkeypatch):
    launched = answers_of(case_engine(name, device, context=CONTEXT), short_requests(name))
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    assert launched == by_definition(name)


@pytest.mark.parametrize("name", ["llama", "sdar", "llada", "esolm/speculative"])
def test_padded_steps_give_the_tokens_of_the_definitions(name, device, monkeypatch):
    model = case_model(name, device)
    graphs = functools.partial(
        graph_runner,
        record=run_again,
        rule=model.family.rule,
        config=EngineConfig(model="golden", page_size=4, max_sequences=2, max_rows=32),
        context_length=CONTEXT,
        suppressed=hidden_ids(model),
    )
    engine = golden_engine(
        model, context=CONTEXT, new_runner=lambda network, cache: graphs(Runner(network, cache))
    )
    padded = answers_of(engine, short_requests(name))
    assert engine.runner.num_replayed > engine.runner.num_eager
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    assert padded == by_definition(name)
