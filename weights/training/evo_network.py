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
    """Sizes of a network; num_levels: t is a multiple of 1 / num_levels.

    learned_positions: whether rows also get an embedding of their position
    """

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
    learned_positions: bool = False


@dataclass(frozen=True, slots=True)
class Canvases:
    """Latent rows beside a text, S of them; all are [B, S] int64.

    positions: where a row stands, and of which token it speaks
    starts:    where its canvas begins: it sees the tokens before; below 0 is before the text
    groups:    rows of the same group see each other
    levels:    in 0..num_levels, t of each row; 0 is final, num_levels unknown
    """

    positions: Tensor
    starts: Tensor
    groups: Tensor
    levels: Tensor


class EvoNetwork(nn.Module):
    """Token rows, latent rows and one head for both.

    What a latent says of its own token is exact: z = (1 - t) e(x) + t n gives every token v the
    log-likelihood c z.e(v) - (1 - t)^2 / (2 t^2) |e(v)|^2, c = (1 - t) / t^2, up to a constant. It
    is added to the network's scores (the output prior), and its softmax over the token embeddings
    is what the row holds: a clean token enters as itself. All e(v) are equally long, so that the
    likelihood, and with it the best denoiser, depends on c z alone: one network serves every path
    of t, masks as its end.

    From: Gulrajani and Hashimoto 2023, Likelihood-based diffusion language models (Plaid), arXiv
    2305.18619 (output prior); Discrete Stochastic Localization, arXiv 2602.16169 and 2605.12836
    (equal norms, one network for every path of noise levels per token).
    """

    def __init__(self, shape: EvoShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        self.latent = _LatentInput(shape)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                _initialise(name, parameter, shape, generator)

    def hide(self, tokens: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [B, S, d_z] of tokens [B, S] hidden by fresh noise of their levels."""
        t = (levels / self.shape.num_levels).unsqueeze(-1)
        clean = self.unit_embedding()[tokens]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return (1 - t) * clean + t * noise

    def likelihood(self, z: Tensor, levels: Tensor) -> Tensor:
        """Log-likelihood [B, S, V] float32 of latents z under every token, up to a constant."""
        with torch.autocast(z.device.type, enabled=False):
            embedding = self.unit_embedding()
            linear, square = (
                scale[levels].unsqueeze(-1)
                for scale in likelihood_scales(self.shape.num_levels, device=z.device)
            )
            norms = embedding.square().sum(dim=-1)
            return functional.linear(linear * z.float(), embedding) - square * norms

    def embed_latents(self, likelihood: Tensor, levels: Tensor) -> Tensor:
        """What rows hold [B, S, d]: token embeddings in the proportion of their likelihood.

        Rows that are not final are marked as such.
        """
        mixed = functional.linear(likelihood.softmax(dim=-1), self.model.embed_tokens.weight.t())
        marked: Tensor = mixed + (levels > 0).unsqueeze(-1) * self.latent.mark
        return marked

    def unit_embedding(self) -> Tensor:
        """The embedding e of every token [V, d_z], each of root mean square 1.

        A normalised projection of the token's embedding.
        """
        with torch.autocast(self.latent.mark.device.type, enabled=False):
            table = self.latent.projection(self.model.embed_tokens.weight.float())
            return functional.rms_norm(table, table.shape[1:])

    def forward(
        self, tokens: Tensor, latents: Tensor | None = None, canvases: Canvases | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden rows after the final norm, of tokens [B, L, d] and of latents [B, S, d].

        latents: [B, S, d], what the latent rows of the canvases hold
        """
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device).expand_as(tokens)
        x = self.model.embed_tokens(tokens)
        sees = Visibility(length)
        if latents is not None and canvases is not None:
            x = torch.cat((x, latents), dim=1)
            sees = Visibility(length, canvas_visibility(length, canvases))
            positions = torch.cat((positions, canvases.positions), dim=1)
        x = self.model(x, positions, sees)
        if latents is None:
            return x, None
        return x[:, :length], x[:, length:]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden rows."""
        return functional.linear(hidden, self.model.embed_tokens.weight)


def likelihood_scales(num_levels: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1 - t) / t^2 and (1 - t)^2 / (2 t^2) at every level, both [num_levels + 1] float32.

    At t = 0 they are those of half a level: there a latent is the embedding of its token, whose
    likelihood exceeds the others' by so much that their share is 0.
    """
    t = (torch.arange(num_levels + 1, device=device) / num_levels).clamp(min=0.5 / num_levels)
    return (1 - t) / t**2, (1 - t) ** 2 / (2 * t**2)


def canvas_visibility(length: int, canvases: Canvases) -> Tensor:
    """What latent rows see of [tokens ; latent rows]: [B, S, L + S] bool."""
    tokens = torch.arange(length, device=canvases.starts.device)
    tokens_before = tokens < canvases.starts.unsqueeze(2)
    same_canvas = canvases.groups.unsqueeze(1) == canvases.groups.unsqueeze(2)
    return torch.cat((tokens_before, same_canvas), dim=2)


class _Body(nn.Module):
    def __init__(self, shape: EvoShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.embed_positions = (
            nn.Embedding(shape.max_positions, shape.hidden_size)
            if shape.learned_positions
            else None
        )
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden_size, _NORM_EPS)

    def forward(self, x: Tensor, positions: Tensor, sees: Visibility) -> Tensor:
        rotary = rotary_table(positions, self.head_dim)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
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
        self.projection = nn.Linear(shape.hidden_size, shape.latent_size, bias=False)
        # Tells rows that are not final from the others; the same at every level.
        self.mark = nn.Parameter(torch.zeros(shape.hidden_size))


def _initialise(
    name: str, weight: nn.Parameter, shape: EvoShape, generator: torch.Generator
) -> None:
    deviation = weight.shape[1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        # What goes into the stream is smaller the more layers there are.
        deviation /= (2 * shape.num_layers) ** 0.5
    with torch.no_grad():
        weight.normal_(0.0, deviation, generator=generator)
