"""The feed-forward of a layer: dense SwiGLU, a mixture of experts, or two matrices with GELU.

Shapes: T rows, d hidden width, I feed-forward width, E experts, k experts a token takes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import grouped_experts, swiglu
from weights.network.config import ExpertsConfig, NetworkConfig, RouterScore
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts

# Keeps the sum of sigmoid weights from dividing by zero, as in the published code.
_WEIGHT_SUM_FLOOR = 1e-20
# A group of experts is judged by its two best members.
_MEMBERS_JUDGED = 2


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """down(silu(gate x) * up x); gate and up are one matrix d -> 2 I."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows [T, d]."""
        return self.down(self.inner(x))

    def inner(self, x: Tensor) -> Tensor:
        """What `down` is given [T, I]."""
        return swiglu(self.gate_up(x))


@dataclass(frozen=True, slots=True)
class GeluFeedForward:
    """down(gelu(up x)) with the tanh form of GELU."""

    up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows [T, d]."""
        return self.down(torch.nn.functional.gelu(self.up(x), approximate="tanh"))


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, and the expert that every token takes.

    router:         [E, d] float32
    selection_bias: [E] float32 or None
    gate_up, down:  [E, 2 I, d] and [E, d, I]
    """

    config: ExpertsConfig
    router: Tensor
    selection_bias: Tensor | None
    gate_up: Tensor
    down: Tensor
    shared: GatedFeedForward | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows [T, d]."""
        logits = torch.nn.functional.linear(x.float(), self.router)  # [T, E]
        expert_ids, weights = route(logits, self.selection_bias, self.config)
        mixed = grouped_experts(x, self.gate_up, self.down, expert_ids, weights)
        return mixed if self.shared is None else mixed + self.shared(x)


FeedForward = GatedFeedForward | GeluFeedForward | Experts


def route(
    logits: Tensor, selection_bias: Tensor | None, config: ExpertsConfig
) -> tuple[Tensor, Tensor]:
    """Choose experts and weights for router logits [T, E] float32.

    The bias takes part in the choice only. Returns ids [T, k] int64 and weights [T, k] float32.
    From: LLaDA2.0 technical report, arXiv 2512.15745 (grouped sigmoid routing).
    """
    is_sigmoid = config.score is RouterScore.SIGMOID
    scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    preference = scores if selection_bias is None else scores + selection_bias
    if config.num_groups > 1:
        preference = _keep_best_groups(preference, config)
    expert_ids = preference.topk(config.experts_per_token, dim=-1).indices
    weights = scores.gather(-1, expert_ids)
    if config.is_renormalised:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + _WEIGHT_SUM_FLOOR)
    return expert_ids, weights * config.weight_scale


def _keep_best_groups(preference: Tensor, config: ExpertsConfig) -> Tensor:
    """Rule out the experts outside the best groups."""
    rows = preference.shape[0]
    grouped = preference.view(rows, config.num_groups, -1)  # [T, groups, E / groups]
    members = min(_MEMBERS_JUDGED, grouped.shape[-1])
    group_scores = grouped.topk(members, dim=-1).values.sum(dim=-1)
    kept = group_scores.topk(config.kept_groups, dim=-1).indices
    is_kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, kept, True)
    return grouped.masked_fill(~is_kept.unsqueeze(-1), float("-inf")).view(rows, -1)


def build_gated_feed_forward(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> GatedFeedForward | Experts:
    """Take a layer's tensors; gate and up are fused into one matrix."""
    if config.experts is not None and config.has_experts(layer):
        return _build_experts(config.experts, config.hidden_size, parts, placement, layer=layer)
    hidden, width = config.hidden_size, config.feed_forward_size
    gate = parts.take("gate.weight", (width, hidden), layer)
    up = parts.take("up.weight", (width, hidden), layer)
    gate_up_bias = down_bias = None
    if config.feed_forward_bias:
        biases = [parts.take(part, (width,), layer) for part in ("gate.bias", "up.bias")]
        gate_up_bias = torch.cat(biases)
        down_bias = parts.take("down.bias", (hidden,), layer)
    return GatedFeedForward(
        gate_up=placement.linear(torch.cat([gate, up]), gate_up_bias),
        down=placement.linear(parts.take("down.weight", (hidden, width), layer), down_bias),
    )


def build_gelu_feed_forward(
    config: NetworkConfig, parts: Parts, placement: Placement, *, layer: int
) -> GeluFeedForward:
    """Take a layer's tensors."""
    hidden, width = config.hidden_size, config.feed_forward_size
    up_bias = down_bias = None
    if config.feed_forward_bias:
        up_bias = parts.take("up.bias", (width,), layer)
        down_bias = parts.take("down.bias", (hidden,), layer)
    return GeluFeedForward(
        up=placement.linear(parts.take("up.weight", (width, hidden), layer), up_bias),
        down=placement.linear(parts.take("down.weight", (hidden, width), layer), down_bias),
    )


def _build_experts(
    config: ExpertsConfig, hidden: int, parts: Parts, placement: Placement, *, layer: int
) -> Experts:
    shape = (config.num_experts, hidden)
    router = parts.take("router.weight", shape, layer).float().to(placement.device)
    bias = None
    if config.has_selection_bias:
        bias = parts.take("router.bias", shape[:1], layer).float().to(placement.device)
    gate_up, down = _stack_experts(config, hidden, parts, placement, layer=layer)
    shared = None
    if config.shared_size:
        width = config.shared_size
        gate = parts.take("shared.gate.weight", (width, hidden), layer)
        up = parts.take("shared.up.weight", (width, hidden), layer)
        shared = GatedFeedForward(
            gate_up=placement.linear(torch.cat([gate, up])),
            down=placement.linear(parts.take("shared.down.weight", (hidden, width), layer)),
        )
    return Experts(config, router.contiguous(), bias, gate_up, down, shared)


def _stack_experts(
    config: ExpertsConfig, hidden: int, parts: Parts, placement: Placement, *, layer: int
) -> tuple[Tensor, Tensor]:
    """Gate and up of all experts [E, 2 I, d], and down [E, d, I], from either layout on disk."""
    count, width = config.num_experts, config.expert_size
    gate_up = torch.empty(
        (count, 2 * width, hidden), dtype=placement.dtype, device=placement.device
    )
    down = torch.empty((count, hidden, width), dtype=placement.dtype, device=placement.device)
    if parts.has("experts.gate.weight", layer):
        gate_up[:, :width] = parts.take("experts.gate.weight", (count, width, hidden), layer)
        gate_up[:, width:] = parts.take("experts.up.weight", (count, width, hidden), layer)
        return gate_up, down.copy_(parts.take("experts.down.weight", (count, hidden, width), layer))
    if parts.has("experts.gate_up.weight", layer):
        gate_up.copy_(parts.take("experts.gate_up.weight", (count, 2 * width, hidden), layer))
        return gate_up, down.copy_(parts.take("experts.down.weight", (count, hidden, width), layer))
    for expert in range(count):
        gate_up[expert, :width] = parts.take("expert.gate.weight", (width, hidden), layer, expert)
        gate_up[expert, width:] = parts.take("expert.up.weight", (width, hidden), layer, expert)
        down[expert] = parts.take("expert.down.weight", (hidden, width), layer, expert)
    return gate_up, down
