"""The diffusion transformers (MDLM, BD3-LM, Eso-LM): layout, and folding of adaptive norms.

They are trained without a notion of time, so the condition of every adaptive norm is one constant
vector, and shift, scale and gate of each layer fold into its weights exactly. With c that vector
and (shift, scale, gate) what a layer makes of it:

    norm weight  * (1 + scale)            matrix after it: bias + W shift
    output rows  * gate                   output bias * gate

From: Sahoo et al. 2025, Esoteric language models, arXiv 2506.01928; Arriola et al. 2025, Block
diffusion, arXiv 2503.09573; Peebles and Xie 2023, DiT, arXiv 2212.09748 (adaLN).
"""

import torch
from torch import Tensor

from weights.config_fields import ConfigFields
from weights.families.hf_layout import contradictions_named, read_head_dim
from weights.network.config import Block, NetworkConfig, RotaryConfig
from weights.network.tensor_reader import Parts, TensorNames

_BLOCK = "blocks.{layer}."
_LAYER_NORM_EPS = 1e-5
_ROTARY_THETA = 10000.0
_MLP_RATIO = 4
# Width of the sinusoidal features of the time step.
_TIME_FEATURES = 256
_COND_DIM = 128

DIT_NAMES = TensorNames(
    {
        "embedding": "vocab_embed.embedding",
        "time.0.weight": "sigma_map.mlp.0.weight",
        "time.0.bias": "sigma_map.mlp.0.bias",
        "time.2.weight": "sigma_map.mlp.2.weight",
        "time.2.bias": "sigma_map.mlp.2.bias",
        "attention_norm.weight": _BLOCK + "norm1.weight",
        "qkv.weight": _BLOCK + "attn_qkv.weight",
        "output.weight": _BLOCK + "attn_out.weight",
        "feed_forward_norm.weight": _BLOCK + "norm2.weight",
        "up.weight": _BLOCK + "mlp.0.weight",
        "up.bias": _BLOCK + "mlp.0.bias",
        "down.weight": _BLOCK + "mlp.2.weight",
        "down.bias": _BLOCK + "mlp.2.bias",
        "modulation.weight": _BLOCK + "adaLN_modulation.weight",
        "modulation.bias": _BLOCK + "adaLN_modulation.bias",
        "final_norm.weight": "output_layer.norm_final.weight",
        "head.weight": "output_layer.linear.weight",
        "head.bias": "output_layer.linear.bias",
        "final_modulation.weight": "output_layer.adaLN_modulation.weight",
        "final_modulation.bias": "output_layer.adaLN_modulation.bias",
    },
    prefixes=("backbone.",),
    ignored=(r"rotary_emb\.inv_freq", r"sampling_eps_(min|max)"),
)


def parse_dit(fields: ConfigFields) -> NetworkConfig:
    """Read the sizes; the authors' classes call the width `hidden_size` or `hidden_dim`.

    Raises CheckpointError for a network that knows time: its norms cannot be folded.
    """
    if fields.flag("time_conditioning", False):
        raise fields.refuse("time_conditioning", "but only networks without time are supported")
    if fields.flag("causal", False):
        raise fields.refuse("causal", "but this family attends both ways")
    width_name = "hidden_size" if fields.has("hidden_size") else "hidden_dim"
    hidden_size, num_heads = fields.integer(width_name), fields.integer("n_heads")
    head_dim = read_head_dim(fields, hidden_size, num_heads)
    with contradictions_named(fields):
        return NetworkConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=fields.integer("n_blocks"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=head_dim,
            feed_forward_size=_MLP_RATIO * hidden_size,
            max_positions=fields.integer("model_length"),
            norm_eps=_LAYER_NORM_EPS,
            block=Block.GELU,
            rotary=RotaryConfig(_ROTARY_THETA, head_dim),
            # The folded shift of the norm before it.
            qkv_bias=True,
            feed_forward_bias=True,
            head_bias=True,
        )


