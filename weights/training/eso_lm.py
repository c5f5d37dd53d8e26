"""Eso-LM from scratch, variant B: the hybrid loss of its authors, its figures, its checkpoint.

Half of the texts of a batch teach diffusion: tokens are masked with probability 1 - alpha_t, and
stand in the order known first, then masks, each part shuffled, causally. The other half teach the
rest of the way: a share alpha_0 is known, the masks are filled from left to right, each seeing
what is before it in the order.

    loss = sum over masks of alpha'_t / (alpha_t - 1) NLL  +  sum over masks of NLL,  per token

From: Sahoo et al. 2025, Esoteric language models, arXiv 2506.01928; the loss and the schedule of
their code. We train without adaptive norms and with a cosine learning rate.

Shapes: B texts of L tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from weights.config_fields import Json
from weights.training.data.text import END_OF_TEXT_ID
from weights.training.eso_lm_network import EsoLmNetwork, EsoLmShape
from weights.training.layers import Visibility, token_nll
from weights.training.loop import Schedule, Trainable

# Share of tokens that diffusion decodes, in training.
ALPHA_0 = 0.25
# Shares for which exact likelihood is reported.
_REPORTED_SHARES = (0.0, 0.25, 1.0)
_SCHEDULE_EPS = 1e-3
# Below 1, so that what is known sorts before what is masked.
_SHUFFLE = 0.9
_ORDERS_PER_TEXT = 4


class EsoLmModel(Trainable):
    """The network under its objective."""

    def __init__(self, shape: EsoLmShape, *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = EsoLmNetwork(shape, generator=generator)

    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`diffusion` of the first half of the texts, `sequential` of the rest; nats per token.

        Their sum estimates an upper bound of the NLL per token.
        """
        half = tokens.shape[0] // 2
        return {
            "diffusion": self._diffusion_loss(tokens[:half], generator),
            "sequential": self._sequential_loss(tokens[half:], generator),
        }

    def _diffusion_loss(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        count, length = tokens.shape
        device = tokens.device
        # One time in each of B equal parts: antithetic sampling.
        places = torch.arange(count, device=device).unsqueeze(1)
        t = (places + torch.rand((count, 1), generator=generator, device=device)) / count
        t = _SCHEDULE_EPS + (1 - _SCHEDULE_EPS) * t
        alpha = ALPHA_0 * (1 - (1 - _SCHEDULE_EPS) * t)
        drawn = torch.rand((2, count, length), generator=generator, device=device)
        masked = drawn[0] >= alpha
        order = (masked + _SHUFFLE * drawn[1]).argsort(dim=-1)
        targets, masked = tokens.gather(1, order), masked.gather(1, order)
        rows = torch.where(masked, self.network.shape.mask_id, targets)
        nll = token_nll(self.network(rows, order, Visibility(length)), targets)
        weight = ALPHA_0 * (1 - _SCHEDULE_EPS) / (1 - alpha)
        return (weight * nll * masked).mean()

    def _sequential_loss(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        count, length = tokens.shape
        device = tokens.device
        drawn = torch.rand((2, count, length), generator=generator, device=device)
        masked = drawn[0] >= ALPHA_0
        in_order = (torch.arange(length, device=device) / length).expand(count, length)
        key = masked + _SHUFFLE * torch.where(masked, in_order, drawn[1])
        ranked = rank_logprobs(self.network, tokens, key.argsort(dim=-1))
        return -(ranked.logprobs * masked.gather(1, ranked.order)).mean()

    def figures(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Json]:
        """Held-out figures of texts [B, L]: exact NLL and perplexity by share alpha_0."""
        exact = {
            str(share): order_nll(self.network, tokens, share, generator)
            for share in _REPORTED_SHARES
        }
        with torch.no_grad():
            bound = sum(float(loss) for loss in self.losses(tokens, generator).values())
        perplexities = {
            share: round(float(torch.tensor(nll).exp()), 4) for share, nll in exact.items()
        }
        return {
            "exact_nll": dict(exact),
            "exact_perplexity": dict(perplexities),
            "bound_nll_alpha_0_0.25": bound,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint's tensors by name."""
        return {name: value.detach() for name, value in self.network.named_parameters()}

    def config(self, figures: dict[str, Json]) -> dict[str, Json]:
        """config.json."""
        del figures
        shape = self.network.shape
        return {
            "architectures": ["EsoLM"],
            "model_type": "EsoLM",
            "vocab_size": shape.vocab_size,
            "mask_index": shape.mask_id,
            "model_length": shape.max_positions,
            "hidden_size": shape.hidden_size,
            "n_blocks": shape.num_layers,
            "n_heads": shape.num_heads,
            "adaln": False,
            "time_conditioning": False,
            "diffusion_attn_mode": "causal",
            "sequential_attn_mode": "causal",
            "alpha_0": ALPHA_0,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": "float16",
        }


class RankedLogprobs(NamedTuple):
    """Log-probability of the token of each rank given all lower ranks [B, L]; its position."""

    logprobs: Tensor
    order: Tensor


def rank_logprobs(network: EsoLmNetwork, tokens: Tensor, order: Tensor) -> RankedLogprobs:
    """Run the text by rank and a mask for each rank, which sees the ranks below and itself.

    order: [B, L] int64, position of each rank
    """
    length = tokens.shape[1]
    targets = tokens.gather(1, order)
    masks = torch.full_like(targets, network.shape.mask_id)
    ranks = torch.arange(length, device=tokens.device)
    below = ranks.unsqueeze(1) > ranks
    itself = ranks.unsqueeze(1) == ranks
    rest = torch.cat((below, itself), dim=1).expand(tokens.shape[0], -1, -1)
    logits = network(
        torch.cat((targets, masks), dim=1),
        torch.cat((order, order), dim=1),
        Visibility(length, rest),
    )
    return RankedLogprobs(-token_nll(logits[:, length:], targets), order)


def draw_orders(tokens: Tensor, alpha_0: float, generator: torch.Generator) -> Tensor:
    """Orders of texts [B, L]: a binomial number of random ranks, then left to right."""
    device = tokens.device
    count, length = tokens.shape
    decided = torch.rand((count, length), generator=generator, device=device) < alpha_0
    num_random = decided.sum(dim=1, keepdim=True)
    shuffled = torch.rand((count, length), generator=generator, device=device).argsort(dim=-1)
    is_random = torch.arange(length, device=device) < num_random
    # Random ranks keep their place, the others are sorted by position behind them.
    ranks = torch.arange(length, device=device).expand(count, length)
    key = torch.where(is_random, ranks - length, shuffled)
    return shuffled.gather(1, key.argsort(dim=-1))


@torch.no_grad()
def order_nll(
    network: EsoLmNetwork, tokens: Tensor, alpha_0: float, generator: torch.Generator
) -> float:
    """Mean exact NLL per token, in nats, over orders drawn with a share alpha_0 at random."""
    repeats = _ORDERS_PER_TEXT if alpha_0 > 0 else 1
    total = 0.0
    for _ in range(repeats):
        order = draw_orders(tokens, alpha_0, generator)
        total -= float(rank_logprobs(network, tokens, order).logprobs.mean())
    return total / repeats


@dataclass(frozen=True, slots=True)
class EsoLmScale:
    """Sizes and course of a training run."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    schedule: Schedule

    def build(self, vocab_size: int, generator: torch.Generator) -> EsoLmModel:
        """A fresh model for a tokenizer's vocabulary, to which the mask is added."""
        return EsoLmModel(
            EsoLmShape(
                vocab_size=vocab_size + 1,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                max_positions=self.schedule.length,
            ),
            generator=generator,
        )
