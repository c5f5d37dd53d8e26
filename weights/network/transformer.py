"""`Transformer`: the Llama-style network that most families share.

Shapes: T rows, R rows that want scores, d hidden width.

    x += output(attention(norm(x)));  x += feed_forward(norm(x));  final norm
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import (
    Int8Weight,
    KVCache,
    LayerParts,
    LayerStack,
    RotaryTable,
    add_rms_norm,
    layer_stack,
    plan_attention,
    rms_norm,
    rotary_rows,
)
from weights.network.attention import Attention, AttentionStep, build_attention
from weights.network.config import NetworkConfig
from weights.network.embedding import Vocabulary, build_vocabulary
from weights.network.feed_forward import FeedForward, GatedFeedForward, build_gated_feed_forward
from weights.network.interface import NetworkInput
from weights.network.latent import (
    LatentInput,
    LatentLayer,
    Rows,
    build_latent_input,
    build_latent_layer,
)
from weights.network.linear import Linear, Placement
from weights.network.rotary_tables import build_rotary_table
from weights.network.tensor_reader import Parts
from weights.packed import Piece, take_linear


@dataclass(frozen=True, slots=True)
class LowRank:
    """A draft adapter of one matrix: x -> scale * up(down(x)), with the scale inside up.

    down: [r, in], up: [out, r]
    """

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor, draft_rows: Tensor) -> Tensor:
        """Apply it to x [T, in] where draft_rows [T] says so; other rows give zeros."""
        shrunk = torch.nn.functional.linear(x, self.down) * draft_rows.unsqueeze(-1)
        return torch.nn.functional.linear(shrunk, self.up)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    following_norm: [d], the norm after it: of the next layer's attention, or the final one
    adapter:        low-rank weights beside `output` for drafted rows, or None
    latent:         low-rank weights beside `output` and `down` for latent rows, or None
    """

    attention: Attention
    output: Linear
    feed_forward_norm: Tensor
    feed_forward: FeedForward
    following_norm: Tensor
    adapter: LowRank | None
    latent: LatentLayer | None = None

    def follow(
        self,
        attended: Tensor,
        residual: Tensor,
        eps: float,
        *,
        draft_rows: Tensor | None,
        latent_rows: Rows | None,
    ) -> tuple[Tensor, Tensor]:
        """All behind attention: what the next layer reads, and the residual [T, d].

        draft_rows, latent_rows: to which rows the low-rank weights apply, or None
        """
        x = self.output(attended)
        if draft_rows is not None and self.adapter is not None:
            x = x + self.adapter(attended, draft_rows)
        if latent_rows is not None and self.latent is not None and self.latent.output:
            self.latent.output.add(x, attended, latent_rows)
        x, residual = add_rms_norm(x, residual, self.feed_forward_norm, eps)
        x = self._feed(x, latent_rows)
        return add_rms_norm(x, residual, self.following_norm, eps)

    def parts(self) -> LayerParts | None:
        """What it consists of, where that is all that a stack of layers knows."""
        if not isinstance(self.feed_forward, GatedFeedForward):
            return None
        low_output = None if self.adapter is None else (self.adapter.down, self.adapter.up)
        low_down = None
        if self.latent is not None:
            low_output, low_down = self.latent.output or low_output, self.latent.down
        return LayerParts(
            self.attention.qkv,
            self.output,
            self.feed_forward.gate_up,
            self.feed_forward.down,
            self.attention.heads,
            self.feed_forward_norm,
            self.following_norm,
            low_output,
            low_down,
        )

    def _feed(self, x: Tensor, latent_rows: Rows | None) -> Tensor:
        """The feed-forward of rows [T, d], of which some hold latents."""
        feed_forward = self.feed_forward
        added = None if self.latent is None else self.latent.down
        if latent_rows is None or added is None or not isinstance(feed_forward, GatedFeedForward):
            return feed_forward(x)
        inner = feed_forward.inner(x)
        y = feed_forward.down(inner)
        added.add(y, inner, latent_rows)
        return y


