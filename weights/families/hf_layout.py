"""The layout most public checkpoints share: field names of config.json and names of tensors."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError
from weights.network.config import (
    DraftAdapter,
    ExpertsConfig,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    NetworkConfig,
    QueryScale,
    RotaryConfig,
    YarnScaling,
)
from weights.network.latent_config import LatentConfig
from weights.network.tensor_reader import TensorNames

_LAYER = "model.layers.{layer}."

HF_TABLE: dict[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attention_norm.weight": _LAYER + "input_layernorm.weight",
    "feed_forward_norm.weight": _LAYER + "post_attention_layernorm.weight",
    "q.weight": _LAYER + "self_attn.q_proj.weight",
    "k.weight": _LAYER + "self_attn.k_proj.weight",
    "v.weight": _LAYER + "self_attn.v_proj.weight",
    "q.bias": _LAYER + "self_attn.q_proj.bias",
    "k.bias": _LAYER + "self_attn.k_proj.bias",
    "v.bias": _LAYER + "self_attn.v_proj.bias",
    "q_norm.weight": _LAYER + "self_attn.q_norm.weight",
    "k_norm.weight": _LAYER + "self_attn.k_norm.weight",
    "output.weight": _LAYER + "self_attn.o_proj.weight",
    "output.bias": _LAYER + "self_attn.o_proj.bias",
    "gate.weight": _LAYER + "mlp.gate_proj.weight",
    "up.weight": _LAYER + "mlp.up_proj.weight",
    "down.weight": _LAYER + "mlp.down_proj.weight",
    "gate.bias": _LAYER + "mlp.gate_proj.bias",
    "up.bias": _LAYER + "mlp.up_proj.bias",
    "down.bias": _LAYER + "mlp.down_proj.bias",
    "router.weight": _LAYER + "mlp.gate.weight",
    "router.bias": _LAYER + "mlp.gate.expert_bias",
    "expert.gate.weight": _LAYER + "mlp.experts.{expert}.gate_proj.weight",
    "expert.up.weight": _LAYER + "mlp.experts.{expert}.up_proj.weight",
    "expert.down.weight": _LAYER + "mlp.experts.{expert}.down_proj.weight",
    "experts.gate.weight": _LAYER + "mlp.experts.gate_proj",
    "experts.up.weight": _LAYER + "mlp.experts.up_proj",
    "experts.gate_up.weight": _LAYER + "mlp.experts.gate_up_proj",
    "experts.down.weight": _LAYER + "mlp.experts.down_proj",
    "shared.gate.weight": _LAYER + "mlp.shared_experts.gate_proj.weight",
    "shared.up.weight": _LAYER + "mlp.shared_experts.up_proj.weight",
    "shared.down.weight": _LAYER + "mlp.shared_experts.down_proj.weight",
}

HF_NAMES = TensorNames(HF_TABLE)


def parse_hf_config(
    fields: ConfigFields,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    feed_forward_bias: bool = False,
    qk_norm: bool = False,
    experts: ExpertsConfig | None = None,
    draft_adapter: DraftAdapter | None = None,
    latent: LatentConfig | None = None,
) -> NetworkConfig:
    """Read the sizes of a Llama-style network.

    Raises CheckpointError for another activation, sliding windows, or sizes that contradict
    each other.
    """
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise fields.refuse("hidden_act", "but only silu is known")
    refuse_sliding_windows(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    head_dim = read_head_dim(fields, hidden_size, num_heads)
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
            rotary=read_rotary(fields, head_dim),
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            feed_forward_bias=feed_forward_bias,
            qk_norm=qk_norm,
            tie_head=fields.flag("tie_word_embeddings", False),
            experts=experts,
            draft_adapter=draft_adapter,
            latent=latent,
        )


@contextmanager
def contradictions_named(fields: ConfigFields) -> Iterator[None]:
    """Turn the ValueError of sizes that contradict each other into a CheckpointError."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error


def read_head_dim(fields: ConfigFields, hidden_size: int, num_heads: int) -> int:
    """Width of a head: stated, or an even share of the hidden width."""
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    if num_heads < 1 or hidden_size % num_heads:
        raise fields.refuse("num_attention_heads", f"which does not divide {hidden_size}")
    return hidden_size // num_heads


def refuse_sliding_windows(fields: ConfigFields) -> None:
    """Raise CheckpointError when a layer attends to a window shorter than the context."""
    kinds = fields.texts("layer_types")
    if any(kind != "full_attention" for kind in kinds):
        raise fields.refuse("layer_types", "but only full_attention is known")
    if kinds or not fields.has("sliding_window") or not fields.flag("use_sliding_window", True):
        return
    if fields.integer("sliding_window") < fields.integer("max_position_embeddings"):
        raise fields.refuse("sliding_window", "but sliding windows are not supported")


def read_rotary(fields: ConfigFields, head_dim: int) -> RotaryConfig:
    """Read the rotary embedding in either spelling.

    Older files have `rope_theta` and `rope_scaling` at the top, newer ones one object
    `rope_parameters`.
    """
    scaling = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = fields.number("rope_theta", 10000.0)
    share = fields.number("partial_rotary_factor", 1.0)
    if scaling is None:
        return RotaryConfig(theta, rotary_dim=int(head_dim * share))
    scaling = scaling.section("full_attention") or scaling
    share = scaling.number("partial_rotary_factor", share)
    return RotaryConfig(
        theta=scaling.number("rope_theta", theta),
        rotary_dim=int(head_dim * share),
        scaling=_read_scaling(scaling, fields),
        query_scale=_read_query_scale(scaling),
    )


def _read_scaling(
    scaling: ConfigFields, fields: ConfigFields
) -> LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors | None:
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(scaling.number("factor"))
    if kind == "factors":
        return FrequencyFactors(scaling.numbers("factors"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=scaling.number("factor"),
            low_frequency_factor=scaling.number("low_freq_factor"),
            high_frequency_factor=scaling.number("high_freq_factor"),
            original_positions=scaling.integer("original_max_position_embeddings"),
        )
    if kind == "yarn":
        return _read_yarn(scaling, fields)
    raise scaling.refuse("rope_type", "which is not supported")


def _read_yarn(scaling: ConfigFields, fields: ConfigFields) -> YarnScaling:
    context = fields.integer("max_position_embeddings")
    original = scaling.integer("original_max_position_embeddings", context)
    factor = scaling.number("factor", context / original)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        attention_factor=_yarn_attention_factor(scaling, factor),
        is_ramp_rounded=scaling.flag("truncate", True),
    )


def _yarn_attention_factor(scaling: ConfigFields, factor: float) -> float:
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    mscale, mscale_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if mscale and mscale_all:
        return _magnitude(factor, mscale) / _magnitude(factor, mscale_all)
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _read_query_scale(scaling: ConfigFields) -> QueryScale | None:
    beta = scaling.number("llama_4_scaling_beta", 0.0)
    if not beta:
        return None
    return QueryScale(beta, scaling.integer("original_max_position_embeddings"))
