"""Ratio acceptance: proposals kept with probability min(1, p / q), as an option of verification.

A draft is drawn with noise of its own and its hidden row is kept. The row that verifies it keeps it
with that probability, or else draws from what p has more than q (`kernels.score.ratio`). Tokens are
distributed as AR's, and more drafts are kept than by coupled draws, but they are not the tokens
that AR would draw from the same seed.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import RowScores, ScoreSpec, ratio_rows
from sampler.state.decoding import Mode
from sampler.state.sequence_table import SequenceTable, Stage
from sampler.step.ratio_step import IntArray, RatioStep, RoundRows
from sampler.step.step_input import RowKind, ScoredRows
from weights.network.interface import Network


def drafts_by_ratio(scored: ScoredRows, table: SequenceTable) -> NDArray[np.bool_]:
    """Rows [R] that draft what will be verified by ratio."""
    seats = scored.seats
    verified = (table.mode[seats] == Mode.SPECULATIVE) & (table.round_width[seats] > 0)
    drafts: NDArray[np.bool_] = (scored.kinds == RowKind.DRAFT) & verified & table.by_ratio[seats]
    return drafts


def ratio_step(scored: ScoredRows, table: SequenceTable) -> RatioStep | None:
    """What a step drafts and verifies by ratio, or None when no sequence asks for it."""
    seats = scored.seats
    if not table.by_ratio[seats].any():
        return None
    offsets = scored.ranks - table.final[seats]
    # The last row of a round says what follows its proposals and verifies none.
    is_proposed = offsets < (table.canvas_stop - table.final)[seats]
    verifies = (table.stage[seats] == Stage.VERIFY) & table.by_ratio[seats]
    checks = np.flatnonzero(verifies & is_proposed & ~scored.is_given)
    drafts = np.flatnonzero(drafts_by_ratio(scored, table))
    proposed = table.tokens[seats[checks], scored.positions[checks]]
    return RatioStep(
        drafts=_rows_of_rounds(drafts, offsets, seats, table),
        checks=_rows_of_rounds(checks, offsets, seats, table),
        proposed=proposed.astype(np.int64),
    )


def _rows_of_rounds(
    rows: NDArray[np.intp], offsets: IntArray, seats: IntArray, table: SequenceTable
) -> RoundRows:
    own = seats[rows]
    return RoundRows(
        rows=rows.astype(np.int64),
        seats=own,
        arrivals=table.arrival[own],
        finals=table.final[own],
        offsets=offsets[rows],
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """The drafts of one round: hidden rows [w, d] at rising offsets [w]."""

    arrival: int
    final: int
    offsets: IntArray
    hidden: Tensor


class RatioVerifier:
    """Keeps the hidden rows of drafts until they are verified."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._kept: dict[int, _Kept] = {}

    def apply(
        self, hidden: Tensor, scores: RowScores, spec: ScoreSpec, step: RatioStep
    ) -> RowScores:
        """The scores with the tokens that ratio acceptance takes; hidden is [R, d].

        Proposals that were not drafted here, as guesses from known text, stay verified by what
        their rows drew.
        """
        scores = self._verify(hidden, scores, spec, step)
        drafts = step.drafts
        for seat in np.unique(drafts.seats).tolist():
            own = np.flatnonzero(drafts.seats == seat)
            own = own[np.argsort(drafts.offsets[own])]
            rows = torch.from_numpy(drafts.rows[own]).to(hidden.device)
            self._kept[seat] = _Kept(
                arrival=int(drafts.arrivals[own[0]]),
                final=int(drafts.finals[own[0]]),
                offsets=drafts.offsets[own],
                hidden=hidden[rows],
            )
        return scores

    def _verify(
        self, hidden: Tensor, scores: RowScores, spec: ScoreSpec, step: RatioStep
    ) -> RowScores:
        checks = step.checks
        chosen, drafted = [], []
        for seat in np.unique(checks.seats).tolist():
            own = np.flatnonzero(checks.seats == seat)
            kept = self._kept.pop(seat, None)
            now = (int(checks.arrivals[own[0]]), int(checks.finals[own[0]]))
            if kept is None or (kept.arrival, kept.final) != now:
                continue
            own = own[np.isin(checks.offsets[own], kept.offsets)]
            lines = np.searchsorted(kept.offsets, checks.offsets[own])
            chosen.append(own)
            drafted.append(kept.hidden[torch.from_numpy(lines).to(hidden.device)])
        if not chosen:
            return scores
        index = np.concatenate(chosen)
        rows = torch.from_numpy(checks.rows[index]).to(hidden.device)
        token, probability = ratio_rows(
            hidden,
            torch.cat(drafted),
            self._network.head_weight,
            self._network.head_bias,
            spec,
            rows=rows,
            proposed=torch.from_numpy(step.proposed[index]).to(hidden.device),
        )
        return replace(
            scores,
            token=scores.token.index_put((rows,), token),
            probability=scores.probability.index_put((rows,), probability),
        )
