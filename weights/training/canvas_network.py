"""`CanvasNetwork`: the frozen base and its canvas adapter, differentiable in the adapter alone.

The text runs once without gradients and leaves keys, values and the base's distributions behind;
any number of canvases, cut off at any places of the text, then run over it in one batch. A canvas
that begins at position o sees the text before o and its own rows, both ways. Its row i stands at
position o + i, holds the latent of that token, and speaks of position o + i + 1.

Shapes: N tokens of the text, M canvases of w rows, R = M w latent rows, d hidden width, d_z latent
width, V vocabulary, Hq query heads, Hkv key heads, D head width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import RotaryTable, rotary_rows
from kernels.rotary import rotate
from weights.network.feed_forward import GatedFeedForward
from weights.network.transformer import Transformer

_TIME_FREQUENCIES = 128
_TIME_SCALE = 1000.0
_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# Of the step from a hidden row to its gradient: rows at a time.
_HEAD_ROWS = 128


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Sizes of an adapter.

    rank:       of the low-rank weights
    num_levels: t is rounded to multiples of 1 / num_levels
    max_width:  rows of the longest canvas whose offsets are told apart
    matrices:   the matrices of every layer that get low-rank weights beside them: of qkv, output,
                gate_up and down
    """

    rank: int = 32
    num_levels: int = 64
    max_width: int = 16
    matrices: tuple[str, ...] = ("output", "down")


