"""Turns a float network into one with int8 matrices, activations smoothed first.

Rows that meet int8 matrices are rounded to one scale a row, so a few large columns cost all the
others their precision. Dividing a column of activations by a number and multiplying the matrix's
column by it changes nothing in exact arithmetic, and the division folds into what makes the
activations: the norm before them, or the rows of the matrix before them. Which columns are large
is seen on a short text.
From: Xiao et al. 2023, SmoothQuant, equation 4 with alpha 1/2; arXiv 2211.10438. Ours: the inner
columns of a SwiGLU fold into the rows of its `up` half.

Shapes: T rows, d hidden width, I feed-forward width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import (
    Int8Weight,
    PagedBatch,
    add_rms_norm,
    allocate_kv_cache,
    plan_attention,
    quantize_int8,
    rms_norm,
    rotary_rows,
)
from weights.network.attention import Attention, AttentionStep
from weights.network.config import NetworkConfig
from weights.network.embedding import Vocabulary
from weights.network.feed_forward import Experts, FeedForward, GatedFeedForward
from weights.network.gelu_transformer import GeluLayer, GeluTransformer, LayerNorm
from weights.network.latent import LatentLayer
from weights.network.linear import Linear
from weights.network.transformer import Layer, Transformer
from weights.text.tokenizer import Tokenizer

# Long enough that quality no longer depends on the text, short enough to load in a moment.
_MAX_CALIBRATION_TOKENS = 256
# Prose, dialogue, code, figures and other languages: what differs in the columns it excites.
_CALIBRATION_TEXT = """The lighthouse on the northern cape was built in 1854, and for more than a \
century a keeper climbed its 217 steps every evening. "We saw three ships," wrote Anna M\u00fcller \
in her diary -- and then, two days later, nothing but fog.

User: How do I cook rice?
Assistant: Rinse 1 cup of rice until the water runs clear. Add 1.5 cups of water and a pinch of \
salt, bring it to a boil, cover it, and let it simmer for 12 minutes.

def total(prices: list[float], tax: float = 0.19) -> float:
    return round(sum(prices) * (1 + tax), 2)

| city | country | inhabitants |
| Paris | France | 2,102,650 |

