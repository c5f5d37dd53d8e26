"""One layer of the Gemma-4 text network, and how it is taken from a checkpoint.

Shapes: T rows, d hidden width, Hq query heads, Hkv key heads, D head width, I feed-forward width,
E experts, k experts a token takes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import AttentionPlan, PagedBatch, RotaryRows, paged_attention, rms_norm, store_kv
from weights.gemma_config import AttentionSizes, GemmaConfig, GemmaExperts
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts
from weights.packed import Piece, take_linear


@dataclass(frozen=True, slots=True)
class GemmaAttentionStep:
    """What all layers of a kind share in a step."""

    batch: PagedBatch
    plan: AttentionPlan
    rotary: RotaryRows


@dataclass(frozen=True, slots=True)
class GemmaAttention:
    """Attention without a scale, with a norm of queries, keys and (without weight) values.

    qkv:    d -> (Hq + 2 Hkv) * D, or (Hq + Hkv) * D where values are keys
    ones:   [D]
    """

    sizes: AttentionSizes
    num_heads: int
    qkv: Linear
    output: Linear
    q_norm: Tensor
    k_norm: Tensor
    ones: Tensor
    norm_eps: float

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, step: GemmaAttentionStep) -> Tensor:
        """Attend with normed rows x [T, d]; writes keys and values; returns [T, Hq * D]."""
        dim, kv_heads = self.sizes.head_dim, self.sizes.num_kv_heads
        heads = self.qkv(x).view(x.shape[0], -1, dim)
        # Values are the last heads; where they are keys, those are the keys.
        stored = heads[:, -kv_heads:].reshape(-1, dim)
        v = rms_norm(stored, self.ones, self.norm_eps).view(-1, kv_heads, dim)
        queries = store_kv(
            torch.cat((heads[:, : self.num_heads + kv_heads], v), dim=1),
            keys,
            values,
            slots=step.batch.slots,
            num_heads=self.num_heads,
            rotary=step.rotary,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            norm_eps=self.norm_eps,
        )
        attended = paged_attention(queries, keys, values, step.batch, step.plan, scale=1.0)
        return attended.reshape(-1, self.num_heads * dim)


@dataclass(frozen=True, slots=True)
class GeluGate:
    """down(gelu(gate x) * up x) with the tanh form of GELU; gate and up are one matrix."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows [T, d]."""
        return self.down(gelu_gate(self.gate_up(x)))


