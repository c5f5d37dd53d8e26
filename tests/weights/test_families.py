"""Which family a config belongs to, what its rule becomes, and the traps between families."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.folders import copy_folder
from tests.weights.runs import block_limits, open_golden, whole_logits
from weights import (
    FAMILIES,
    CheckpointError,
    DraftLimit,
    Grid,
    Order,
    RuleOverrides,
    Settle,
    Speaks,
    load_model,
)
from weights.config_fields import ConfigFields
from weights.families import find_family, resolve_rule


def family_of(**config):
    return find_family(ConfigFields(config, "config.json"))


def rule_of(family, *, vocab_size=200_000, tokenizer_mask_id=None, config=None, **overrides):
    return resolve_rule(
        family,
        ConfigFields(config or {}, "config.json"),
        vocab_size=vocab_size,
        tokenizer_mask_id=tokenizer_mask_id,
        overrides=RuleOverrides(**overrides),
    )


def named(name):
    return next(family for family in FAMILIES if family.name == name)


def load(folder, **overrides):
    return load_model(
        folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        overrides=RuleOverrides(**overrides),
    )


@pytest.mark.parametrize(
    ("architecture", "model_type", "name"),
    [
        ("LlamaForCausalLM", "llama", "llama"),
        ("StableDiffcoderForCausalLM", "llama", "stable_diffcoder"),
        ("Qwen2ForCausalLM", "qwen2", "qwen2"),
        ("Qwen3ForCausalLM", "qwen3", "qwen3"),
        ("SDARForCausalLM", "sdar", "sdar"),
        ("SDARMoeForCausalLM", "sdar_moe", "sdar_moe"),
        ("LLaDAModelLM", "llada", "llada"),
        ("LLaDA2MoeModelLM", "llada2_moe", "llada2"),
        ("DreamModel", "Dream", "dream"),
        ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen", "fast_dllm_v2"),
        ("NemotronLabsDiffusionModel", "nemotron_labs_diffusion", "nemotron_labs_diffusion"),
        ("EsoLM", "EsoLM", "esolm"),
        ("BD3LM", "bd3lm", "bd3lm"),
        ("MDLM", "mdlm", "mdlm"),
        ("WeDLMForCausalLM", "wedlm", "wedlm"),
        ("GPT2LMHeadModel", "gpt2", "gpt2"),
    ],
)
def test_architecture_decides(architecture, model_type, name):
    assert family_of(architectures=[architecture], model_type=model_type).name == name


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [("LLaDAMoEModelLM", "llada"), ("SDLMForCausalLM", "qwen2"), ("OrthrusLM", "qwen3")],
)
def test_model_type_alone_does_not_make_a_family(architecture, model_type):
    with pytest.raises(CheckpointError, match=f"architecture {architecture} is not supported"):
        family_of(architectures=[architecture], model_type=model_type)


def test_model_type_decides_where_there_is_no_architecture():
    assert family_of(model_type="qwen3").name == "qwen3"


@pytest.mark.parametrize("config", [{}, {"model_type": "mamba"}, {"architectures": []}])
def test_unknown_configs_are_refused(config):
    with pytest.raises(CheckpointError, match="supported"):
        family_of(**config)


def test_names_are_unique():
    names = [family.name for family in FAMILIES]
    architectures = [name for family in FAMILIES for name in family.architectures]
    assert len(set(names)) == len(names)
    assert len(set(architectures)) == len(architectures)


@pytest.mark.parametrize(
    ("name", "mask_id", "block_length"),
    [
        ("sdar", 151669, 4),
        ("llada2", 156895, 32),
        ("llada", 126336, 32),
        ("dream", 151666, None),
        ("fast_dllm_v2", 151665, 32),
        ("nemotron_labs_diffusion", 100, 32),
        ("wedlm", 151665, None),
        ("stable_diffcoder", 5, 4),
    ],
)
def test_silent_configs_get_the_constants_of_the_authors(name, mask_id, block_length):
    rule = rule_of(named(name))
    assert (rule.mask_token_id, rule.block_length) == (mask_id, block_length)


def test_mask_of_the_diffusion_transformers_is_the_last_token():
    assert rule_of(named("mdlm"), vocab_size=50258).mask_token_id == 50257
    assert rule_of(named("esolm"), config={"mask_index": 7}).mask_token_id == 7


def test_an_eso_lm_decodes_the_share_at_random_that_its_checkpoint_names():
    assert rule_of(named("esolm"), config={"alpha_0": 0.25}).acceptance.alpha_0 == 0.25
    assert rule_of(named("esolm"), config={"alpha_0": 0}).acceptance.alpha_0 == 0
    assert rule_of(named("esolm")).acceptance.alpha_0 == 1.0
    assert rule_of(named("mdlm"), config={"alpha_0": 0.25}).acceptance.alpha_0 is None


def test_operator_then_config_then_tokenizer_then_constant():
    family, config = named("sdar"), {"mask_token_id": 2, "block_size": 8}
    everything = rule_of(
        family, config=config, tokenizer_mask_id=3, mask_token_id=1, block_length=16
    )
    assert (everything.mask_token_id, everything.block_length) == (1, 16)
    from_config = rule_of(family, config=config, tokenizer_mask_id=3)
    assert (from_config.mask_token_id, from_config.block_length) == (2, 8)
    assert rule_of(family, tokenizer_mask_id=3).mask_token_id == 3


@pytest.mark.parametrize("config", [{"mask_token_id": 160}, {"mask_token_id": -1}, {}])
def test_mask_outside_the_vocabulary_is_refused(config):
    with pytest.raises(CheckpointError, match="outside its vocabulary of 160"):
        rule_of(named("sdar"), vocab_size=160, config=config)


def test_block_length_below_one_is_refused():
    with pytest.raises(CheckpointError, match="at least 1, got 0"):
        rule_of(named("sdar"), config={"block_size": 0})


def test_causal_families_have_no_mask():
    assert rule_of(named("llama")).mask_token_id is None
    assert not named("qwen3").rule.drafts


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rules_do_not_contradict_themselves(family):
    rule = family.rule
    assert set(rule.modes) <= {"ar", "diffusion", "speculative"}
    assert rule.drafts == ("diffusion" in rule.modes)
    assert (rule.settle is not Settle.BLOCK) or rule.block_length is not None
    assert (rule.settle is Settle.BLOCK) <= (rule.draft_limit is DraftLimit.CANVAS_END)
    assert (rule.settle is Settle.NEVER) == (rule.draft_limit is DraftLimit.EVERYTHING)
    assert not rule.seeded or rule.settled_speaks_of is Speaks.NEXT


def test_facts_that_are_easily_mixed_up():
    dream, llada, fast = named("dream").rule, named("llada").rule, named("fast_dllm_v2").rule
    sdar, two_mode = named("sdar").rule, named("nemotron_labs_diffusion").rule
    assert (dream.draft_speaks_of, llada.draft_speaks_of) == (Speaks.NEXT, Speaks.OWN)
    assert (fast.draft_speaks_of, sdar.draft_speaks_of) == (Speaks.NEXT, Speaks.OWN)
    assert (two_mode.settled_speaks_of, two_mode.draft_speaks_of) == (Speaks.NEXT, Speaks.OWN)
    assert two_mode.settle is Settle.CAUSAL
    assert (sdar.grid, two_mode.grid, llada.grid) == (Grid.ABSOLUTE, Grid.PROMPT, Grid.PROMPT)
    assert named("esolm").rule.order is Order.ANY
    assert named("wedlm").rule.order is Order.LEFT_TO_RIGHT


def test_sdar_keeps_a_head_of_its_own_unlike_its_base(golden, tmp_path):
    folder = copy_folder(golden / "sdar", tmp_path / "model", config={"tie_word_embeddings": True})
    with pytest.raises(CheckpointError, match="ties the output head"):
        load(folder)


def test_llada_gate_and_down_are_not_swapped(golden, tmp_path):
    stored = load_file(golden / "llada" / "model.safetensors")
    block = "model.transformer.blocks.0."
    swapped = {
        block + "ff_proj.weight": stored[block + "up_proj.weight"],
        block + "up_proj.weight": stored[block + "ff_proj.weight"],
    }
    case = open_golden(golden / "llada")
    ids = case["forward_clean.input_ids"][0].tolist()
    network = load(copy_folder(golden / "llada", tmp_path / "model", tensors=swapped)).network
    got = whole_logits(network, ids, limits=[len(ids)] * len(ids))
    assert (got - case["forward_clean.logits"][0]).abs().max() > 0.01


def test_llada2_experts_may_be_stored_stacked(golden, tmp_path):
    stored = load_file(golden / "llada2" / "model.safetensors")
    stacked, dropped = {}, []
    for layer in (1, 2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts."
            names = [f"{prefix}{expert}.{part}.weight" for expert in range(8)]
            stacked[prefix + part] = torch.stack([stored[name] for name in names])
            dropped += names
    folder = copy_folder(golden / "llada2", tmp_path / "m", drop=dropped, tensors=stacked)
    case = open_golden(golden / "llada2")
    ids = case["forward_block8.input_ids"][0].tolist()
    got = whole_logits(
        load(folder, mask_token_id=155).network, ids, limits=block_limits(0, 40, 8, 40)
    )
    torch.testing.assert_close(got, case["forward_block8.logits"][0], atol=1e-4, rtol=0)


def test_qwen3_experts_may_be_stored_fused(tmp_path):
    """Per expert, stacked, and gate beside up are one network."""
    each = write_qwen3_moe(tmp_path / "each", fused=False)
    fused = write_qwen3_moe(tmp_path / "fused", fused=True)
    ids = list(range(12))
    first, second = whole_logits(load(each).network, ids), whole_logits(load(fused).network, ids)
    torch.testing.assert_close(first, second)


def write_qwen3_moe(folder, *, fused):
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": 16,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "moe_intermediate_size": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 32,
        "vocab_size": 20,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(1)
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (20, 16),
        "model.norm.weight": (16,),
        layer + "input_layernorm.weight": (16,),
        layer + "post_attention_layernorm.weight": (16,),
        layer + "self_attn.q_proj.weight": (16, 16),
        layer + "self_attn.k_proj.weight": (8, 16),
        layer + "self_attn.v_proj.weight": (8, 16),
        layer + "self_attn.o_proj.weight": (16, 16),
        layer + "self_attn.q_norm.weight": (8,),
        layer + "self_attn.k_norm.weight": (8,),
        layer + "mlp.gate.weight": (4, 16),
        layer + "mlp.experts.gate_up_proj": (4, 16, 16),
        layer + "mlp.experts.down_proj": (4, 16, 8),
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    if not fused:
        gate_up = tensors.pop(layer + "mlp.experts.gate_up_proj")
        down = tensors.pop(layer + "mlp.experts.down_proj")
        for expert in range(4):
            name = f"{layer}mlp.experts.{expert}."
            tensors[name + "gate_proj.weight"] = gate_up[expert, :8].clone()
            tensors[name + "up_proj.weight"] = gate_up[expert, 8:].clone()
            tensors[name + "down_proj.weight"] = down[expert].clone()
    return write_folder(folder, config, tensors)


def write_folder(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llada", {"block_type": "sequential"}, "only llama is known"),
        ("llada", {"alibi": True}, "alibi is True"),
        ("llada2", {"score_function": "softmax"}, "only sigmoid"),
        ("llada2", {"delete_token_id": 1}, "LLaDA2.2"),
        ("llada2", {"n_group": 3}, "8 experts cannot be split into 3 groups"),
        ("llada2", {"num_experts_per_tok": 5}, "5 experts a token are wanted, but 4"),
        ("nemotron_labs_diffusion", {"dlm_paradigm": "causal"}, "only bidirectional"),
        ("bd3lm", {"time_conditioning": True}, "without time"),
        ("bd3lm", {"causal": True}, "attends both ways"),
        ("bd3lm", {"adaln": False}, "no place for: blocks.0.adaLN_modulation.bias"),
        ("bd3lm", {"cond_dim": None}, r"has shape \[24, 256\]"),
        ("bd3lm", {"block_size": 0}, "at least 1"),
        ("esolm", {"diffusion_attn_mode": "mixed2"}, "only variant B"),
        ("esolm", {"mask_index": 128}, "outside its vocabulary of 128"),
        ("esolm", {"alpha_0": 1.5}, "alpha_0 is 1.5, but it must be between 0 and 1"),
        ("gpt2", {"activation_function": "relu"}, "only gelu_new"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "not supported"),
    ],
)
def test_variants_and_contradictions_are_refused(golden, tmp_path, family, change, message):
    folder = copy_folder(golden / family, tmp_path / "model", config=change)
    with pytest.raises(CheckpointError, match=message):
        load(folder, mask_token_id=155 if family == "llada2" else None)


def test_rotary_in_either_spelling_is_the_same(golden, tmp_path):
    old = load(golden / "qwen3").config.rotary
    change = {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
    }
    new = load(copy_folder(golden / "qwen3", tmp_path / "model", config=change)).config.rotary
    assert new == old


def test_yarn_and_query_scale_are_both_read(golden):
    rotary = load(golden / "nemotron_labs_diffusion").config.rotary
    assert rotary.scaling.factor == 16
    assert rotary.scaling.attention_factor == 1.0
    assert rotary.query_scale.beta == 0.1


def test_yarn_without_magnitudes_scales_attention(golden, tmp_path):
    config = json.loads((golden / "nemotron_labs_diffusion" / "config.json").read_text())
    scaling = {**config["rope_parameters"], "mscale": None, "mscale_all_dim": None}
    folder = copy_folder(
        golden / "nemotron_labs_diffusion",
        tmp_path / "model",
        config={"rope_parameters": scaling},
    )
    # 0.1 ln(16) + 1
    assert load(folder).config.rotary.scaling.attention_factor == pytest.approx(1.2772588)


def test_adapter_of_the_two_mode_family_is_read_from_its_folder(golden, tmp_path):
    adapter = load(golden / "nemotron_labs_diffusion").config.draft_adapter
    assert (adapter.rank, adapter.scale) == (4, 4.0)
    folder = copy_folder(golden / "nemotron_labs_diffusion", tmp_path / "model")
    (folder / "linear_spec_lora" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lora_A.weight has shape \[4, 96\].*\[128, 96\]"):
        load(folder)


def test_diffusion_transformer_without_adaptive_norms_is_plain(golden, tmp_path):
    stored = load_file(golden / "bd3lm" / "model.safetensors")
    adaptive = [name for name in stored if "adaLN" in name or "sigma_map" in name]
    plain = copy_folder(
        golden / "bd3lm", tmp_path / "plain", config={"adaln": False}, drop=adaptive
    )
    neutral = neutral_modulation(stored)
    same = copy_folder(golden / "bd3lm", tmp_path / "same", tensors=neutral)
    ids = list(range(20))
    limits = block_limits(0, 20, 4, 20)
    torch.testing.assert_close(
        whole_logits(load(plain).network, ids, limits=limits),
        whole_logits(load(same).network, ids, limits=limits),
    )


def neutral_modulation(stored):
    """Modulation that shifts by 0, scales by 1 + 0 and gates by 1."""
    changed = {}
    for name, tensor in stored.items():
        if name.endswith("adaLN_modulation.weight"):
            changed[name] = torch.zeros_like(tensor)
        if name.endswith("adaLN_modulation.bias"):
            gates = torch.zeros(len(tensor) // 48, 48)
            gates[2::3] = 1.0
            changed[name] = gates.flatten()
    return changed


@pytest.mark.parametrize("overrides", [{"mask_token_id": 5}, {"block_length": 8}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_has_no_blocks_takes_no_block_length(name, overrides):
    with pytest.raises(CheckpointError, match="cannot be set"):
        rule_of(named(name), **overrides)
