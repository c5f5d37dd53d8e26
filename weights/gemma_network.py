"""`GemmaNetwork`: the Gemma-4 text network, causal for settled rows, both ways for a canvas.

One stack of weights in two modes, chosen row by row: settled rows are causal and enter as plain
embeddings; canvas rows see the context and all of their canvas, and enter through the
self-conditioning network, which tells them what the step before expected of each position. The
modes differ also in a scalar at the end of each layer.

What a row sees is the `PagedBatch` of its kind of layer (W is the window of sliding layers, n the
number of settled tokens, C the length of the canvas):

    settled row at position i   full: [0, i + 1)    sliding: [max(0, i - W + 1), i + 1)
    canvas row, any of them     full: [0, n + C)    sliding: [max(0, n - W + 1), n + C)

Shapes: T rows, R rows that want scores, d hidden width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import (
    KVCache,
    PagedBatch,
    RotaryTable,
    allocate_kv_cache,
    plan_attention,
    rms_norm,
    rotary_rows,
)
from weights.gemma_config import AttentionSizes, GemmaConfig, LayerKind
from weights.gemma_layer import (
    GeluGate,
    GemmaAttentionStep,
    GemmaLayer,
    build_gelu_gate,
    build_gemma_layer,
)
from weights.network.linear import Placement
from weights.network.tensor_reader import Parts


@dataclass(frozen=True, slots=True)
class GemmaInput:
    """One step.

    token_ids, positions: [T] int64
    score_rows: [R] int64, the rows whose hidden state is wanted
    batches:    by kind of layer, where rows are stored and what they see
    is_canvas:  [T] bool, or None when no row is of a canvas
    expected:   [T, d] what the step before expected at each canvas row, `expect` of its logits
                over temperature; zeros at the first step of a canvas and in other rows. None
                where is_canvas is
    """

    token_ids: Tensor
    positions: Tensor
    score_rows: Tensor
    batches: Mapping[LayerKind, PagedBatch]
    is_canvas: Tensor | None = None
    expected: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SelfConditioning:
    """How a canvas row enters: rms(embedding + gated(rms(expected)))."""

    input_norm: Tensor
    gate: GeluGate


class GemmaNetwork:
    """A network without state; keys and values of a kind of layer lie in a cache of their own."""

    def __init__(
        self,
        config: GemmaConfig,
        *,
        token_table: Tensor,
        layers: tuple[GemmaLayer, ...],
        final_norm: Tensor,
        conditioning: SelfConditioning | None,
        rotary: Mapping[LayerKind, RotaryTable],
    ) -> None:
        self.config = config
        self.token_table = token_table
        self.layers = layers
        self.final_norm = final_norm
        self.conditioning = conditioning
        self.rotary = rotary
        self._ones = torch.ones_like(final_norm)
        # In the type of the weights: bfloat16 rounds it, and the published weights count on that.
        self._embedding_scale = torch.tensor(config.hidden_size**0.5).to(token_table)

    def forward(self, step: GemmaInput, caches: Mapping[LayerKind, KVCache]) -> Tensor:
        """Run one step and return the hidden rows [R, d] after the final norm."""
        shared = {kind: self._attention_step(kind, step, caches[kind]) for kind in caches}
        x, is_canvas = self._embed(step), step.is_canvas
        used = dict.fromkeys(caches, 0)
        last = self.layers[-1]
        for layer, kind in zip(self.layers, self.config.layers, strict=True):
            cache = caches[kind]
            attended = layer.attend(
                x, cache.keys[used[kind]], cache.values[used[kind]], shared[kind]
            )
            used[kind] += 1
            if layer is last:
                x, attended = x[step.score_rows], attended[step.score_rows]
                is_canvas = None if is_canvas is None else is_canvas[step.score_rows]
            x = layer.finish(x, attended, is_canvas)
        return rms_norm(x, self.final_norm, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] float32 of hidden rows, soft-capped."""
        logits = functional.linear(hidden, self.token_table).float()
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def expect(self, logits: Tensor) -> Tensor:
        """What rows expect at their position [R, d], of logits over temperature [R, V]."""
        probabilities = logits.to(self.token_table.dtype).float().softmax(-1)
        expected = probabilities.to(self.token_table.dtype) @ self.token_table
        return expected * self._embedding_scale

    def allocate_caches(self, *, num_pages: int, page_size: int) -> dict[LayerKind, KVCache]:
        """Allocate a cache for each kind of layer that there is."""
        return {
            kind: allocate_kv_cache(
                num_layers=self.config.layers.count(kind),
                num_pages=num_pages,
                page_size=page_size,
                num_kv_heads=self.config.attention(kind).num_kv_heads,
                head_dim=self.config.attention(kind).head_dim,
                dtype=self.token_table.dtype,
                device=self.token_table.device,
            )
            for kind in LayerKind
            if kind in self.config.layers
        }

    def _attention_step(
        self, kind: LayerKind, step: GemmaInput, cache: KVCache
    ) -> GemmaAttentionStep:
        plan = plan_attention(
            step.batches[kind],
            page_size=cache.page_size,
            num_heads=self.config.num_heads,
            num_kv_heads=self.config.attention(kind).num_kv_heads,
            dtype=self.token_table.dtype,
        )
        rotary = rotary_rows(self.rotary[kind], step.positions)
        return GemmaAttentionStep(step.batches[kind], plan, rotary)

    def _embed(self, step: GemmaInput) -> Tensor:
        x = functional.embedding(step.token_ids, self.token_table) * self._embedding_scale
        if step.is_canvas is None:
            return x
        if self.conditioning is None or step.expected is None:
            raise ValueError("canvas rows need a network with self-conditioning, and `expected`")
        eps = self.config.norm_eps
        told = self.conditioning.gate(rms_norm(step.expected, self.conditioning.input_norm, eps))
        return torch.where(step.is_canvas[:, None], rms_norm(x + told, self._ones, eps), x)


def build_gemma_network(config: GemmaConfig, parts: Parts, placement: Placement) -> GemmaNetwork:
    """Take all tensors; raises CheckpointError when one is missing or misshapen."""
    hidden = config.hidden_size
    conditioning = None
    if config.canvas_length is not None:
        conditioning = SelfConditioning(
            placement.tensor(parts.take("conditioning.norm.weight", (hidden,))),
            build_gelu_gate(
                parts, placement, hidden, config.feed_forward_size, prefix="conditioning."
            ),
        )
    return GemmaNetwork(
        config,
        token_table=placement.tensor(parts.take("embedding", (config.vocab_size, hidden))),
        layers=tuple(
            build_gemma_layer(config, parts, placement, layer=layer)
            for layer in range(len(config.layers))
        ),
        final_norm=placement.tensor(parts.take("final_norm.weight", (hidden,))),
        conditioning=conditioning,
        rotary={
            kind: gemma_rotary_table(config.attention(kind), config.max_positions, placement.device)
            for kind in LayerKind
        },
    )


def gemma_rotary_table(
    sizes: AttentionSizes, num_positions: int, device: torch.device
) -> RotaryTable:
    """Angles of positions 0 .. num_positions - 1; pairs behind `turned_pairs` do not turn.

    The exponent divides by the whole head width, however few pairs turn.
    """
    pairs = torch.arange(sizes.head_dim // 2, dtype=torch.float32)
    frequencies = 1.0 / sizes.theta ** (2 * pairs / sizes.head_dim) / sizes.factor
    frequencies = torch.where(pairs < sizes.turned_pairs, frequencies, 0.0)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return RotaryTable(cos=angles.cos().to(device), sin=angles.sin().to(device))
