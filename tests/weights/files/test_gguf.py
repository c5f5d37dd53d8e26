"""GGUF files: container, dequantisation, row order, tokenizer, refusals."""

import json
import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from tests.weights.runs import open_golden, whole_logits
from weights import CheckpointError, describe_model, load_model
from weights.files.gguf_file import GgufFile
from weights.files.gguf_layout import half_split_rows
from weights.files.gguf_tokenizer import read_gguf_tokenizer

_HF_TO_GGUF = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ALL_KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K]


def interleaved_rows(values, head_dim):
    """The row order of llama.cpp's converter, in NumPy."""
    heads = values.shape[0] // head_dim
    split = values.reshape(heads, 2, head_dim // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def write_gguf(path, golden_folder, *, permute, extra=None):
    """Write a golden checkpoint as llama.cpp's converter would, in float32."""
    config = json.loads((golden_folder / "config.json").read_text())
    arch = config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim", hidden // heads)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    for name, tensor in load_file(golden_folder / "model.safetensors").items():
        values = tensor.numpy()
        if permute and ("q_proj" in name or "k_proj" in name):
            values = interleaved_rows(values, head_dim)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name):
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_HF_TO_GGUF[part]}.{kind}"


def load(path):
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "permute"), [("llama", True), ("qwen2", False), ("qwen3", False)]
)
def test_logits_equal_those_of_the_folder(golden, tmp_path, family, permute):
    case = open_golden(golden / family)
    path = write_gguf(tmp_path / "model.gguf", golden / family, permute=permute)
    model = load(path)
    ids = case["forward_causal.input_ids"][0].tolist()
    torch.testing.assert_close(
        whole_logits(model.network, ids), case["forward_causal.logits"][0], atol=1e-4, rtol=0
    )
    assert model.family.name == family


def test_only_permuted_architectures_are_put_back(golden, tmp_path):
    case = open_golden(golden / "llama")
    path = write_gguf(tmp_path / "model.gguf", golden / "llama", permute=False)
    ids = case["forward_causal.input_ids"][0].tolist()
    error = whole_logits(load(path).network, ids) - case["forward_causal.logits"][0]
    assert error.abs().max() > 0.1


def test_row_order_is_the_inverse_of_the_converters():
    rows = torch.arange(48.0).view(24, 2)
    there = torch.from_numpy(interleaved_rows(rows.numpy(), 8))
    torch.testing.assert_close(half_split_rows(there, head_dim=8), rows)
    bias = torch.from_numpy(interleaved_rows(rows[:, 0].numpy(), 8))
    torch.testing.assert_close(half_split_rows(bias, head_dim=8), rows[:, 0])


def test_rotary_factors_are_read_as_scaling(golden, tmp_path):
    factors = {"rope_freqs.weight": np.array([1, 1, 2, 2, 4, 4, 8, 8], dtype=np.float32)}
    path = write_gguf(tmp_path / "m.gguf", golden / "llama", permute=True, extra=factors)
    assert load(path).config.rotary.scaling.factors == (1, 1, 2, 2, 4, 4, 8, 8)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
def test_every_supported_type_is_dequantised(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    stored, tolerance = _stored(values, kind)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf")
    assert file.shape("x") == (4, 512)
    got = file.tensor("x")
    wanted = gguf.quants.dequantize(stored, kind) if tolerance is None else values
    np.testing.assert_allclose(got.numpy(), wanted, atol=tolerance or 0)


def _stored(values, kind):
    """Bytes of a tensor, and how far off dequantising may be (None: as the library says)."""
    if kind in (Kind.Q4_K, Kind.Q6_K):
        # The library cannot write these; any bytes with small scales are a valid block.
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        shape = (values.shape[0], values.shape[1] // block_values * block_bytes)
        return np.random.default_rng(1).integers(0, 60, shape, dtype=np.uint8), None
    # One step of the type at the largest magnitude of these values, about 4.
    tolerance = {Kind.F32: 0, Kind.F16: 2e-3, Kind.BF16: 2e-2, Kind.Q8_0: 2e-2}.get(kind, 0.6)
    return gguf.quants.quantize(values, kind), tolerance


def test_unsupported_type_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = np.ones((2, 32), dtype=np.float32)
    writer.add_tensor("odd", gguf.quants.quantize(values, Kind.Q5_0), raw_dtype=Kind.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="tensor odd has type Q5_0; supported are"):
        GgufFile(tmp_path / "m.gguf").tensor("odd")


def test_unknown_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="architecture mamba is not supported"):
        describe_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("size", [4, 20, 100, 700, 20_000])
def test_truncated_file_is_one_sentence(golden, tmp_path, size):
    path = write_gguf(tmp_path / "model.gguf", golden / "llama", permute=True)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="no readable GGUF file") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_absurd_counts_are_refused_without_memory(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(64))
    with pytest.raises(CheckpointError, match="no readable GGUF file"):
        load(path)


def metadata(**fields):
    tokens = ["<|end|>", *sorted("0123456789ab"), "\u0120", "ab", "12"]
    kinds = [3] + [1] * (len(tokens) - 1)
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["a b", "1 2"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
    }
    return {**values, **{f"tokenizer.ggml.{name}": value for name, value in fields.items()}}


def spelled(tokenizer, text, **options):
    ids = tokenizer.encode(text, **{"add_special_tokens": True, **options})
    return [tokenizer.token_text(token) for token in ids]


def test_smollm_splits_digits_one_by_one():
    tokenizer = read_gguf_tokenizer(metadata(), where="here")
    assert spelled(tokenizer, "ab 12<|end|>") == ["ab", "\u0120", "1", "2", "<|end|>"]
    assert tokenizer.special_token_ids == {0}
    assert tokenizer.eos_token_id == 0


@pytest.mark.parametrize("rule", ["gpt-2", "llama-bpe"])
def test_other_rules_keep_digits_together(rule):
    tokenizer = read_gguf_tokenizer(metadata(pre=rule), where="here")
    assert spelled(tokenizer, "12") == ["12"]


def test_qwen2_splits_digits():
    tokenizer = read_gguf_tokenizer(metadata(pre="qwen2"), where="here")
    assert spelled(tokenizer, "12ab") == ["1", "2", "ab"]


def test_beginning_of_text_is_added_when_the_file_says_so():
    tokenizer = read_gguf_tokenizer(metadata(add_bos_token=True), where="here")
    assert spelled(tokenizer, "ab") == ["<|end|>", "ab"]
    assert spelled(tokenizer, "ab", add_special_tokens=False) == ["ab"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'"),
        ({"merges": ["ab"]}, "merge 'ab' is not a pair"),
        ({"eos_token_id": 99}, "eos_token_id is 99, outside"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        read_gguf_tokenizer(metadata(**change), where="here")


def test_a_file_may_have_no_tokenizer(golden, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", golden / "llama", permute=True)
    described = describe_model(path)
    assert described.tokenizer is None
    assert described.chat_template is None
