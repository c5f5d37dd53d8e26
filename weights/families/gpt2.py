"""GPT-2: learned positions, LayerNorm, matrices stored as [in, out]."""

from weights.config_fields import ConfigFields
from weights.families.family import Family
from weights.families.hf_layout import contradictions_named, read_head_dim
from weights.network.config import Block, NetworkConfig
from weights.network.tensor_reader import TensorNames

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")

_NAMES = TensorNames(
    {
        "embedding": "wte.weight",
        "positions": "wpe.weight",
        "head.weight": "lm_head.weight",
        "final_norm.weight": "ln_f.weight",
        "final_norm.bias": "ln_f.bias",
        "attention_norm.weight": "h.{layer}.ln_1.weight",
        "attention_norm.bias": "h.{layer}.ln_1.bias",
        "feed_forward_norm.weight": "h.{layer}.ln_2.weight",
        "feed_forward_norm.bias": "h.{layer}.ln_2.bias",
        "qkv.weight": "h.{layer}.attn.c_attn.weight",
        "qkv.bias": "h.{layer}.attn.c_attn.bias",
        "output.weight": "h.{layer}.attn.c_proj.weight",
        "output.bias": "h.{layer}.attn.c_proj.bias",
        "up.weight": "h.{layer}.mlp.c_fc.weight",
        "up.bias": "h.{layer}.mlp.c_fc.bias",
        "down.weight": "h.{layer}.mlp.c_proj.weight",
        "down.bias": "h.{layer}.mlp.c_proj.bias",
    },
    transposed=frozenset({"qkv.weight", "output.weight", "up.weight", "down.weight"}),
    prefixes=("transformer.",),
    ignored=(r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias"),
)


def _parse(fields: ConfigFields) -> NetworkConfig:
    if fields.text("activation_function", "gelu_new") not in _TANH_GELU:
        raise fields.refuse("activation_function", "but only gelu_new is known")
    for switch in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(switch, False):
            raise fields.refuse(switch, "which is not supported")
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    with contradictions_named(fields):
        return NetworkConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=fields.integer("n_layer"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=read_head_dim(fields, hidden_size, num_heads),
            feed_forward_size=fields.integer("n_inner", 4 * hidden_size),
            max_positions=fields.integer("n_positions"),
            norm_eps=fields.number("layer_norm_epsilon", 1e-5),
            block=Block.GELU,
            qkv_bias=True,
            output_bias=True,
            feed_forward_bias=True,
            norm_bias=True,
            tie_head=fields.flag("tie_word_embeddings", True),
        )


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    parse=_parse,
    names=_NAMES,
)
