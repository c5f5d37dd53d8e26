"""LLaDA2: a mixture of experts that denoises block after block.

From: LLaDA2.0 technical report, arXiv 2512.15745. The published config has neither the mask id
nor the block length.
"""

from weights.config_fields import ConfigFields
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Settle,
    Speaks,
)
from weights.families.hf_layout import (
    contradictions_named,
    read_head_dim,
    refuse_sliding_windows,
)
from weights.network.config import ExpertsConfig, NetworkConfig, RotaryConfig, RouterScore
from weights.network.tensor_reader import TensorNames

_LAYER = "layers.{layer}."
_NAMES = TensorNames(
    {
        "embedding": "word_embeddings.weight",
        "final_norm.weight": "norm.weight",
        "head.weight": "lm_head.weight",
        "attention_norm.weight": _LAYER + "input_layernorm.weight",
        "feed_forward_norm.weight": _LAYER + "post_attention_layernorm.weight",
        # All query heads, then all keys, then all values.
        "qkv.weight": _LAYER + "attention.query_key_value.weight",
        "qkv.bias": _LAYER + "attention.query_key_value.bias",
        "q_norm.weight": _LAYER + "attention.query_layernorm.weight",
        "k_norm.weight": _LAYER + "attention.key_layernorm.weight",
        "output.weight": _LAYER + "attention.dense.weight",
        "output.bias": _LAYER + "attention.dense.bias",
        "gate.weight": _LAYER + "mlp.gate_proj.weight",
        "up.weight": _LAYER + "mlp.up_proj.weight",
        "down.weight": _LAYER + "mlp.down_proj.weight",
        "router.weight": _LAYER + "mlp.gate.weight",
        "router.bias": _LAYER + "mlp.gate.expert_bias",
        "expert.gate.weight": _LAYER + "mlp.experts.{expert}.gate_proj.weight",
        "expert.up.weight": _LAYER + "mlp.experts.{expert}.up_proj.weight",
        "expert.down.weight": _LAYER + "mlp.experts.{expert}.down_proj.weight",
        "experts.gate.weight": _LAYER + "mlp.experts.gate_proj",
        "experts.up.weight": _LAYER + "mlp.experts.up_proj",
        "experts.down.weight": _LAYER + "mlp.experts.down_proj",
        "shared.gate.weight": _LAYER + "mlp.shared_experts.gate_proj.weight",
        "shared.up.weight": _LAYER + "mlp.shared_experts.up_proj.weight",
        "shared.down.weight": _LAYER + "mlp.shared_experts.down_proj.weight",
    },
    prefixes=("model.language_model.", "model."),
)


def _parse(fields: ConfigFields) -> NetworkConfig:
    _refuse_variants(fields)
    hidden_size, num_heads = (
        fields.integer("hidden_size"),
        fields.integer("num_attention_heads"),
    )
    head_dim = read_head_dim(fields, hidden_size, num_heads)
    rotary_dim = int(head_dim * fields.number("partial_rotary_factor", 1.0))
    with contradictions_named(fields):
        return NetworkConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=head_dim,
            feed_forward_size=fields.integer("intermediate_size"),
            max_positions=fields.integer("max_position_embeddings"),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rotary=RotaryConfig(
                fields.number("rope_theta", 10000.0), fields.integer("rotary_dim", rotary_dim)
            ),
            qkv_bias=fields.flag("use_qkv_bias", False),
            output_bias=fields.flag("use_bias", False),
            qk_norm=fields.flag("use_qk_norm", True),
            tie_head=fields.flag("tie_word_embeddings", False),
            experts=_parse_experts(fields),
        )


def _parse_experts(fields: ConfigFields) -> ExpertsConfig:
    expert_size = fields.integer("moe_intermediate_size")
    return ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        expert_size=expert_size,
        score=RouterScore.SIGMOID,
        num_groups=fields.integer("n_group", 1),
        kept_groups=fields.integer("topk_group", 1),
        has_selection_bias=fields.flag("moe_router_enable_expert_bias", True),
        is_renormalised=fields.flag("norm_topk_prob", True),
        weight_scale=fields.number("routed_scaling_factor", 1.0),
        shared_size=expert_size * fields.integer("num_shared_experts", 0),
        first_dense_layers=fields.integer("first_k_dense_replace", 0),
    )


def _refuse_variants(fields: ConfigFields) -> None:
    refuse_sliding_windows(fields)
    if fields.text("score_function", "sigmoid") != "sigmoid":
        raise fields.refuse("score_function", "but only sigmoid is known")
    for name in ("norm_head", "using_split_qkv_in_self_attention"):
        if fields.flag(name, False):
            raise fields.refuse(name, "which is not supported")
    for name in ("rope_scaling", "expert_capacity", "delete_token_id", "split_token_id"):
        if fields.has(name):
            raise fields.refuse(name, "a variant (such as LLaDA2.2) that is not supported")


LLADA2 = Family(
    name="llada2",
    architectures=("LLaDA2MoeModelLM",),
    model_types=("llada2_moe",),
    parse=_parse,
    names=_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.BLOCK,
        draft_limit=DraftLimit.CANVAS_END,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.ABSOLUTE,
        block_length=32,
        mask_token_id=156895,
        acceptance=AcceptanceDefaults("threshold_or_quota", confidence=0.95, steps=32),
    ),
    block_length_fields=("block_size",),
    mask_tokens=("<|mask|>",),
)
