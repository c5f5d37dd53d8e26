"""Layers in one call give the bits that they give operation by operation."""

import pytest
import torch

from tests.kernels.cpu.native_marks import needs_native
from tests.weights.adapters import load, write_adapter
from tests.weights.network.test_latent import canvas, run
from weights.load import Quantize, load_model
from weights.network.transformer import Transformer

pytestmark = needs_native
FAMILIES = ["llama", "qwen2", "qwen3", "sdar"]


def by_operations(monkeypatch):
    monkeypatch.setattr(Transformer, "_stack", lambda *_: None)


def calls_of(monkeypatch):
    """How many stacks run from now on."""
    calls, original = [], Transformer._stack

    def counted(self, cache):
        stack = original(self, cache)
        calls.append(stack is not None)
        return stack

    monkeypatch.setattr(Transformer, "_stack", counted)
    return calls


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_gives_the_bits_of_its_operations(golden, monkeypatch, family, rows):
    network = load_model(
        golden / family,
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantize=Quantize.INT8,
    ).network
    tokens = [(7 * place) % 60 + 1 for place in range(rows)]
    stacked = calls_of(monkeypatch)
    together = run(network, tokens)
    assert stacked == [True]
    by_operations(monkeypatch)
    assert torch.equal(run(network, tokens), together)


def test_a_float_network_runs_by_operations(golden, monkeypatch):
    network = load_model(golden / "llama", dtype=torch.float32, device=torch.device("cpu")).network
    stacked = calls_of(monkeypatch)
    run(network, [1, 2, 3])
    assert stacked == [False]


def test_low_rank_weights_reach_their_rows_and_no_others(tmp_path, monkeypatch):
    network = load(write_adapter(tmp_path / "one"), quantize=Quantize.INT8).network
    tokens = [5, 9, 2, 40, 11]
    latents = canvas(len(tokens), [1, 3, 2], size=network.latent.size)
    together = run(network, tokens, latents=latents, num_latents=3)
    by_operations(monkeypatch)
    apart = run(network, tokens, latents=latents, num_latents=3)
    assert torch.equal(together[: len(tokens)], apart[: len(tokens)])
    # Sums of low-rank products run in another order, and rounding to int8 enlarges that.
    torch.testing.assert_close(together[len(tokens) :], apart[len(tokens) :], atol=0.05, rtol=0.05)