def gelu_gate(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up [T, I] of gate_up [T, 2 I] (gate first)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


@dataclass(frozen=True, slots=True)
class GemmaMixture:
    """Experts beside the dense feed-forward; their norms stand here because only they need them.

    router:        [E, d] float32, with the scale of its input inside
    expert_scale:  [E] float32, multiplies a weight after the weights were made to sum to 1
    gate_up, down: [E, 2 I, d] and [E, d, I]
    dense_norm, input_norm, output_norm: [d], after the dense feed-forward, before and after experts
    """

    config: GemmaExperts
    router: Tensor
    expert_scale: Tensor
    gate_up: Tensor
    down: Tensor
    dense_norm: Tensor
    input_norm: Tensor
    output_norm: Tensor
    norm_eps: float

    def __call__(self, x: Tensor, dense: Tensor) -> Tensor:
        """Mix the dense feed-forward's output [T, d] with what experts make of the stream x."""
        ids, weights = self.route(x)
        mixed = gelu_experts(
            rms_norm(x, self.input_norm, self.norm_eps), self.gate_up, self.down, ids, weights
        )
        dense = rms_norm(dense, self.dense_norm, self.norm_eps)
        return dense + rms_norm(mixed, self.output_norm, self.norm_eps)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [T, k] int64 and weights [T, k] float32 of the experts for rows of the stream."""
        wide = x.float()
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.norm_eps)
        probabilities = functional.linear(unit, self.router).softmax(-1)  # [T, E]
        best, ids = probabilities.topk(self.config.experts_per_token, dim=-1)
        weights = best / best.sum(-1, keepdim=True)
        return ids, weights * self.expert_scale[ids]


def gelu_experts(
    x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor
) -> Tensor:
    """The weighted sum [T, d] of the chosen experts' outputs; like `grouped_experts`, with GELU.

    Each expert's rows are found by its id, so nothing is computed for experts that nobody chose.
    """
    mixed = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(gate_up.shape[0]):
        rows, choice = (expert_ids == expert).nonzero(as_tuple=True)
        outputs = functional.linear(
            gelu_gate(functional.linear(x[rows], gate_up[expert])), down[expert]
        )
        mixed.index_add_(0, rows, outputs.float() * expert_weights[rows, choice].unsqueeze(1))
    return mixed.to(x.dtype)


@dataclass(frozen=True, slots=True)
class GemmaLayer:
    """One layer.

    settled_scalar, canvas_scalar: [1], multiply the whole stream of a row at the end; which one
                                   depends on what the row is
    """

    attention: GemmaAttention
    input_norm: Tensor
    attended_norm: Tensor
    feed_forward_norm: Tensor
    output_norm: Tensor
    feed_forward: GeluGate
    mixture: GemmaMixture | None
    settled_scalar: Tensor
    canvas_scalar: Tensor
    norm_eps: float

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, step: GemmaAttentionStep) -> Tensor:
        """What attention adds to the stream, before its matrix [T, Hq * D]."""
        normed = rms_norm(x, self.input_norm, self.norm_eps)
        return self.attention.attend(normed, keys, values, step)

    def finish(self, x: Tensor, attended: Tensor, is_canvas: Tensor | None) -> Tensor:
        """The stream [T, d] after the layer."""
        eps = self.norm_eps
        x = x + rms_norm(self.attention.output(attended), self.attended_norm, eps)
        fed = self.feed_forward(rms_norm(x, self.feed_forward_norm, eps))
        if self.mixture is not None:
            fed = self.mixture(x, fed)
        x = x + rms_norm(fed, self.output_norm, eps)
        if is_canvas is None:
            return x * self.settled_scalar
        return x * torch.where(is_canvas[:, None], self.canvas_scalar, self.settled_scalar)


def build_gemma_layer(
    config: GemmaConfig, parts: Parts, placement: Placement, *, layer: int
) -> GemmaLayer:
    """Take a layer's tensors; raises CheckpointError when one is missing or misshapen."""
    hidden, width = config.hidden_size, config.feed_forward_size

    def norm(part: str, size: int = hidden) -> Tensor:
        return placement.tensor(parts.take(part, (size,), layer))

    settled = norm("settled_scalar", 1)
    has_canvas = config.canvas_length is not None
    return GemmaLayer(
        attention=_build_attention(config, parts, placement, layer=layer),
        input_norm=norm("attention_norm.weight"),
        attended_norm=norm("attended_norm.weight"),
        feed_forward_norm=norm("feed_forward_norm.weight"),
        output_norm=norm("fed_norm.weight"),
        feed_forward=build_gelu_gate(parts, placement, hidden, width, layer=layer),
        mixture=_build_mixture(config, parts, placement, layer=layer),
        settled_scalar=settled,
        canvas_scalar=norm("canvas_scalar", 1) if has_canvas else settled,
        norm_eps=config.norm_eps,
    )


def _build_attention(
    config: GemmaConfig, parts: Parts, placement: Placement, *, layer: int
) -> GemmaAttention:
    sizes, hidden = config.attention(config.layers[layer]), config.hidden_size
    dim = sizes.head_dim
    q_rows, kv_rows = config.num_heads * dim, sizes.num_kv_heads * dim
    pieces = [Piece("q.weight", (q_rows, hidden)), Piece("k.weight", (kv_rows, hidden))]
    if not sizes.value_is_key:
        pieces.append(Piece("v.weight", (kv_rows, hidden)))
    return GemmaAttention(
        sizes=sizes,
        num_heads=config.num_heads,
        qkv=take_linear(parts, placement, pieces, layer),
        output=take_linear(parts, placement, [Piece("output.weight", (hidden, q_rows))], layer),
        q_norm=placement.tensor(parts.take("q_norm.weight", (dim,), layer)),
        k_norm=placement.tensor(parts.take("k_norm.weight", (dim,), layer)),
        ones=placement.tensor(torch.ones(dim)),
        norm_eps=config.norm_eps,
    )


def build_gelu_gate(
    parts: Parts,
    placement: Placement,
    hidden: int,
    width: int,
    *,
    layer: int = 0,
    prefix: str = "",
) -> GeluGate:
    """Take the three matrices of a gated feed-forward."""
    gate_up = [Piece(f"{prefix}{part}.weight", (width, hidden)) for part in ("gate", "up")]
    down = [Piece(f"{prefix}down.weight", (hidden, width))]
    return GeluGate(
        take_linear(parts, placement, gate_up, layer), take_linear(parts, placement, down, layer)
    )


def _build_mixture(
    config: GemmaConfig, parts: Parts, placement: Placement, *, layer: int
) -> GemmaMixture | None:
    experts, hidden = config.experts, config.hidden_size
    if experts is None:
        return None
    count, width = experts.num_experts, experts.expert_size
    router = parts.take("router.weight", (count, hidden), layer).float()
    scale = parts.take("router.scale", (hidden,), layer).float() / hidden**0.5
    expert_scale = parts.take("router.expert_scale", (count,), layer).float()
    gate_up = parts.take("experts.gate_up.weight", (count, 2 * width, hidden), layer)
    down = parts.take("experts.down.weight", (count, hidden, width), layer)
    names = ("dense_norm.weight", "expert_input_norm.weight", "expert_output_norm.weight")
    dense, before, after = (placement.tensor(parts.take(n, (hidden,), layer)) for n in names)
    return GemmaMixture(
        config=experts,
        router=(router * scale).to(placement.device),
        expert_scale=expert_scale.to(placement.device),
        gate_up=placement.tensor(gate_up),
        down=placement.tensor(down),
        dense_norm=dense,
        input_norm=before,
        output_norm=after,
        norm_eps=config.norm_eps,
    )
