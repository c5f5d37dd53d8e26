"""Qwen3: Llama with a norm of each query and key head, dense or a mixture of experts."""

from weights.config_fields import ConfigFields
from weights.families.family import Family
from weights.families.hf_layout import HF_NAMES, contradictions_named, parse_hf_config
from weights.network.config import ExpertsConfig, NetworkConfig


def parse_qwen3(fields: ConfigFields) -> NetworkConfig:
    """Read the sizes of the dense network."""
    attention_bias = fields.flag("attention_bias", False)
    return parse_hf_config(
        fields, qkv_bias=attention_bias, output_bias=attention_bias, qk_norm=True
    )


def parse_qwen3_moe(fields: ConfigFields) -> NetworkConfig:
    """Read the sizes of the network with experts in every layer.

    Raises CheckpointError when dense layers lie between layers with experts.
    """
    if fields.integer("decoder_sparse_step", 1) != 1:
        raise fields.refuse("decoder_sparse_step", "but every layer must have experts")
    if fields.numbers("mlp_only_layers"):
        raise fields.refuse("mlp_only_layers", "but every layer must have experts")
    with contradictions_named(fields):
        experts = ExpertsConfig(
            num_experts=fields.integer("num_experts"),
            experts_per_token=fields.integer("num_experts_per_tok"),
            expert_size=fields.integer("moe_intermediate_size"),
            is_renormalised=fields.flag("norm_topk_prob", False),
        )
    attention_bias = fields.flag("attention_bias", False)
    return parse_hf_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
        experts=experts,
    )


QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    parse=parse_qwen3,
    names=HF_NAMES,
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    parse=parse_qwen3_moe,
    names=HF_NAMES,
)
