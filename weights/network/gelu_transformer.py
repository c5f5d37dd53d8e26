"""`GeluTransformer`: LayerNorm and GELU; GPT-2, and diffusion transformers with folded norms.

Shapes: T rows, R rows that want scores, d hidden width.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels import Int8Weight, KVCache, RotaryTable, layer_norm, plan_attention, rotary_rows
from weights.network.attention import Attention, AttentionStep, build_attention
from weights.network.config import NetworkConfig
from weights.network.embedding import Vocabulary, build_vocabulary
from weights.network.feed_forward import GeluFeedForward, build_gelu_feed_forward
from weights.network.interface import NetworkInput
from weights.network.linear import Linear, Placement
from weights.network.rotary_tables import build_rotary_table
from weights.network.tensor_reader import Parts


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalise rows, then scale by weight [d] and shift by bias [d] where there is one."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows [T, d]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class GeluLayer:
    """One layer."""

    attention_norm: LayerNorm
    attention: Attention
    output: Linear
    feed_forward_norm: LayerNorm
    feed_forward: GeluFeedForward


class GeluTransformer:
    """LayerNorm, attention with learned or rotary positions, GELU feed-forward."""

    def __init__(
        self,
        config: NetworkConfig,
        vocabulary: Vocabulary,
        *,
        layers: tuple[GeluLayer, ...],
        final_norm: LayerNorm,
        rotary: RotaryTable | None,
    ) -> None:
        self.config = config
        self.num_layers = config.num_layers
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.vocabulary = vocabulary
        self.layers = layers
        self.final_norm = final_norm
        self.rotary = rotary

    @property
    def head_weight(self) -> Tensor | Int8Weight:
        """The output head [V, d]."""
        return self.vocabulary.head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """Bias of the output head [V]."""
        return self.vocabulary.head.bias

    @property
    def token_table(self) -> Tensor:
        """Embedding of every token [V, d]."""
        return self.vocabulary.token_table

    @property
    def is_row_exact(self) -> bool:
        """Whether a row's bits do not depend on the other rows of a step (int8 weights)."""
        return isinstance(self.layers[0].output.weight, Int8Weight)

    @property
    def latent(self) -> None:
        """It has no latents."""
        return

    def forward(self, step: NetworkInput, cache: KVCache) -> Tensor:
        """Run one step; returns the scored rows [R, d] after the final norm."""
        plan = plan_attention(
            step.batch,
            page_size=cache.page_size,
            num_heads=self.config.num_heads,
            num_kv_heads=self.config.num_kv_heads,
            dtype=self.token_table.dtype,
            exact_slots=cache.num_pages * cache.page_size if self.is_row_exact else None,
        )
        rotary = None if self.rotary is None else rotary_rows(self.rotary, step.positions)
        shared = AttentionStep(step.batch, plan, rotary)
        x = self.vocabulary.embed(step.token_ids, step.positions)
        last = self.layers[-1]
        for layer, keys, values in zip(
            self.layers, cache.keys.unbind(), cache.values.unbind(), strict=True
        ):
            attended = layer.attention(layer.attention_norm(x), keys, values, shared)
            if layer is last:
                # The last layer's keys and values are stored; only scored rows go further.
                x, attended = x[step.score_rows], attended[step.score_rows]
            x = x + layer.output(attended)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        return self.final_norm(x)


def build_gelu_transformer(
    config: NetworkConfig, parts: Parts, placement: Placement
) -> GeluTransformer:
    """Take all tensors; raises CheckpointError when one is missing or misshapen."""
    rotary = None
    if config.rotary is not None:
        rotary = build_rotary_table(
            config.rotary, num_positions=config.max_positions, device=placement.device
        )
    return GeluTransformer(
        config,
        build_vocabulary(config, parts, placement),
        layers=tuple(
            _build_layer(config, parts, placement, layer=layer)
            for layer in range(config.num_layers)
        ),
        final_norm=_build_norm(config, parts, placement, part="final_norm"),
        rotary=rotary,
    )


def _build_layer(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> GeluLayer:
    hidden = config.hidden_size
    bias = parts.take("output.bias", (hidden,), layer) if config.output_bias else None
    output = parts.take("output.weight", (hidden, config.attended_size), layer)
    return GeluLayer(
        attention_norm=_build_norm(config, parts, placement, part="attention_norm", layer=layer),
        attention=build_attention(config, parts, placement, layer=layer),
        output=placement.linear(output, bias),
        feed_forward_norm=_build_norm(
            config, parts, placement, part="feed_forward_norm", layer=layer
        ),
        feed_forward=build_gelu_feed_forward(config, parts, placement, layer=layer),
    )


def _build_norm(
    config: NetworkConfig,
    parts: Parts,
    placement: Placement,
    *,
    part: str,
    layer: int | None = None,
) -> LayerNorm:
    shape = (config.hidden_size,)
    weight = placement.tensor(parts.take(f"{part}.weight", shape, layer))
    bias = None
    if config.norm_bias:
        bias = placement.tensor(parts.take(f"{part}.bias", shape, layer))
    return LayerNorm(weight, bias, config.norm_eps)
