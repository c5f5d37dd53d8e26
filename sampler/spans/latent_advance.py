"""What a step changes in latent canvases: proposals for the next step, or latents that move.

The second half of `LatentSpans` (Evo): `follow_branch` after a verification, `evolve` and `slide`
in diffusion mode.

Shapes: n scored rows.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler.spans.latent_moves import (
    Floats,
    Information,
    MoveKnobs,
    decide_moves,
    left_run,
)
from sampler.spans.scored import HostScores, RowKind, ScoredRows, StepScores
from sampler.spans.step_outcome import SeatedRequests
from sampler.state.latent_knobs import Uncertainty
from sampler.state.latent_table import LatentTable
from sampler.state.sequence_table import IntArray, SequenceTable

# Fields of `LatentKnobs` that `MoveKnobs` has too.
_NUMBERS = ("delta_min", "delta_max", "finalize", "jump", "t_plan", "hysteresis")


def follow_branch(
    seat: int,
    drafted: IntArray,
    *,
    confirmed: int,
    table: SequenceTable,
    step: StepScores,
    requests: SeatedRequests,
) -> None:
    """Propose what the branch drafted that takes so many proposals as accepted, if there is one.

    Where the text's ending stood before, what followed it there is the better guess: in held-out
    answers it is confirmed more often than any draft.

    drafted: [n], the scored rows of the seat's branches in the order of the plan
    """
    scored, scores = step.scored, step.scores
    assert scored.branches is not None, "drafts that are verified come in branches"
    final, limit = int(table.final[seat]), int(table.limit[seat])
    own = drafted[scored.branches[drafted] == confirmed]
    guesses, probable = scores.token[own], scores.probability[own]
    repeated = requests.repeated(seat, count=int(table.num_drafts[seat]))
    if repeated.size:
        guesses, probable = repeated, np.zeros(repeated.size, dtype=np.float32)
    # Behind the last proposal one more token is drawn.
    count = max(min(guesses.size, limit - final - 1), 0)
    table.propose_behind(seat, guesses[:count], probable[:count])


@dataclass(frozen=True, slots=True)
class Evolved:
    """What open positions of latent canvases became, each [n].

    rows:        of the scored rows, those that speak of an open position
    is_ready:    the position takes the drawn token
    is_exact:    the row is a settled one: its distribution is the base's own
    """

    rows: IntArray
    is_ready: NDArray[np.bool_]
    is_exact: NDArray[np.bool_]


def evolve(
    rows: IntArray,
    scored: ScoredRows,
    scores: HostScores,
    table: SequenceTable,
    information: Information,
    *,
    vocabulary_size: int,
) -> Evolved:
    """Decide which open positions are ready, and how the latents of the others move.

    rows:        scored rows of sequences that decode by latent canvas
    information: of the family's latents, by t
    """
    latents = table.latents
    assert latents is not None, "a latent family has a table of latents"
    seats, positions = scored.seats[rows], scored.positions[rows]
    rows = rows[table.is_open[seats, positions]]
    seats, positions = scored.seats[rows], scored.positions[rows]
    at = (seats, positions % LatentTable.columns)
    knobs = {name: column[seats] for name, column in latents.knobs.items()}
    uncertain = uncertainties(rows, scores, knobs["uncertainty"], vocabulary_size)
    before = latents.progress[at].astype(np.float64)
    corrects = latents.corrects[at]
    moves = decide_moves(
        before,
        latents.previous[at].astype(np.float64),
        corrects,
        uncertain,
        information,
        MoveKnobs(
            **{name: knobs[name] for name in _NUMBERS},
            is_heun=knobs["is_heun"] > 0,
        ),
        num_levels=latents.num_levels,
    )
    is_exact = scored.kinds[rows] == RowKind.SETTLE
    ready = moves.is_ready | is_exact
    ready &= left_run(seats, positions, ready) | (knobs["is_left_to_right"] == 0)
    # Where t may stand still, as masks do, the most certain position goes ahead, else the first.
    is_first = (knobs["is_left_to_right"] > 0) | (knobs["delta_min"] > 0)
    precedence = np.where(is_first, 0.0, uncertain)
    ready |= _forced(seats, positions, ready, precedence, table, knobs["max_refine_steps"])
    latents.advance(
        *at,
        progress=np.where(ready, 0.0, moves.progress),
        remembers=moves.remembers & ~ready,
        renoised=moves.is_renoised,
    )
    latents.set_move(
        *at,
        keep=moves.keep,
        expected=moves.expected,
        start=moves.start,
        slope=moves.slope,
        noise=moves.noise,
    )
    return Evolved(rows, ready, is_exact)


def uncertainties(
    rows: IntArray, scores: HostScores, kinds: Floats, vocabulary_size: int
) -> Floats:
    """How uncertain each row is [n], in [0, 1], by the `Uncertainty` its request asks for [n]."""
    entropy = scores.entropy[rows].astype(np.float64) / math.log(vocabulary_size)
    p1, p2 = scores.p1[rows].astype(np.float64), scores.p2[rows].astype(np.float64)
    by_kind = {
        Uncertainty.ENTROPY: entropy,
        Uncertainty.CONFIDENCE: 1 - p1,
        Uncertainty.MARGIN: 1 - (p1 - p2),
    }
    chosen = np.select([kinds == kind for kind in by_kind], list(by_kind.values()), entropy)
    return np.clip(chosen, 0.0, 1.0)


def _forced(
    seats: IntArray,
    positions: IntArray,
    ready: NDArray[np.bool_],
    precedence: Floats,
    table: SequenceTable,
    patience: Floats,
) -> NDArray[np.bool_]:
    """Count steps without gain; one open position of every canvas whose patience is over [n].

    It is the position of least precedence value, the first of those that are equal.
    """
    own, place, line = np.unique(seats, return_index=True, return_inverse=True)
    gains = np.zeros(own.size, dtype=np.bool_)
    np.logical_or.at(gains, line, ready)
    waited = np.where(gains, 0, table.part_steps[own] + 1)
    is_due = waited >= patience[place]
    table.wait(own, np.where(is_due, 0, waited))
    order = np.lexsort((positions, precedence, line))
    _, first = np.unique(line[order], return_index=True)
    forced = np.zeros(seats.size, dtype=np.bool_)
    forced[order[first]] = True
    return forced & is_due[line]


def slide(seat: int, *, mean_uncertainty: float | None, table: SequenceTable) -> int:
    """Make the filled beginning of a canvas final and choose its width anew; how many are final.

    mean_uncertainty: of the left half of the canvas, or None when nothing was said of it
    """
    start, stop = int(table.final[seat]), int(table.canvas_stop[seat])
    is_open = table.is_open[seat, start:stop]
    filled = int(is_open.argmax()) if is_open.any() else stop - start
    table.finish_part(seat, start + filled)
    if mean_uncertainty is not None:
        table.set_width(seat, _width(mean_uncertainty, int(table.width[seat]), table, seat))
    # A narrower canvas gives up what lies behind its new end.
    end = max(int(table.final[seat] + table.width_now[seat]), int(table.final[seat]))
    if end < stop:
        table.narrow(seat, end)
    return filled


def _width(mean: float, widest: int, table: SequenceTable, seat: int) -> int:
    """All of the width for an uncertain canvas, one for a certain one, else a power of two.

    With t_ar = 0 the canvas never narrows.
    """
    assert table.latents is not None, "a latent family has a table of latents"
    t_ar, t_plan = (float(table.latents.knobs[name][seat]) for name in ("t_ar", "t_plan"))
    if t_ar == 0 or mean > t_plan:
        return widest
    if mean < t_ar:
        return 1
    share = (mean - t_ar) / max(t_plan - t_ar, 1e-9)
    return min(max(int(2 ** round(share * math.log2(max(widest, 1)))), 1), widest)