def fold_adaptive_norms(parts: Parts, config: NetworkConfig, fields: ConfigFields) -> Parts:
    """Give the network plain weights instead of adaptive norms.

    A checkpoint trained without them (`adaln` false) has unit scales and gates and no shifts.
    """
    condition = None
    if fields.flag("adaln", True):
        condition = _condition(parts, fields.integer("cond_dim", _COND_DIM))
    return _FoldedParts(parts, config, condition)


def _condition(parts: Parts, width: int) -> Tensor:
    """The constant vector [C] float64 all adaptive norms are given: time step 0."""
    features = torch.zeros(_TIME_FEATURES, dtype=torch.float64)
    features[: _TIME_FEATURES // 2] = 1.0  # cosines of 0, then sines of 0
    hidden = _affine(parts, "time.0", features, width)
    return torch.nn.functional.silu(
        _affine(parts, "time.2", torch.nn.functional.silu(hidden), width)
    )


def _affine(
    parts: Parts, part: str, x: Tensor, out_features: int, layer: int | None = None
) -> Tensor:
    weight = parts.take(f"{part}.weight", (out_features, x.shape[0]), layer).double()
    return weight @ x + parts.take(f"{part}.bias", (out_features,), layer).double()


class _FoldedParts:
    """Parts of a network whose adaptive norms were folded into its weights, in float64."""

    def __init__(self, parts: Parts, config: NetworkConfig, condition: Tensor | None) -> None:
        self._parts = parts
        self._config = config
        self._condition = condition
        self._layers = [
            self._modulate("modulation", 6, layer) for layer in range(config.num_layers)
        ]
        self._final = self._modulate("final_modulation", 2, None)

    def has(self, part: str, layer: int | None = None, expert: int | None = None) -> bool:
        """Whether there is such a part."""
        return part == "qkv.bias" or self._parts.has(part, layer, expert)

    def take(
        self,
        part: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        expert: int | None = None,
    ) -> Tensor:
        """Read a part and fold into it what belongs to it."""
        if layer is None:
            return self._fold_outer(part, self._parts.take(part, shape).double())
        if part == "qkv.bias":
            weight = self._parts.take("qkv.weight", (*shape, self._config.hidden_size), layer)
            return weight.double() @ self._layers[layer][0]
        return self._fold_layer(part, self._parts.take(part, shape, layer, expert).double(), layer)

    def _fold_layer(self, part: str, stored: Tensor, layer: int) -> Tensor:
        _, attention_scale, attention_gate, shift, scale, gate = self._layers[layer]
        hidden, width = self._config.hidden_size, self._config.feed_forward_size
        match part:
            case "attention_norm.weight":
                return stored * (1 + attention_scale)
            case "output.weight":
                return stored * attention_gate.unsqueeze(1)
            case "feed_forward_norm.weight":
                return stored * (1 + scale)
            case "up.bias":
                weight = self._parts.take("up.weight", (width, hidden), layer)
                return stored + weight.double() @ shift
            case "down.weight":
                return stored * gate.unsqueeze(1)
            case "down.bias":
                return stored * gate
            case _:
                return stored

    def _fold_outer(self, part: str, stored: Tensor) -> Tensor:
        shift, scale = self._final
        if part == "final_norm.weight":
            return stored * (1 + scale)
        if part == "head.bias":
            shape = (self._config.vocab_size, self._config.hidden_size)
            return stored + self._parts.take("head.weight", shape).double() @ shift
        return stored

    def _modulate(self, part: str, count: int, layer: int | None) -> tuple[Tensor, ...]:
        """Shift, scale, gate of attention, then of the feed-forward; shift, scale of the head."""
        hidden = self._config.hidden_size
        if self._condition is None:
            neutral = {"shift": 0.0, "scale": 0.0, "gate": 1.0}
            return tuple(
                torch.full((hidden,), value, dtype=torch.float64)
                for _ in range(-(-count // 3))
                for value in neutral.values()
            )[:count]
        return _affine(self._parts, part, self._condition, count * hidden, layer).chunk(count)
