"""`Plan`: which entries of which sequences one step runs, as arrays with one line per span."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The spans of one step. A span runs the entries `first <= e < draft_stop` of its sequence.

    Entries before `settle_stop` settle, those before `propose_stop` are proposals, which settle
    if they are accepted, and the rest are drafts. All arrays are [S].

    is_cut:         the settling part was cut by the row budget: nothing else runs, and no row
                    is scored
    scores_settled: the last settling row is scored (it speaks of the next position)
    causal_drafts:  a draft sees the entries up to its own; otherwise those before `draft_limit`
    draft_limit:    entries that a draft sees at most
    checks:         the drafts are masks that verify the proposals, one each at its position: such
                    a row sees what is before the proposal, and itself
    branch_width:   the drafts are branches of so many rows, 0 for none: a row sees the text, the
                    proposals that its branch takes as accepted, and its own branch
    branches:       how many; one each for 0, 1, 2, ... accepted proposals, or only one, for all
    """

    seats: IntArray
    first: IntArray
    settle_stop: IntArray
    propose_stop: IntArray
    draft_stop: IntArray
    is_cut: NDArray[np.bool_]
    scores_settled: NDArray[np.bool_]
    causal_drafts: NDArray[np.bool_]
    draft_limit: IntArray
    checks: NDArray[np.bool_]
    branch_width: IntArray | None = None
    branches: IntArray | None = None

    @property
    def num_spans(self) -> int:
        """S, the sequences that run."""
        return int(self.seats.size)

    @property
    def num_rows(self) -> int:
        """T, the rows that run."""
        return int((self.draft_stop - self.first).sum())

    def keep(self, mask: NDArray[np.bool_]) -> "Plan":
        """The same plan with the spans of the mask [S] only."""
        return Plan(
            seats=self.seats[mask],
            first=self.first[mask],
            settle_stop=self.settle_stop[mask],
            propose_stop=self.propose_stop[mask],
            draft_stop=self.draft_stop[mask],
            is_cut=self.is_cut[mask],
            scores_settled=self.scores_settled[mask],
            causal_drafts=self.causal_drafts[mask],
            draft_limit=self.draft_limit[mask],
            checks=self.checks[mask],
            branch_width=None if self.branch_width is None else self.branch_width[mask],
            branches=None if self.branches is None else self.branches[mask],
        )
