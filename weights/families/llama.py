"""Llama, and everything saved in its layout: SmolLM2, Llama 3."""

from weights.config_fields import ConfigFields
from weights.families.family import Family
from weights.families.hf_layout import HF_NAMES, parse_hf_config
from weights.network.config import NetworkConfig


def _parse(fields: ConfigFields) -> NetworkConfig:
    attention_bias = fields.flag("attention_bias", False)
    return parse_hf_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=fields.flag("mlp_bias", False),
    )


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    parse=_parse,
    names=HF_NAMES,
)
