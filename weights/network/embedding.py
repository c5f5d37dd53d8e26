"""The token table and the output head, tied or not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Int8Weight
from weights.errors import CheckpointError
from weights.network.config import NetworkConfig
from weights.network.linear import Linear, Placement
from weights.network.tensor_reader import Parts


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How tokens enter and leave a network.

    token_table:    [V, d]
    position_table: [P, d], or None when positions enter by rotation alone
    head:           d -> V
    """

    token_table: Tensor
    position_table: Tensor | None
    head: Linear

    @property
    def head_weight(self) -> Tensor | Int8Weight:
        """The matrix of the head [V, d]; scores are computed from these two forms only."""
        weight = self.head.weight
        if not isinstance(weight, Tensor | Int8Weight):
            raise TypeError("an output head is never packed")
        return weight

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Look tokens [T] and, where learned, positions [T] up; returns [T, d]."""
        return self.place(self.look_up(token_ids), positions)

    def look_up(self, token_ids: Tensor) -> Tensor:
        """The tokens [T] alone [T, d]."""
        return torch.nn.functional.embedding(token_ids, self.token_table)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows [T, d] with their positions [T] added, where those are learned."""
        if self.position_table is None:
            return x
        return x + torch.nn.functional.embedding(positions, self.position_table)


def build_vocabulary(config: NetworkConfig, parts: Parts, placement: Placement) -> Vocabulary:
    """Take the table and the head.

    Raises CheckpointError when the config ties the head to the table, but the checkpoint has
    another head.
    """
    shape = (config.vocab_size, config.hidden_size)
    table = parts.take("embedding", shape)
    head_weight = table
    if parts.has("head.weight") or not config.tie_head:
        head_weight = parts.take("head.weight", shape)
        if config.tie_head and not torch.equal(head_weight, table):
            raise CheckpointError("the config ties the output head, but the file holds another")
    head_bias = parts.take("head.bias", shape[:1]) if config.head_bias else None
    position_table = None
    if config.rotary is None or config.learned_positions:
        positions = parts.take("positions", (config.max_positions, config.hidden_size))
        position_table = placement.tensor(positions)
    token_table = placement.tensor(table)
    if config.tie_head and head_bias is None:
        return Vocabulary(token_table, position_table, Linear(token_table))
    return Vocabulary(token_table, position_table, placement.linear(head_weight, head_bias))
