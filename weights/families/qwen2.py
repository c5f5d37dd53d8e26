"""Qwen2 and Qwen2.5: Llama with a bias on queries, keys and values."""

from weights.config_fields import ConfigFields
from weights.families.family import Family
from weights.families.hf_layout import HF_NAMES, parse_hf_config
from weights.network.config import NetworkConfig


def parse_qwen2(fields: ConfigFields) -> NetworkConfig:
    """Read the sizes; the bias is part of the architecture, not of the config."""
    return parse_hf_config(fields, qkv_bias=True)


QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    parse=parse_qwen2,
    names=HF_NAMES,
)
