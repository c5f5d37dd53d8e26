"""`GemmaConfig`: sizes of the Gemma-4 text network, on which DiffusionGemma stands too.

From: the Gemma 4 and DiffusionGemma classes of transformers 5.23.
"""

from dataclasses import dataclass
from enum import StrEnum

from weights.config_fields import ConfigFields
from weights.errors import CheckpointError

# What the library takes for fields that a file leaves out.
_SOFT_CAP = 30.0
_SLIDING_THETA, _FULL_THETA = 10_000.0, 1_000_000.0
_FULL_TURNED_SHARE = 0.25
_FULL_HEAD_DIM = 512
_FULL_EVERY = 6
_NORM_EPS = 1e-6


class LayerKind(StrEnum):
    """What the attention of a layer sees: the last tokens, or all."""

    SLIDING = "sliding_attention"
    FULL = "full_attention"


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """The attention of all layers of a kind.

    theta, turned_pairs, factor: rotary frequencies are theta^(-2 i / head_dim) / factor for the
                    first pairs, 0 for the others; pairs are (i, i + head_dim / 2)
    window:         a settled row sees so many tokens, its own among them; None for all
    value_is_key:   there is no matrix for values: they are keys before norm and rotation
    """

    num_kv_heads: int
    head_dim: int
    theta: float
    turned_pairs: int
    factor: float = 1.0
    window: int | None = None
    value_is_key: bool = False


