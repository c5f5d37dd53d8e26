"""Ways in which a checkpoint is easily read almost right, that no other test here names.

docs/adding-a-family.md lists all of them with their tests.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.weights.folders import copy_folder
from tests.weights.runs import block_limits, whole_logits
from weights import FAMILIES, RuleOverrides, load_model

DIFFUSION_TRANSFORMERS = ("bd3lm", "mdlm", "esolm")


def load(folder, *, dtype=torch.float32, **overrides):
    return load_model(
        folder, dtype=dtype, device=torch.device("cpu"), overrides=RuleOverrides(**overrides)
    )


def named(name):
    return next(family for family in FAMILIES if family.name == name)


def test_experts_are_chosen_in_float32_whatever_type_the_weights_have(golden):
    """The selection bias is a float32 buffer: rounded to bfloat16 it would choose other experts."""
    stored = load_file(golden / "llada2" / "model.safetensors")
    experts = load(golden / "llada2", dtype=torch.bfloat16, mask_token_id=155).network.layers[1]
    assert experts.feed_forward.gate_up.dtype == torch.bfloat16
    bias = stored["model.layers.1.mlp.gate.expert_bias"]
    assert bias.dtype == torch.float32
    assert torch.equal(experts.feed_forward.selection_bias, bias)
    assert not torch.equal(bias, bias.bfloat16().float())
    assert torch.equal(
        experts.feed_forward.router, stored["model.layers.1.mlp.gate.weight"].float()
    )


@pytest.mark.parametrize("name", ["qwen3", "sdar", "nemotron_labs_diffusion"])
def test_heads_are_as_wide_as_the_config_says(golden, name):
    config = load(golden / name).config
    assert config.head_dim * config.num_heads != config.hidden_size
    assert config.head_dim == json.loads((golden / name / "config.json").read_text())["head_dim"]


def test_heads_of_a_silent_config_share_the_hidden_width(golden, tmp_path):
    folder = copy_folder(golden / "llama", tmp_path / "model", config={"head_dim": None})
    config = load(folder).config
    assert config.head_dim * config.num_heads == config.hidden_size


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "sdar", "dream", "llada", "llada2", "fast_dllm_v2"]
)
def test_a_config_without_theta_turns_by_ten_thousand(golden, tmp_path, name):
    silent = {"rope_theta": None, "rope_parameters": None, "rope_scaling": None}
    folder = copy_folder(golden / name, tmp_path / "model", config=silent)
    overrides = {} if not named(name).rule.drafts else {"mask_token_id": 155}
    assert load(folder, **overrides).config.rotary.theta == 10_000.0


@pytest.mark.parametrize("name", DIFFUSION_TRANSFORMERS)
def test_gates_of_the_golden_transformers_are_open(golden, tmp_path, name):
    """Authors start gates at zero; a checkpoint with such gates passes with any bug in a layer."""
    stored = load_file(golden / name / "model.safetensors")
    biases = {key: value for key, value in stored.items() if key.endswith("lation.bias")}
    closed = {}
    for key, bias in biases.items():
        if "blocks" not in key:
            continue
        gates = bias.view(6, -1)[2::3]
        assert gates.abs().mean() > 0.01
        weight = key.removesuffix("bias") + "weight"
        changed, changed_weight = bias.clone(), stored[weight].clone()
        changed.view(6, -1)[2::3] = 0.0
        changed_weight.view(6, len(bias) // 6, -1)[2::3] = 0.0
        closed |= {key: changed, weight: changed_weight}
    folder = copy_folder(golden / name, tmp_path / "model", tensors=closed)
    ids, limits = list(range(12)), block_limits(0, 12, 4, 12)
    with_gates = whole_logits(load(golden / name).network, ids, limits=limits)
    without = whole_logits(load(folder).network, ids, limits=limits)
    assert (with_gates - without).abs().max() > 0.05


@pytest.mark.parametrize("name", DIFFUSION_TRANSFORMERS)
def test_names_without_a_suffix_are_found_and_stored_frequencies_are_not_used(
    golden, tmp_path, name
):
    stored = load_file(golden / name / "model.safetensors")
    assert "backbone.vocab_embed.embedding" in stored
    frequencies = stored["backbone.rotary_emb.inv_freq"]
    folder = copy_folder(
        golden / name,
        tmp_path / "model",
        tensors={"backbone.rotary_emb.inv_freq": frequencies * 3},
    )
    ids, limits = list(range(12)), block_limits(0, 12, 4, 12)
    torch.testing.assert_close(
        whole_logits(load(folder).network, ids, limits=limits),
        whole_logits(load(golden / name).network, ids, limits=limits),
    )


def test_two_stop_tokens_of_a_chat_model_both_count(golden, tmp_path):
    """config.json names the end of text, generation_config.json also the end of a turn."""
    folder = copy_folder(golden / "qwen3", tmp_path / "model", config={"eos_token_id": 151})
    assert load(folder).generation.eos_token_ids == (151,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151, 143]}))
    assert load(folder).generation.eos_token_ids == (143, 151)
    shutil.rmtree(folder)


def test_families_that_descend_from_one_model_share_no_mask():
    """Token 151665 is a tool's answer in Qwen3, Dream's beginning of text, others' mask."""
    masks = {
        name: named(name).rule.mask_token_id for name in ("dream", "sdar", "wedlm", "fast_dllm_v2")
    }
    assert masks == {"dream": 151666, "sdar": 151669, "wedlm": 151665, "fast_dllm_v2": 151665}
    assert all(named(name).rule.mask_token_id is None for name in ("qwen2", "qwen3", "qwen3_moe"))
