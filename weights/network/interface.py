"""`Network`: what every network offers to the engine, and `NetworkInput`, what it is given.

Shapes: T rows of the step, R rows that want scores, d hidden width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels import Int8Weight, KVCache, PagedBatch
from weights.network.config import NetworkConfig
from weights.network.latent import LatentInput, LatentRows


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """One step.

    token_ids:  [T] int64
    positions:  [T] int64, where each token stands in its text, below the network's max_positions
    score_rows: [R] int64, the rows whose hidden state is wanted, in the order wanted
    batch:      where rows are stored and what they see
    draft_rows: [T] bool, the rows to which a draft adapter applies (the drafting pass of
                self-speculation), or None for none
    latents:    the rows that hold a latent instead of their token, or None for none
    """

    token_ids: Tensor
    positions: Tensor
    score_rows: Tensor
    batch: PagedBatch
    draft_rows: Tensor | None = None
    latents: LatentRows | None = None


class Network(Protocol):
    """A network without state: everything that lasts between steps is in the cache."""

    @property
    def config(self) -> NetworkConfig:
        """Its sizes and switches."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of a layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def head_weight(self) -> Tensor | Int8Weight:
        """The output head [V, d]."""
        ...

    @property
    def head_bias(self) -> Tensor | None:
        """Bias of the output head [V]."""
        ...

    @property
    def token_table(self) -> Tensor:
        """Embedding of every token [V, d]."""
        ...

    @property
    def is_row_exact(self) -> bool:
        """Whether a row's bits do not depend on the other rows of a step (int8 weights).

        The cache of such a network must hold numbers from the start (`is_zeroed`).
        """
        ...

    @property
    def latent(self) -> LatentInput | None:
        """How latents enter it; None for a network without them."""
        ...

    def forward(self, step: NetworkInput, cache: KVCache) -> Tensor:
        """Run one step and return the hidden rows [R, d] after the final norm.

        Keys and values of all T rows are written into the cache's slots.
        """
        ...
