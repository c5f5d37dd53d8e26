"""What a step scored, and what the network says of it, on the host.

Shapes: T rows, R scored rows.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sampler.spans.plan import Plan

IntArray = NDArray[np.int64]


class RowKind(IntEnum):
    """What a row is run for."""

    SETTLE = 0
    PROPOSE = 1
    DRAFT = 2
    CHECK = 3


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows whose scores are wanted, on the host, in the order of the plan. All are [R].

    rows:      their index among the T rows
    spans:     index of their span in the plan
    seats:     seat of their sequence
    positions: the position that their scores speak of
    ranks:     the rank of that position
    kinds:     `RowKind` of each
    is_given:  the position's token is known: only its log-probability is wanted (a prompt's
               token, when the request asks for them)
    branches:  accepted proposals that the row's branch begins behind, -1 outside branches; None
               when there are none
    """

    rows: IntArray
    spans: IntArray
    seats: IntArray
    positions: IntArray
    ranks: IntArray
    kinds: NDArray[np.int8]
    is_given: NDArray[np.bool_]
    branches: IntArray | None = None


@dataclass(frozen=True, slots=True)
class HostScores:
    """What the network says of the R scored rows, on the host.

    token:         [R] int64, drawn
    probability:   [R] float32, of the drawn token, in (0, 1]
    argmax:        [R] int64
    p1, p2:        [R] float32, the two largest probabilities
    entropy:       [R] float32, nats
    given_logprob: [R] float32 or None, of the token that was given
    top_ids, top_logprobs: [R, K] or None
    """

    token: NDArray[np.int64]
    probability: NDArray[np.float32]
    argmax: NDArray[np.int64]
    p1: NDArray[np.float32]
    p2: NDArray[np.float32]
    entropy: NDArray[np.float32]
    given_logprob: NDArray[np.float32] | None = None
    top_ids: NDArray[np.int64] | None = None
    top_logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class StepScores:
    """What one step ran and what came back.

    vocabulary_size: entries of the vocabulary
    mask_id:         the mask token, or None
    """

    plan: Plan
    scored: ScoredRows
    scores: HostScores
    vocabulary_size: int
    mask_id: int | None

    def uncertainty(self, rows: IntArray) -> NDArray[np.float64]:
        """Entropy of scored rows [n] as a share of the largest there can be, in [0, 1]."""
        largest = math.log(self.vocabulary_size)
        return np.clip(self.scores.entropy[rows].astype(np.float64) / largest, 0.0, 1.0)
