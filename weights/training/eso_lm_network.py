"""`EsoLmNetwork`: the trained form of Eso-LM, variant B, without adaptive norms.

The authors condition every norm on a time step that is always 0; without time the condition is a
constant that folds into the weights, so the network is trained with plain ones from the start
(`adaln` false in the checkpoint). Parameters are named as in the exported checkpoint.

Shapes: B texts, S rows of each, d hidden width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weights.training.layers import (
    PlainLayerNorm,
    Visibility,
    attend,
    rotary_table,
    rotate,
    split_heads,
)

_NORM_EPS = 1e-5
_MLP_RATIO = 4
# Takes the mask token out of every softmax, as the authors do.
_NEVER = -1e6


@dataclass(frozen=True, slots=True)
class EsoLmShape:
    """Sizes of a network; the mask is the last entry of its vocabulary."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_positions: int

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return self.vocab_size - 1


class EsoLmNetwork(nn.Module):
    """Rows of tokens and masks in any order, each with its own position."""

    def __init__(self, shape: EsoLmShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = _Backbone(shape)
        for name, parameter in self.named_parameters():
            _initialise(name, parameter, shape, generator)

    def forward(self, tokens: Tensor, positions: Tensor, sees: Visibility) -> Tensor:
        """Logits [B, S, V] of rows tokens [B, S] at positions [B, S]; a mask speaks of its own."""
        x: Tensor = self.backbone(tokens, positions, sees)
        never = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)
        never[self.shape.mask_id] = _NEVER
        return x + never


class _Backbone(nn.Module):
    def __init__(self, shape: EsoLmShape) -> None:
        super().__init__()
        self.head_dim = shape.hidden_size // shape.num_heads
        self.vocab_embed = _Embedding(shape)
        self.blocks = nn.ModuleList(_Block(shape, self.head_dim) for _ in range(shape.num_layers))
        self.output_layer = _OutputLayer(shape)

    def forward(self, tokens: Tensor, positions: Tensor, sees: Visibility) -> Tensor:
        rotary = rotary_table(positions, self.head_dim)
        x = self.vocab_embed.embedding[tokens]
        for block in self.blocks:
            x = block(x, rotary, sees)
        logits: Tensor = self.output_layer(x)
        return logits


class _Embedding(nn.Module):
    def __init__(self, shape: EsoLmShape) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(shape.vocab_size, shape.hidden_size))


class _Block(nn.Module):
    def __init__(self, shape: EsoLmShape, head_dim: int) -> None:
        super().__init__()
        d = shape.hidden_size
        self.head_dim = head_dim
        self.norm1 = PlainLayerNorm(d, _NORM_EPS)
        self.attn_qkv = nn.Linear(d, 3 * d, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.norm2 = PlainLayerNorm(d, _NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(d, _MLP_RATIO * d), nn.GELU("tanh"), nn.Linear(_MLP_RATIO * d, d)
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], sees: Visibility) -> Tensor:
        q, k, v = (
            split_heads(part, self.head_dim)
            for part in self.attn_qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.attn_out(attend(rotate(q, rotary), rotate(k, rotary), v, sees))
        fed: Tensor = x + self.mlp(self.norm2(x))
        return fed


class _OutputLayer(nn.Module):
    def __init__(self, shape: EsoLmShape) -> None:
        super().__init__()
        self.norm_final = PlainLayerNorm(shape.hidden_size, _NORM_EPS)
        self.linear = nn.Linear(shape.hidden_size, shape.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm_final(x))
        return logits


def _initialise(
    name: str, parameter: nn.Parameter, shape: EsoLmShape, generator: torch.Generator
) -> None:
    with torch.no_grad():
        if parameter.ndim == 2:
            deviation: float = parameter.shape[1] ** -0.5
            if name.endswith(("attn_out.weight", "mlp.2.weight")):
                # What goes into the stream is smaller the more layers there are.
                deviation /= (2 * shape.num_layers) ** 0.5
            parameter.normal_(0.0, deviation, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
