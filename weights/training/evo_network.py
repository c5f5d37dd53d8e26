"""`EvoNetwork`: the trained form of Evo (our reading): a Llama with rows that hold latents.

A text of L tokens runs once, causally; L latent rows run beside it, row j standing at position j
and speaking of token j. Latent rows see the tokens before their canvas and all rows of it.
Parameters are named as in the exported checkpoint.

Shapes: B texts, L tokens, d hidden width, d_z latent width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weights.training.layers import (
    RmsNorm,
    Visibility,
    attend,
    rotary_table,
    rotate,
    split_heads,
)

_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class EvoShape:
    """Sizes of a network; num_levels: t is a multiple of 1 / num_levels."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feed_forward_size: int
    latent_size: int
    max_positions: int
    num_levels: int = 64


@dataclass(frozen=True, slots=True)
class Canvases:
    """Canvases that tile a text, and how far each of their rows is.

    starts: [B, L] int64, where the canvas of a row begins; below 0 when it began before the text
    levels: [B, L] int64 in 0..num_levels, t of each row; 0 is final, num_levels unknown
    """

    starts: Tensor
    levels: Tensor


class EvoNetwork(nn.Module):
    """Token rows, latent rows and one head for both."""

    def __init__(self, shape: EvoShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        self.latent = _LatentInput(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                _initialise(name, parameter, shape, generator)

    def embed_latents(self, tokens: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Input of latent rows [B, L, d] for tokens hidden by fresh noise of their levels."""
        t = (levels / self.shape.num_levels).unsqueeze(-1)
        clean = self.unit_embedding()[tokens]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        z = (1 - t) * clean + t * noise
        return self.project_latents(z, levels)

    def project_latents(self, z: Tensor, levels: Tensor) -> Tensor:
        """Input of rows that hold z [B, L, d_z]; at the last level z does not count."""
        t = (levels / self.shape.num_levels).unsqueeze(-1)
        spread = ((1 - t) ** 2 + t**2).rsqrt() * (t < 1)
        projected: Tensor = self.latent.input(z * spread)
        time: Tensor = self.latent.time(levels)
        return projected + time

    def unit_embedding(self) -> Tensor:
        """The embedding e of every token [V, d_z], each of root mean square 1."""
        table = self.latent.embedding.weight
        return functional.rms_norm(table.float(), table.shape[1:])

    def forward(
        self, tokens: Tensor, latents: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden rows after the final norm, of tokens [B, L, d] and of latents [B, L, d].

        latents: [B, L, d], inputs of latent rows at positions 0..L-1, with starts [B, L], where
        the canvas of each begins
        """
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device).expand_as(tokens)
        x = self.model.embed_tokens(tokens)
        sees = Visibility(length)
        if latents is not None and starts is not None:
            x = torch.cat((x, latents), dim=1)
            sees = Visibility(length, canvas_visibility(positions, starts))
            positions = torch.cat((positions, positions), dim=1)
        x = self.model(x, positions, sees)
        if latents is None:
            return x, None
        return x[:, :length], x[:, length:]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden rows."""
        return functional.linear(hidden, self.model.embed_tokens.weight)


def canvas_visibility(positions: Tensor, starts: Tensor) -> Tensor:
    """What latent rows see of [tokens ; latent rows]: [B, L, 2 L] bool."""
    tokens_before = positions.unsqueeze(1) < starts.unsqueeze(2)
    same_canvas = starts.unsqueeze(1) == starts.unsqueeze(2)
    return torch.cat((tokens_before, same_canvas), dim=2)


class _Body(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden_size, _NORM_EPS)

    def forward(self, x: Tensor, positions: Tensor, sees: Visibility) -> Tensor:
        rotary = rotary_table(positions, self.head_dim)
        for layer in self.layers:
            x = layer(x, rotary, sees)
        normed: Tensor = self.norm(x)
        return normed


class _Layer(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden_size, _NORM_EPS)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size, _NORM_EPS)
        self.mlp = _FeedForward(shape)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], sees: Visibility) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, sees)
        fed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return fed


class _Attention(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        d, head = shape.hidden_size, shape.head_dim
        self.head_dim = head
        self.q_proj = nn.Linear(d, shape.num_heads * head, bias=False)
        self.k_proj = nn.Linear(d, shape.num_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(d, shape.num_kv_heads * head, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * head, d, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], sees: Visibility) -> Tensor:
        q = rotate(split_heads(self.q_proj(x), self.head_dim), rotary)
        k = rotate(split_heads(self.k_proj(x), self.head_dim), rotary)
        v = split_heads(self.v_proj(x), self.head_dim)
        attended: Tensor = self.o_proj(attend(q, k, v, sees))
        return attended


class _FeedForward(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        d, inner = shape.hidden_size, shape.feed_forward_size
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        fed: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return fed


class _LatentInput(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.latent_size)
        self.input = nn.Linear(shape.latent_size, shape.hidden_size, bias=False)
        # One row for each level; the last is the whole input of an unknown token.
        self.time = nn.Embedding(shape.num_levels + 1, shape.hidden_size)


def _initialise(
    name: str, weight: nn.Parameter, shape: EvoShape, generator: torch.Generator
) -> None:
    deviation = weight.shape[1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        # What goes into the stream is smaller the more layers there are.
        deviation /= (2 * shape.num_layers) ** 0.5
    elif name == "latent.input.weight":
        # Latents, of root mean square 1, enter at the size of token embeddings.
        deviation = (shape.hidden_size * shape.latent_size) ** -0.5
    elif name == "latent.embedding.weight":
        deviation = 1.0
    with torch.no_grad():
        weight.normal_(0.0, deviation, generator=generator)
