"""int8 networks: near their float originals, smoothed without changing what they compute."""

import pytest
import torch

from kernels import Int8Weight, linear
from tests.weights.runs import block_limits, open_golden, whole_logits
from tests.weights.text.test_tokenizer import byte_tokenizer
from weights import Quantize, RuleOverrides, load_model
from weights.network.quantize import calibration_ids, quantize_network

CASES = [
    ("llama", "forward_causal", None),
    ("qwen2", "forward_causal", None),
    ("qwen3", "forward_causal", None),
    ("gpt2", "forward_causal", None),
    ("llada2", "forward_block8", 8),
    ("bd3lm", "forward_clean", 4),
]


def load(golden, family, quantize=None):
    return load_model(
        golden / family,
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantize=quantize,
        overrides=RuleOverrides(mask_token_id=155 if family == "llada2" else None),
    )


@pytest.mark.parametrize(("family", "name", "block_length"), CASES)
def test_logits_stay_near_the_originals(golden, family, name, block_length):
    case = open_golden(golden / family)
    ids, wanted = case[f"{name}.input_ids"][0].tolist(), case[f"{name}.logits"][0]
    limits = None if block_length is None else block_limits(0, len(ids), block_length, len(ids))
    got = whole_logits(load(golden, family, Quantize.INT8).network, ids, limits=limits)
    # One product of int8 rows and weights errs by 1 to 2.5 percent; a dozen lie on the way.
    assert (got - wanted).std() < 0.08 * wanted.std()


def test_an_outlying_column_costs_the_others_little(golden):
    """A column a hundred times as large in the norm, and as small in the matrices after it."""
    network = load(golden, "llama").network
    layer = network.layers[0]
    factor = torch.ones(64)
    factor[3] = 100.0
    network.first_norm.mul_(factor)
    layer.attention.qkv.weight.div_(factor)
    layer.feed_forward_norm.mul_(factor)
    layer.feed_forward.gate_up.weight.div_(factor)
    case = open_golden(golden / "llama")
    ids, wanted = case["forward_causal.input_ids"][0], case["forward_causal.logits"][0]
    torch.testing.assert_close(whole_logits(network, ids.tolist()), wanted, atol=1e-4, rtol=0)
    got = whole_logits(quantize_network(network, ids), ids.tolist())
    assert (got - wanted).std() < 0.08 * wanted.std()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_matrix_and_the_head_are_int8(golden, family):
    network = load(golden, family, Quantize.INT8).network
    layer = network.layers[0]
    assert isinstance(network.head_weight, Int8Weight)
    assert isinstance(layer.attention.qkv.weight, Int8Weight)
    assert isinstance(layer.output.weight, Int8Weight)
    assert isinstance(layer.feed_forward.down.weight, Int8Weight)
    assert network.token_table.dtype is torch.float32


def test_rows_do_not_depend_on_those_beside_them(golden):
    network = load(golden, "llama", Quantize.INT8).network
    rows = torch.randn(9, 64)
    together = linear(rows, network.head_weight)
    alone = torch.cat([linear(row[None], network.head_weight) for row in rows])
    assert torch.equal(together, alone)


def test_the_original_is_left_as_it_was(golden):
    network = load(golden, "llama").network
    before = network.layers[0].attention.qkv.weight.clone()
    quantize_network(network, torch.arange(20))
    assert torch.equal(network.layers[0].attention.qkv.weight, before)


def test_what_is_int8_already_is_refused(golden):
    network = load(golden, "llama", Quantize.INT8).network
    with pytest.raises(ValueError, match="int8 already"):
        quantize_network(network, torch.arange(20))


def test_int8_is_refused_off_the_cpu(golden):
    with pytest.raises(ValueError, match="on a CPU only"):
        load_model(
            golden / "llama",
            dtype=torch.float32,
            device=torch.device("meta"),
            quantize=Quantize.INT8,
        )


def test_calibration_is_the_same_every_time(golden):
    config = load(golden, "gpt2").config
    first, again = calibration_ids(None, config), calibration_ids(None, config)
    assert torch.equal(first, again)
    assert len(first) == config.max_positions
    assert int(first.max()) < config.vocab_size


def test_calibration_text_is_cut_to_the_context(golden):
    config = load(golden, "llama").config
    ids = calibration_ids(byte_tokenizer(), config)
    assert len(ids) == 256