class CanvasAdapter(nn.Module):
    """What is trained: input projection, time embedding, offsets and low-rank weights."""

    def __init__(self, base: "FrozenBase", shape: AdapterShape) -> None:
        super().__init__()
        self.shape = shape
        d = base.hidden_size
        # Starts as the base's own embedding: W_in e(x) is the embedding of x.
        self.input = nn.Parameter(torch.eye(d) * base.embedding_scale)
        # What a row at t = 1 holds: at first the mean of all embeddings.
        self.unknown = nn.Parameter(base.table.float().mean(0))
        last = nn.Linear(d, d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.time = nn.Sequential(nn.Linear(2 * _TIME_FREQUENCIES, d), nn.SiLU(), last)
        self.offset = nn.Parameter(torch.zeros(shape.max_width, d))
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for layer in range(base.num_layers):
            for matrix in shape.matrices:
                size_out, size_in = base.matrix_shape(matrix)
                name = f"{layer}_{matrix}"
                self.down[name] = nn.Parameter(
                    torch.randn(shape.rank, size_in) / math.sqrt(size_in)
                )
                self.up[name] = nn.Parameter(torch.zeros(size_out, shape.rank))

    def time_table(self) -> Tensor:
        """What is added at each level of t [num_levels + 1, d]; the last row is the whole input."""
        levels = torch.arange(self.shape.num_levels + 1) / self.shape.num_levels
        step = math.log(10000) / _TIME_FREQUENCIES
        frequencies = torch.exp(-step * torch.arange(_TIME_FREQUENCIES))
        angles = _TIME_SCALE * levels[:, None] * frequencies
        table: Tensor = self.time(torch.cat((angles.cos(), angles.sin()), dim=1))
        return torch.cat((table[:-1], self.unknown[None]))

    def embed(self, latents: Tensor, levels: Tensor, offsets: Tensor) -> Tensor:
        """Input rows [R, d] of latents [R, d_z] at levels [R] of t."""
        t = levels.float() / self.shape.num_levels
        spread = ((1 - t) ** 2 + t**2).rsqrt() * (levels < self.shape.num_levels)
        projected = functional.linear(latents, self.input) * spread[:, None]
        return projected + self.time_table()[levels] + self.offset[offsets]

    def low_rank(self, layer: int, matrix: str, x: Tensor) -> Tensor | None:
        """What is added to a matrix's product with x, or None where nothing is."""
        name = f"{layer}_{matrix}"
        if name not in self.down:
            return None
        shrunk = functional.linear(x, self.down[name].to(x.dtype))
        return functional.linear(shrunk, self.up[name].to(x.dtype))


@dataclass(frozen=True, slots=True)
class SettledText:
    """A text that the base has run.

    keys, values: [layers, N, Hkv, D]
    hidden:       [N, d], after the final norm
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class Canvases:
    """Latent rows over one text; all [R] but the latents.

    latents: [R, d_z]
    levels:  int64, of t
    origins: int64, where the canvas of the row begins
    offsets: int64, of the row in its canvas
    width:   rows of a canvas, the same for all
    """

    latents: Tensor
    levels: Tensor
    origins: Tensor
    offsets: Tensor
    width: int


class FrozenBase:
    """The weights of a Llama-style network in one float type, never trained."""

    def __init__(self, network: Transformer, dtype: torch.dtype) -> None:
        config = network.config
        self.config = config
        self.dtype = dtype
        self.hidden_size = config.hidden_size
        self.num_layers = network.num_layers
        self.table = network.token_table.to(dtype)
        self.embedding_scale = float(network.token_table.float().pow(2).mean().sqrt())
        self.head = _float(network.head_weight).to(dtype)
        self._rotary: RotaryTable = network.rotary
        self._first_norm = network.first_norm.float()
        self._layers = []
        for layer in network.layers:
            if not isinstance(layer.feed_forward, GatedFeedForward):
                raise TypeError("a canvas adapter is trained on a dense base")
            weights = {
                "qkv": layer.attention.qkv.weight,
                "output": layer.output.weight,
                "gate_up": layer.feed_forward.gate_up.weight,
                "down": layer.feed_forward.down.weight,
            }
            self._layers.append(
                {name: _float(weight).to(dtype) for name, weight in weights.items()}
                | {
                    "feed_forward_norm": layer.feed_forward_norm.float(),
                    "following_norm": layer.following_norm.float(),
                }
            )

    def matrix_shape(self, matrix: str) -> tuple[int, int]:
        """(out, in) of a matrix of every layer."""
        size_out, size_in = self._layers[0][matrix].shape
        return size_out, size_in

    def embeddings(self) -> Tensor:
        """e(v) of every token [V, d_z]: the base's own, scaled to unit mean square."""
        return self.table.float() / self.embedding_scale

    @torch.no_grad()
    def settle(self, token_ids: Tensor) -> SettledText:
        """Run a text [N] as the base does."""
        length = token_ids.shape[0]
        positions = torch.arange(length)
        x = self.table[token_ids]
        keys, values = [], []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(k)
            values.append(v)
            mixed = functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                is_causal=True,
                enable_gqa=True,
            )
            return mixed[0].transpose(0, 1).flatten(1)

        hidden = self._run(x, positions, attend, None)
        return SettledText(torch.stack(keys), torch.stack(values), hidden)

    def draft(self, text: SettledText, canvases: Canvases, adapter: CanvasAdapter) -> Tensor:
        """Hidden rows [R, d] of canvases after the final norm."""
        config, width = self.config, canvases.width
        positions = canvases.origins + canvases.offsets
        x = adapter.embed(canvases.latents, canvases.levels, canvases.offsets).to(self.dtype)
        length = text.keys.shape[1]
        groups = config.num_heads // config.num_kv_heads
        hidden_text = torch.arange(length) >= canvases.origins[:, None]  # [R, N]
        layers = iter(range(self.num_layers))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layer = next(layers)
            grouped = q.view(-1, config.num_kv_heads, groups, config.head_dim)
            scale = 1 / math.sqrt(config.head_dim)
            seen = torch.einsum("rkgd,nkd->rkgn", grouped, text.keys[layer]) * scale
            seen = seen.float().masked_fill(hidden_text[:, None, None], float("-inf"))
            own_k, own_v = (
                part.view(-1, width, config.num_kv_heads, config.head_dim) for part in (k, v)
            )
            by_canvas = grouped.view(-1, width, config.num_kv_heads, groups, config.head_dim)
            own = torch.einsum("mikgd,mjkd->mikgj", by_canvas, own_k) * scale
            own = own.flatten(0, 1).float()
            shares = torch.cat((seen, own), dim=-1).softmax(-1).to(v.dtype)
            mixed = torch.einsum("rkgn,nkd->rkgd", shares[..., :length], text.values[layer])
            own_shares = shares[..., length:].view(-1, width, config.num_kv_heads, groups, width)
            mixed = mixed + torch.einsum("mikgj,mjkd->mikgd", own_shares, own_v).flatten(0, 1)
            return mixed.flatten(1)

        return self._run(x, positions, attend, adapter)

    def _run(
        self, x: Tensor, positions: Tensor, attend: _Attend, adapter: CanvasAdapter | None
    ) -> Tensor:
        config = self.config
        rotary = rotary_rows(self._rotary, positions)
        residual = x
        normed = _rms_norm(residual, self._first_norm, config.norm_eps)
        for index, layer in enumerate(self._layers):
            product = partial(self._product, index, adapter)
            heads = config.num_heads + 2 * config.num_kv_heads
            qkv = product("qkv", normed).view(-1, heads, config.head_dim)
            turned = rotate(qkv[:, : config.num_heads + config.num_kv_heads].float(), rotary)
            turned = turned.to(self.dtype)
            q, k = turned[:, : config.num_heads], turned[:, config.num_heads :]
            v = qkv[:, config.num_heads + config.num_kv_heads :]
            residual = residual + product("output", attend(q, k, v))
            normed = _rms_norm(residual, layer["feed_forward_norm"], config.norm_eps)
            gate, up = product("gate_up", normed).chunk(2, dim=-1)
            residual = residual + product("down", functional.silu(gate) * up)
            normed = _rms_norm(residual, layer["following_norm"], config.norm_eps)
        return normed

    def _product(self, layer: int, adapter: CanvasAdapter | None, matrix: str, x: Tensor) -> Tensor:
        y = functional.linear(x, self._layers[layer][matrix])
        added = None if adapter is None else adapter.low_rank(layer, matrix, x)
        return y if added is None else y + added


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.float()
    return (y * (y.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)


def _float(weight: object) -> Tensor:
    if not isinstance(weight, Tensor):
        raise TypeError("a canvas adapter is trained on float weights")
    return weight


@dataclass(frozen=True, slots=True)
class Targets:
    """What the base says of every token of a text, as far as it matters.

    ids:    [N, k] int64, its k most likely tokens
    shares: [N, k] float32, their probabilities
    """

    ids: Tensor
    shares: Tensor


@torch.no_grad()
def base_targets(hidden: Tensor, head: Tensor, *, num_best: int) -> Targets:
    """The best tokens of hidden rows [N, d] through the head [V, d]."""
    ids, shares = [], []
    for start in range(0, hidden.shape[0], _HEAD_ROWS):
        logits = functional.linear(hidden[start : start + _HEAD_ROWS], head)
        best = logits.topk(num_best, dim=-1)
        ids.append(best.indices)
        total = logits.float().logsumexp(-1, keepdim=True)
        shares.append((best.values.float() - total).exp())
    return Targets(torch.cat(ids), torch.cat(shares))


@dataclass(frozen=True, slots=True)
class SampledVocabulary:
    """Part of the vocabulary that stands for all of it: what is likely, and a random rest.

    ids:      [U] int64, ascending
    log_odds: [U] float32, added to logits: how many tokens a random one stands for
    """

    ids: Tensor
    log_odds: Tensor


def sample_vocabulary(
    likely: Tensor, *, size: int, num_random: int, generator: torch.Generator
) -> SampledVocabulary:
    """All of the likely ids [...] and so many others of a vocabulary of this size."""
    weights = torch.zeros(size)
    drawn = torch.randint(size, (num_random,), generator=generator)
    weights[drawn] = 1
    weights[likely.flatten()] = 0
    rest = size - int(torch.unique(likely).numel())
    odds = math.log(max(rest, 1) / max(float(weights.sum()), 1.0))
    log_odds = weights * odds
    weights[likely.flatten()] = 1
    ids = weights.nonzero().squeeze(1)
    return SampledVocabulary(ids, log_odds[ids])


class _Distillation(torch.autograd.Function):
    """Cross entropy against given distributions, with the gradient found on the way.

    The head is frozen, so the gradient of a hidden row is (p - target) W; no logits are kept.
    """

    @staticmethod
    def forward(ctx, hidden, head, wanted, log_odds, weights):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        logits = functional.linear(hidden, head).float().add_(log_odds)
        log_p = logits.log_softmax(-1)
        losses = -(wanted * log_p).sum(-1)
        gradient = functional.linear((log_p.exp_() - wanted).to(head.dtype), head.T)
        ctx.save_for_backward(gradient, weights)
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx, outer):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        gradient, weights = ctx.saved_tensors
        return gradient * (outer * weights)[:, None].to(gradient.dtype), None, None, None, None


def distillation_loss(
    hidden: Tensor, head: Tensor, vocabulary: SampledVocabulary, *, wanted: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of the cross entropies of hidden rows [R, d].

    head:    [V, d]
    wanted:  [R, U] float32, the distributions to come close to
    weights: [R]
    """
    loss: Tensor = _Distillation.apply(  # type: ignore[no-untyped-call]
        hidden, head[vocabulary.ids], wanted, vocabulary.log_odds, weights
    )
    return loss
