import math

import numpy as np
import pytest
import torch

from sampler.likelihood import order_logprobs, text_likelihood
from tests.weights.training.runs import TINY_ESO_LM
from weights import load_model
from weights.training.data.text import train_vocabulary
from weights.training.eso_lm import (
    ALPHA_0,
    EsoLmModel,
    draw_orders,
    order_nll,
    rank_logprobs,
)
from weights.training.export import ModelCard, export
from weights.training.layers import Visibility

# Both sides are float32; they differ by the order of sums only.
TOLERANCE = 1e-4


@pytest.fixture
def model():
    made = TINY_ESO_LM.build(300, torch.Generator().manual_seed(5))
    with torch.no_grad():
        for value in made.parameters():
            value.copy_((value + 0.1 * torch.randn_like(value)).half())
    return made


@pytest.fixture
def served(model, tmp_path):
    export(
        tmp_path / "model",
        tensors=model.tensors(),
        config=model.config({}),
        tokenizer=train_vocabulary(["to be or not to be"], vocab_size=300),
        card=ModelCard("title", "about", "limits", "command", {}, {}),
        notices=[],
    )
    return load_model(tmp_path / "model", dtype=torch.float32, device=torch.device("cpu"))


def tokens_and_order():
    drawn = torch.Generator().manual_seed(2)
    tokens = torch.randint(300, (1, 24), generator=drawn)
    return tokens, torch.randperm(24, generator=drawn)[None]


@torch.no_grad()
def test_training_and_serving_compute_the_same(model, served):
    tokens, order = tokens_and_order()
    expected = rank_logprobs(model.network, tokens, order).logprobs[0]
    found = order_logprobs(served.network, served.family.rule, tokens[0], order[0])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_from_left_to_right_the_recipe_reports_what_the_scorer_says(model, served):
    tokens, _ = tokens_and_order()
    scored = text_likelihood(served.network, served.family.rule, tokens[0].tolist(), alpha_0=0.0)
    nll = order_nll(model.network, tokens, 0.0, torch.Generator().manual_seed(1))
    assert nll == pytest.approx(-scored.logprob / 24, abs=TOLERANCE)


def test_a_checkpoint_says_what_serving_needs(served):
    assert served.family.name == "esolm"
    assert served.family.rule.mask_token_id == 300
    assert (served.config.vocab_size, served.context_length) == (301, 32)
    assert served.generation.eos_token_ids == (0,)


@torch.no_grad()
def test_the_mask_is_never_predicted(model):
    tokens, order = tokens_and_order()
    logits = model.network(tokens, order, Visibility(24))
    assert logits.softmax(dim=-1)[..., 300].max() == 0


@torch.no_grad()
def test_the_probability_of_a_rank_depends_on_lower_ranks_alone(model):
    tokens, order = tokens_and_order()
    changed = tokens.clone()
    changed[0, order[0, 10]] = (changed[0, order[0, 10]] + 1) % 300
    one = rank_logprobs(model.network, tokens, order).logprobs[0]
    other = rank_logprobs(model.network, changed, order).logprobs[0]
    assert torch.equal(one[:10], other[:10])
    assert (one[11:] != other[11:]).all()


def test_orders_have_a_random_share_and_then_go_left_to_right():
    tokens = torch.zeros(2000, 20, dtype=torch.int64)
    orders = draw_orders(tokens, 0.25, torch.Generator().manual_seed(1))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(20).expand(2000, 20))
    falls = orders.diff(dim=1) < 0
    last_fall = torch.where(falls, torch.arange(1, 20), 0).max(dim=1).values
    assert 3.5 < last_fall.float().mean() < 5.1
    assert abs(float(orders[:, 0].float().mean()) - 9.5) < 0.5


@pytest.mark.parametrize(("alpha_0", "distinct"), [(0.0, 1), (1.0, 50)])
def test_orders_at_the_ends_of_the_share(alpha_0, distinct):
    tokens = torch.zeros(50, 20, dtype=torch.int64)
    orders = draw_orders(tokens, alpha_0, torch.Generator().manual_seed(1))
    assert len({tuple(order) for order in orders.tolist()}) == distinct


class Guesses(torch.nn.Module):
    """A network that finds every token equally likely, and nothing of the mask."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        self.seen = []

    def forward(self, tokens, positions, sees):
        self.seen.append((tokens, positions, sees))
        return torch.zeros(*tokens.shape, self.vocab_size)


def guessing_model(model):
    guessing = EsoLmModel(model.network.shape, generator=torch.Generator().manual_seed(1))
    network = Guesses(301)
    network.shape = model.network.shape
    guessing.network = network
    return guessing


def test_the_loss_of_guessing_is_the_entropy_of_guessing(model):
    tokens = torch.randint(300, (4000, 16), generator=torch.Generator().manual_seed(2))
    losses = guessing_model(model).losses(tokens, torch.Generator().manual_seed(1))
    assert float(losses["diffusion"]) == pytest.approx(ALPHA_0 * math.log(301), rel=0.02)
    assert float(losses["sequential"]) == pytest.approx((1 - ALPHA_0) * math.log(301), rel=0.02)


def test_diffusion_rows_are_known_tokens_first_then_masks_each_shuffled(model):
    guessing = guessing_model(model)
    tokens = torch.arange(32).expand(8, 32)
    guessing.losses(tokens, torch.Generator().manual_seed(1))
    rows, order, sees = guessing.network.seen[0]
    masked = rows == 300
    assert torch.equal(masked.sort(dim=1).values, masked)
    assert torch.equal(torch.where(masked, order, rows), order)
    assert (sees.num_causal, sees.rest) == (32, None)
    hidden = [row[hides].tolist() for row, hides in zip(order, masked, strict=True)]
    assert sum(positions == sorted(positions) for positions in hidden) < 2


def test_sequential_masks_go_left_to_right_behind_shuffled_known_tokens(model):
    guessing = guessing_model(model)
    tokens = torch.arange(32).expand(8, 32)
    guessing.losses(tokens, torch.Generator().manual_seed(1))
    rows, positions, sees = guessing.network.seen[1]
    assert torch.equal(rows[:, :32], positions[:, :32])
    assert torch.equal(positions[:, :32], positions[:, 32:])
    assert (rows[:, 32:] == 300).all()
    below, itself = sees.rest[0].split(32, dim=1)
    assert torch.equal(below, torch.ones(32, 32).tril(-1).bool())
    assert torch.equal(itself, torch.eye(32).bool())
    longest_rise = [np.diff(row[8:].tolist()).min() for row in positions[:, :32]]
    assert sum(rise > 0 for rise in longest_rise) >= 3