class Transformer:
    """RMSNorm, grouped-query attention with rotary positions, SwiGLU or experts."""

    def __init__(
        self,
        config: NetworkConfig,
        vocabulary: Vocabulary,
        *,
        first_norm: Tensor,
        layers: tuple[Layer, ...],
        rotary: RotaryTable,
        latent: LatentInput | None = None,
    ) -> None:
        self.config = config
        self.num_layers = config.num_layers
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.vocabulary = vocabulary
        self.first_norm = first_norm
        self.layers = layers
        self.rotary = rotary
        self.latent = latent
        self._stacked: tuple[KVCache, LayerStack | None] | None = None

    @property
    def is_row_exact(self) -> bool:
        """Whether a row's bits do not depend on the other rows of a step (int8 weights).

        Rounding to int8 makes last-bit differences large, so attention must not have any; the
        cache must then hold numbers from the start.
        """
        return isinstance(self.layers[0].output.weight, Int8Weight)

    @property
    def head_weight(self) -> Tensor | Int8Weight:
        """The output head [V, d]."""
        return self.vocabulary.head_weight

    @property
    def head_bias(self) -> Tensor | None:
        """Bias of the output head [V]."""
        return self.vocabulary.head.bias

    @property
    def token_table(self) -> Tensor:
        """Embedding of every token [V, d]."""
        return self.vocabulary.token_table

    def forward(self, step: NetworkInput, cache: KVCache) -> Tensor:
        """Run one step; returns the scored rows [R, d] after the final norm."""
        config, eps = self.config, self.config.norm_eps
        plan = plan_attention(
            step.batch,
            page_size=cache.page_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            dtype=self.first_norm.dtype,
            exact_slots=cache.num_pages * cache.page_size if self.is_row_exact else None,
        )
        shared = AttentionStep(step.batch, plan, rotary_rows(self.rotary, step.positions))
        draft_rows = step.draft_rows
        residual, latent_rows = self._embed(step)
        x = rms_norm(residual, self.first_norm, eps)
        stack, last, start = self._stack(cache), self.layers[-1], 0
        if stack is not None and stack.can_run(x, plan):
            low_rows = _low_rows(step)
            stack.run_(x, residual, plan, shared.rotary, eps=eps, low_rows=low_rows)
            start = len(self.layers) - 1
        for layer, keys, values in zip(
            self.layers[start:], cache.keys[start:], cache.values[start:], strict=True
        ):
            x = layer.attention(x, keys, values, shared)
            if layer is last:
                # The last layer's keys and values are stored; only scored rows go further.
                x, residual = x[step.score_rows], residual[step.score_rows]
                draft_rows = None if draft_rows is None else draft_rows[step.score_rows]
                if step.latents is not None:
                    latent_rows = step.latents.scored_run or step.latents.scored
            x, residual = layer.follow(
                x, residual, eps, draft_rows=draft_rows, latent_rows=latent_rows
            )
        return x

    def _stack(self, cache: KVCache) -> LayerStack | None:
        """All layers but the last over this cache, made once for the cache met last."""
        if self._stacked is None or self._stacked[0] is not cache:
            parts = [layer.parts() for layer in self.layers[:-1]]
            known = [part for part in parts if part is not None]
            complete = len(known) == len(parts)
            stack = layer_stack(known, cache.keys, cache.values) if complete else None
            self._stacked = (cache, stack)
        return self._stacked[1]

    def _embed(self, step: NetworkInput) -> tuple[Tensor, Rows | None]:
        """What the rows hold [T, d], and which of them hold latents."""
        x = self.vocabulary.look_up(step.token_ids)
        latents, latent_rows = step.latents, None
        if latents is not None:
            if self.latent is None:
                raise ValueError("this network has no latents")
            x = x.index_copy(0, latents.rows, self.latent.embed(latents))
            latent_rows = latents.run or latents.rows
        return self.vocabulary.place(x, step.positions), latent_rows


def _low_rows(step: NetworkInput) -> Tensor | None:
    """The rows [L] int64 to which low-rank weights apply, or None."""
    if step.latents is not None:
        return step.latents.rows
    return None if step.draft_rows is None else step.draft_rows.nonzero()[:, 0]


def build_transformer(config: NetworkConfig, parts: Parts, placement: Placement) -> Transformer:
    """Take all tensors; raises CheckpointError when one is missing or misshapen.

    Raises ValueError when the config has no rotary embedding.
    """
    if config.rotary is None:
        raise ValueError("a gated network needs a rotary embedding")
    hidden = (config.hidden_size,)
    vocabulary = build_vocabulary(config, parts, placement)
    norms = [
        placement.tensor(parts.take("attention_norm.weight", hidden, layer))
        for layer in range(config.num_layers)
    ]
    norms.append(placement.tensor(parts.take("final_norm.weight", hidden)))
    return Transformer(
        config,
        vocabulary,
        first_norm=norms[0],
        layers=tuple(
            _build_layer(config, parts, placement, layer=layer, following_norm=norms[layer + 1])
            for layer in range(config.num_layers)
        ),
        rotary=build_rotary_table(
            config.rotary, num_positions=config.max_positions, device=placement.device
        ),
        latent=build_latent_input(
            config,
            parts,
            placement,
            token_table=vocabulary.token_table,
            head=vocabulary.head_weight,
        ),
    )


def _build_layer(
    config: NetworkConfig,
    parts: Parts,
    placement: Placement,
    *,
    layer: int,
    following_norm: Tensor,
) -> Layer:
    hidden = config.hidden_size
    norm = parts.take("feed_forward_norm.weight", (hidden,), layer)
    bias = parts.take("output.bias", (hidden,), layer) if config.output_bias else None
    output = Piece("output.weight", (hidden, config.attended_size))
    return Layer(
        attention=build_attention(config, parts, placement, layer=layer),
        output=take_linear(parts, placement, [output], layer, bias=bias),
        feed_forward_norm=placement.tensor(norm),
        feed_forward=build_gated_feed_forward(config, parts, placement, layer=layer),
        following_norm=following_norm,
        adapter=_build_adapter(config, parts, placement, layer=layer),
        latent=build_latent_layer(config, parts, placement, layer=layer),
    )


def _build_adapter(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> LowRank | None:
    adapter = config.draft_adapter
    if adapter is None:
        return None
    down = parts.take("adapter.down.weight", (adapter.rank, config.attended_size), layer)
    up = parts.take("adapter.up.weight", (config.hidden_size, adapter.rank), layer)
    return LowRank(placement.tensor(down), placement.tensor(up.float() * adapter.scale))
