import numpy as np
import pytest
import torch

from sampler.likelihood import order_logprobs, text_likelihood
from tests.sampler.golden_engine import LOGITS_TOLERANCE, golden_cases, golden_model
from weights import RuleOverrides


@pytest.fixture(scope="module")
def esolm():
    return golden_model("esolm")


@pytest.mark.parametrize(
    "name", ["loglik_mixed_order", "loglik_left_to_right", "loglik_random_order"]
)
def test_the_likelihood_under_an_order_is_the_golden_one(name, esolm):
    tensors = golden_cases("esolm")[name].tensors
    for line in range(2):
        logprobs = order_logprobs(
            esolm.network, esolm.family.rule, tensors["input_ids"][line], tensors["order"]
        )
        assert torch.allclose(logprobs, tensors["logp_by_rank"][line], atol=LOGITS_TOLERANCE)
        assert float(logprobs.sum()) == pytest.approx(float(tensors["logp_total"][line]), abs=1e-3)


def test_more_orders_tighten_the_bound_between_their_extremes(esolm):
    tokens = golden_cases("esolm")["loglik_mixed_order"].tensors["input_ids"][0].tolist()
    result = text_likelihood(esolm.network, esolm.family.rule, tokens, num_orders=6, alpha_0=0.5)
    assert result.by_order.min() < result.logprob < result.by_order.max()
    assert result.logprob >= result.by_order.mean()
    assert result.by_token.sum() == pytest.approx(result.by_order[0], rel=1e-4)


def test_the_same_seed_draws_the_same_orders(esolm):
    tokens = list(range(20))
    results = [
        text_likelihood(esolm.network, esolm.family.rule, tokens, num_orders=3, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(results[0].by_order, results[1].by_order)
    assert not np.array_equal(results[0].by_order, results[2].by_order)


def test_a_causal_model_is_scored_left_to_right():
    model = golden_model("llama")
    tensors = golden_cases("llama")["forward_causal"].tensors
    tokens = tensors["input_ids"][0]
    expected = tensors["logits"][0].log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
    result = text_likelihood(model.network, model.family.rule, tokens.tolist())
    assert np.allclose(result.by_token[1:], expected.numpy(), atol=LOGITS_TOLERANCE)
    assert result.num_scored == len(tokens) - 1
    assert result.perplexity == pytest.approx(float(torch.exp(-expected.mean())), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "tokens", "options", "message"),
    [
        ("llama", [1], {}, "at least 2"),
        ("llama", [1, 2], {"num_orders": 0}, "num_orders"),
        ("sdar", [1, 2, 3], {}, "bounds only"),
    ],
)
def test_what_cannot_be_scored_is_refused(family, tokens, options, message):
    overrides = RuleOverrides(mask_token_id=155) if family == "sdar" else None
    model = golden_model(family, overrides)
    with pytest.raises(ValueError, match=message):
        text_likelihood(model.network, model.family.rule, tokens, **options)