@dataclass(frozen=True, slots=True)
class GemmaExperts:
    """A mixture of experts beside the dense feed-forward."""

    num_experts: int
    experts_per_token: int
    expert_size: int


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """Sizes and switches.

    layers:        the kind of each
    soft_cap:      logits become cap * tanh(logits / cap), or None
    experts:       None for a dense feed-forward alone
    canvas_length: rows of a canvas, or None for a network that only decodes left to right
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerKind, ...]
    num_heads: int
    sliding: AttentionSizes
    full: AttentionSizes
    feed_forward_size: int
    max_positions: int
    norm_eps: float
    soft_cap: float | None
    experts: GemmaExperts | None
    canvas_length: int | None

    def attention(self, kind: LayerKind) -> AttentionSizes:
        """Sizes of the attention of a kind of layer."""
        return self.sliding if kind is LayerKind.SLIDING else self.full


def parse_diffusion_gemma(fields: ConfigFields) -> GemmaConfig:
    """Read a DiffusionGemma config.json; raises CheckpointError for what is not supported."""
    text = fields.section("text_config")
    if text is None:
        raise CheckpointError(f"{fields.where} has no field text_config")
    return _parse(
        text,
        value_is_key=True,
        has_experts=True,
        soft_cap=text.number("final_logit_softcapping", _SOFT_CAP),
        canvas_length=fields.integer("canvas_length", 256),
    )


def parse_gemma4(fields: ConfigFields) -> GemmaConfig:
    """Read a Gemma-4 config.json, of the text class or of the one with images."""
    text = fields.section("text_config") or fields
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if text.integer(name, 0):
            raise text.refuse(name, "which is not supported")
    cap = "final_logit_softcapping"
    return _parse(
        text,
        value_is_key=text.flag("attention_k_eq_v", False),
        has_experts=text.flag("enable_moe_block", False),
        soft_cap=text.number(cap) if text.has(cap) else None,
        canvas_length=None,
    )


def _parse(
    text: ConfigFields,
    *,
    value_is_key: bool,
    has_experts: bool,
    soft_cap: float | None,
    canvas_length: int | None,
) -> GemmaConfig:
    if text.text("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise text.refuse("hidden_activation", "but only gelu_pytorch_tanh is known")
    if text.flag("attention_bias", False):
        raise text.refuse("attention_bias", "which is not supported")
    if not text.flag("tie_word_embeddings", True):
        raise text.refuse("tie_word_embeddings", "but the head is the token table")
    experts = None
    if has_experts:
        experts = GemmaExperts(
            text.integer("num_experts"),
            text.integer("top_k_experts"),
            text.integer("moe_intermediate_size"),
        )
    layers = _read_layers(text)
    config = GemmaConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        layers=layers,
        num_heads=text.integer("num_attention_heads"),
        sliding=_read_sliding(text),
        full=_read_full(text, layers, value_is_key=value_is_key),
        feed_forward_size=text.integer("intermediate_size"),
        max_positions=text.integer("max_position_embeddings"),
        norm_eps=text.number("rms_norm_eps", _NORM_EPS),
        soft_cap=soft_cap,
        experts=experts,
        canvas_length=canvas_length,
    )
    _check(config, text)
    return config


def _check(config: GemmaConfig, text: ConfigFields) -> None:
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "intermediate_size": config.feed_forward_size,
        "max_position_embeddings": config.max_positions,
        "sliding_window": config.sliding.window or 0,
        "canvas_length": 1 if config.canvas_length is None else config.canvas_length,
    }
    for name, size in sizes.items():
        if size < 1:
            raise CheckpointError(f"{text.where}: {name} must be at least 1, got {size}")
    for sizes_of_kind in (config.sliding, config.full):
        kv_heads, head_dim = sizes_of_kind.num_kv_heads, sizes_of_kind.head_dim
        if kv_heads < 1 or config.num_heads % kv_heads or head_dim < 2 or head_dim % 2:
            raise CheckpointError(
                f"{text.where}: {config.num_heads} query heads of width {head_dim} cannot share "
                f"{kv_heads} key heads"
            )
    experts = config.experts
    if experts is not None and not 1 <= experts.experts_per_token <= experts.num_experts:
        raise text.refuse("top_k_experts", f"of {experts.num_experts} experts")


def _read_layers(text: ConfigFields) -> tuple[LayerKind, ...]:
    """Kinds of all layers; the last one is full whatever a file says."""
    count = text.integer("num_hidden_layers")
    names = text.texts("layer_types")
    if not names:
        names = tuple(
            LayerKind.SLIDING if (layer + 1) % _FULL_EVERY else LayerKind.FULL
            for layer in range(count)
        )
    known = {kind.value for kind in LayerKind}
    if len(names) != count or not known.issuperset(names):
        raise text.refuse("layer_types", f"but {count} of {', '.join(sorted(known))} are needed")
    return (*(LayerKind(name) for name in names[:-1]), LayerKind.FULL)


def _read_sliding(text: ConfigFields) -> AttentionSizes:
    head_dim = text.integer("head_dim")
    rope = _rope(text, LayerKind.SLIDING, "default")
    return AttentionSizes(
        num_kv_heads=text.integer("num_key_value_heads"),
        head_dim=head_dim,
        theta=rope.number("rope_theta", _SLIDING_THETA),
        turned_pairs=head_dim // 2,
        window=text.integer("sliding_window"),
    )


def _read_full(
    text: ConfigFields, layers: tuple[LayerKind, ...], *, value_is_key: bool
) -> AttentionSizes:
    """Sizes of the full layers, in either spelling."""
    kv_heads, head_dim = text.integer("num_key_value_heads"), text.integer("head_dim")
    per_layer = text.section("per_layer_config")
    if per_layer is not None:
        stated = {
            (one.integer("num_key_value_heads", kv_heads), one.integer("head_dim", head_dim))
            for layer, kind in enumerate(layers)
            if kind is LayerKind.FULL
            for one in [per_layer.section(str(layer)) or ConfigFields({}, per_layer.where)]
        }
        if len(stated) != 1:
            raise text.refuse("per_layer_config", "but all full layers must be alike")
        kv_heads, head_dim = stated.pop()
    else:
        head_dim = text.integer("global_head_dim", _FULL_HEAD_DIM)
        if value_is_key:
            kv_heads = text.integer("num_global_key_value_heads", kv_heads)
    rope = _rope(text, LayerKind.FULL, "proportional")
    share = rope.number("partial_rotary_factor", _FULL_TURNED_SHARE)
    return AttentionSizes(
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        theta=rope.number("rope_theta", _FULL_THETA),
        turned_pairs=int(share * head_dim / 2),
        factor=rope.number("factor", 1.0),
        value_is_key=value_is_key,
    )


def _rope(text: ConfigFields, kind: LayerKind, known: str) -> ConfigFields:
    parameters = text.section("rope_parameters")
    rope = None if parameters is None else parameters.section(kind.value)
    found = ConfigFields({}, text.where) if rope is None else rope
    if found.text("rope_type", known) != known:
        raise found.refuse("rope_type", f"but only {known} is known of {kind.value}")
    return found