Photosynthesis turns light into chemical energy: 6 CO2 + 6 H2O -> C6H12O6 + 6 O2. Je ne sais pas, \
r\u00e9pondit-il. \u6c34\u306f\u51b7\u305f\u3044\u3002 The European Union has 27 member states; \
its parliament sits in Strasbourg, and its laws are published in the Official Journal."""
# Columns that the text never excites are treated as if they reached this share of the median, so
# that they cannot grow out of all proportion when another text does.
_LEAST_SHARE = 0.05


def calibration_ids(tokenizer: Tokenizer | None, config: NetworkConfig) -> Tensor:
    """Token ids [T] to smooth by; without a tokenizer, fixed pseudo-random ones."""
    count = min(_MAX_CALIBRATION_TOKENS, config.max_positions)
    if tokenizer is not None:
        ids = tokenizer.encode(_CALIBRATION_TEXT, add_special_tokens=True)
        return torch.tensor(ids[:count])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (count,), generator=generator)


def quantize_network(
    network: Transformer | GeluTransformer, token_ids: Tensor
) -> Transformer | GeluTransformer:
    """Keep the matrices of all linear layers and the head as int8.

    The token table, norms, routers, experts and draft adapters keep their float type.

    token_ids: [T], a text to smooth by
    """
    with torch.inference_mode():
        if isinstance(network, Transformer):
            return _quantize_transformer(network, token_ids)
        return _quantize_gelu_transformer(network, token_ids)


@dataclass(frozen=True, slots=True)
class _Calibration:
    """One text in a cache of one layer, used by one layer after the other."""

    keys: Tensor
    values: Tensor
    step: AttentionStep
    positions: Tensor

    def attend(self, attention: Attention, x: Tensor) -> Tensor:
        return attention(x, self.keys, self.values, self.step)


def _start(network: Transformer | GeluTransformer, token_ids: Tensor) -> _Calibration:
    config, length = network.config, token_ids.shape[0]
    positions = torch.arange(length)
    cache = allocate_kv_cache(
        num_layers=1,
        num_pages=1,
        page_size=length,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=network.token_table.dtype,
        device=network.token_table.device,
    )
    batch = PagedBatch(
        span_starts=torch.tensor([0, length], dtype=torch.int32),
        page_table=torch.zeros((1, 1), dtype=torch.int32),
        slots=positions,
        limits=(positions + 1).int(),
        max_span=length,
        max_limit=length,
    )
    plan = plan_attention(
        batch,
        page_size=length,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        dtype=network.token_table.dtype,
    )
    rotary = None if network.rotary is None else rotary_rows(network.rotary, positions)
    step = AttentionStep(batch, plan, rotary)
    return _Calibration(cache.keys[0], cache.values[0], step, positions)


def _quantize_transformer(network: Transformer, token_ids: Tensor) -> Transformer:
    calibration = _start(network, token_ids)
    eps = network.config.norm_eps
    residual = network.vocabulary.embed(token_ids, calibration.positions)
    norm = network.first_norm
    x = rms_norm(residual, norm, eps)
    norms: list[Tensor] = []
    layers: list[Layer] = []
    for layer in network.layers:
        attended = calibration.attend(layer.attention, x)
        qkv, divisor = _smoothed(layer.attention.qkv, x)
        norms.append(norm / divisor)
        x, residual = add_rms_norm(layer.output(attended), residual, layer.feed_forward_norm, eps)
        fed = _quantize_feed_forward(layer.feed_forward, x)
        x = layer.feed_forward(x)
        x, residual = add_rms_norm(x, residual, layer.following_norm, eps)
        layers.append(
            replace(
                layer,
                attention=replace(layer.attention, qkv=qkv),
                output=_packed(layer.output),
                feed_forward=fed.feed_forward,
                feed_forward_norm=layer.feed_forward_norm / fed.divisor,
                latent=_scaled_latent(layer.latent, fed.inner_divisor),
            )
        )
        norm = layer.following_norm
    head, divisor = _smoothed(network.vocabulary.head, x)
    norms.append(norm / divisor)
    return Transformer(
        network.config,
        _with_head(network.vocabulary, head),
        first_norm=norms[0],
        layers=tuple(
            replace(layer, following_norm=following)
            for layer, following in zip(layers, norms[1:], strict=True)
        ),
        rotary=network.rotary,
        latent=network.latent,
    )


@dataclass(frozen=True, slots=True)
class _Fed:
    """The int8 form of a feed-forward.

    divisor:       divides the norm before it [d]
    inner_divisor: divides what its last matrix is given [I], or None where nothing does
    """

    feed_forward: FeedForward
    divisor: Tensor
    inner_divisor: Tensor | None = None


def _quantize_feed_forward(feed_forward: FeedForward, x: Tensor) -> _Fed:
    if isinstance(feed_forward, GatedFeedForward):
        return _quantize_gated(feed_forward, x)
    divisor = torch.ones_like(x[0])
    if isinstance(feed_forward, Experts) and feed_forward.shared is not None:
        # Its rows also go to the experts, so nothing can be folded into the norm.
        shared = GatedFeedForward(
            _packed(feed_forward.shared.gate_up), _packed(feed_forward.shared.down)
        )
        return _Fed(replace(feed_forward, shared=shared), divisor)
    return _Fed(feed_forward, divisor)


def _quantize_gated(feed_forward: GatedFeedForward, x: Tensor) -> _Fed:
    inner = feed_forward.inner(x)  # [T, I]
    down, inner_divisor = _smoothed(feed_forward.down, inner)
    # The inner columns are silu(gate) * up: dividing up's rows divides them.
    row_divisor = torch.cat([torch.ones_like(inner_divisor), inner_divisor])
    gate_up = feed_forward.gate_up
    scaled = Linear(
        _float_weight(gate_up) / row_divisor.unsqueeze(1),
        None if gate_up.bias is None else gate_up.bias / row_divisor,
    )
    smoothed, divisor = _smoothed(scaled, x)
    return _Fed(GatedFeedForward(smoothed, down), divisor, inner_divisor)


def _scaled_latent(latent: LatentLayer | None, inner_divisor: Tensor | None) -> LatentLayer | None:
    """The low-rank weights for inner columns that are divided now."""
    if latent is None or latent.down is None or inner_divisor is None:
        return latent
    return latent._replace(down=latent.down._replace(down=latent.down.down * inner_divisor))


def _quantize_gelu_transformer(network: GeluTransformer, token_ids: Tensor) -> GeluTransformer:
    calibration = _start(network, token_ids)
    x = network.vocabulary.embed(token_ids, calibration.positions)
    layers: list[GeluLayer] = []
    for layer in network.layers:
        normed = layer.attention_norm(x)
        qkv, attention_divisor = _smoothed(layer.attention.qkv, normed)
        x = x + layer.output(calibration.attend(layer.attention, normed))
        normed = layer.feed_forward_norm(x)
        up, divisor = _smoothed(layer.feed_forward.up, normed)
        x = x + layer.feed_forward(normed)
        layers.append(
            GeluLayer(
                attention_norm=_divided(layer.attention_norm, attention_divisor),
                attention=replace(layer.attention, qkv=qkv),
                output=_packed(layer.output),
                feed_forward_norm=_divided(layer.feed_forward_norm, divisor),
                feed_forward=replace(
                    layer.feed_forward, up=up, down=_packed(layer.feed_forward.down)
                ),
            )
        )
    head, divisor = _smoothed(network.vocabulary.head, network.final_norm(x))
    return GeluTransformer(
        network.config,
        _with_head(network.vocabulary, head),
        layers=tuple(layers),
        final_norm=_divided(network.final_norm, divisor),
        rotary=network.rotary,
    )


def _smoothed(linear: Linear, x: Tensor) -> tuple[Linear, Tensor]:
    """The int8 form of a matrix for rows x divided by the divisor [in], and that divisor."""
    weight = _float_weight(linear).float()
    peaks = x.float().abs().amax(0)
    peaks = peaks.clamp_min(_LEAST_SHARE * float(peaks.median()))
    heights = weight.abs().amax(0)
    heights = heights.clamp_min(_LEAST_SHARE * float(heights.median()))
    divisor = (peaks / heights).sqrt()
    # Rounded to the norm's type first, so that norm and matrix undo each other.
    divisor = divisor.to(x.dtype)
    return Linear(quantize_int8(weight * divisor), linear.bias), divisor


def _packed(linear: Linear) -> Linear:
    return Linear(quantize_int8(_float_weight(linear).float()), linear.bias)


def _divided(norm: LayerNorm, divisor: Tensor) -> LayerNorm:
    bias = None if norm.bias is None else norm.bias / divisor
    return replace(norm, weight=norm.weight / divisor, bias=bias)


def _with_head(vocabulary: Vocabulary, head: Linear) -> Vocabulary:
    return replace(vocabulary, head=head)


def _float_weight(linear: Linear) -> Tensor:
    if isinstance(linear.weight, Int8Weight):
        raise ValueError("the network is int8 already")
    return linear.weight
