"""`RatioStep`: which rows of a step draft, or verify what was drafted, by ratio acceptance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RoundRows:
    """Rows of rounds of drafts. All are [n].

    A round of a sequence begins at the first rank that is not final.

    rows:     their indices among the R scored rows
    seats:    seats of their sequences
    arrivals: the number of the sequence, as seats are used again
    finals:   the rank at which the round begins
    offsets:  ranks of their positions from there on
    """

    rows: IntArray
    seats: IntArray
    arrivals: IntArray
    finals: IntArray
    offsets: IntArray


@dataclass(frozen=True, slots=True)
class RatioStep:
    """What a step drafts and verifies by ratio.

    drafts:   rows that draft what a later step verifies
    checks:   rows that verify a proposal
    proposed: token ids of the proposals, one for each check
    """

    drafts: RoundRows
    checks: RoundRows
    proposed: IntArray
