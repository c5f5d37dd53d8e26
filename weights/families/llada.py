"""LLaDA: a Llama network under OLMo's names that sees the whole text at once.

From: Nie et al. 2025, Large language diffusion models; arXiv 2502.09992.
"""

from weights.config_fields import ConfigFields
from weights.families.family import (
    AcceptanceDefaults,
    DraftLimit,
    Family,
    FamilyRule,
    Grid,
    Order,
    Settle,
    Speaks,
)
from weights.families.hf_layout import contradictions_named, read_head_dim
from weights.network.config import NetworkConfig, RotaryConfig
from weights.network.tensor_reader import TensorNames

_BLOCK = "model.transformer.blocks.{layer}."
# `ff_out` is the down projection inside a block and the head outside; `ff_proj` is the gate.
_NAMES = TensorNames(
    {
        "embedding": "model.transformer.wte.weight",
        "final_norm.weight": "model.transformer.ln_f.weight",
        "head.weight": "model.transformer.ff_out.weight",
        "attention_norm.weight": _BLOCK + "attn_norm.weight",
        "feed_forward_norm.weight": _BLOCK + "ff_norm.weight",
        "q.weight": _BLOCK + "q_proj.weight",
        "k.weight": _BLOCK + "k_proj.weight",
        "v.weight": _BLOCK + "v_proj.weight",
        "q.bias": _BLOCK + "q_proj.bias",
        "k.bias": _BLOCK + "k_proj.bias",
        "v.bias": _BLOCK + "v_proj.bias",
        "output.weight": _BLOCK + "attn_out.weight",
        "gate.weight": _BLOCK + "ff_proj.weight",
        "up.weight": _BLOCK + "up_proj.weight",
        "down.weight": _BLOCK + "ff_out.weight",
    }
)
# What the architecture could also be, and what the published checkpoints are.
_REQUIRED_TEXTS = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu"}
_REFUSED_SWITCHES = (
    "alibi",
    "attention_layer_norm",
    "bias_for_layer_norm",
    "include_bias",
    "input_emb_norm",
    "scale_logits",
)


def _parse(fields: ConfigFields) -> NetworkConfig:
    for name, wanted in _REQUIRED_TEXTS.items():
        if fields.text(name, wanted) != wanted:
            raise fields.refuse(name, f"but only {wanted} is known")
    for name in _REFUSED_SWITCHES:
        if fields.flag(name, False):
            raise fields.refuse(name, "which is not supported")
    hidden_size, num_heads = fields.integer("d_model"), fields.integer("n_heads")
    head_dim = read_head_dim(fields, hidden_size, num_heads)
    with contradictions_named(fields):
        return NetworkConfig(
            vocab_size=fields.integer("embedding_size", fields.integer("vocab_size")),
            hidden_size=hidden_size,
            num_layers=fields.integer("n_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("n_kv_heads", num_heads),
            head_dim=head_dim,
            feed_forward_size=_feed_forward_size(fields, hidden_size),
            max_positions=fields.integer("max_sequence_length"),
            norm_eps=fields.number("rms_norm_eps", 1e-5),
            rotary=RotaryConfig(fields.number("rope_theta", 10000.0), head_dim),
            qkv_bias=fields.flag("include_qkv_bias", False),
            tie_head=fields.flag("weight_tying", False),
        )


def _feed_forward_size(fields: ConfigFields, hidden_size: int) -> int:
    if fields.has("mlp_hidden_size"):
        return fields.integer("mlp_hidden_size")
    return fields.integer("mlp_ratio") * hidden_size


LLADA = Family(
    name="llada",
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    parse=_parse,
    names=_NAMES,
    rule=FamilyRule(
        modes=("diffusion",),
        settle=Settle.NEVER,
        order=Order.ANY,
        draft_limit=DraftLimit.EVERYTHING,
        settled_speaks_of=Speaks.NOTHING,
        draft_speaks_of=Speaks.OWN,
        grid=Grid.PROMPT,
        block_length=32,
        mask_token_id=126336,
        can_infill=True,
        # Fast-dLLM's rule (arXiv 2505.22618) on the authors' blocks.
        acceptance=AcceptanceDefaults("threshold", confidence=0.9),
    ),
    mask_tokens=("<|mdm_mask|>",),
)
