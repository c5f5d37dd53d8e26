"""What drawn tokens do to sequences: the parts that span rules are put together from.

Each function takes scored rows [n] of a step, writes the table, and adds to the step's outcome.
"""

from typing import NamedTuple

import numpy as np

from sampler.border.request import TokenKind
from sampler.spans.canvas_acceptance import decide, remasked
from sampler.spans.scored import StepScores
from sampler.spans.step_outcome import Fill, Round, SeatedRequests, StepOutcome
from sampler.state.decoding import Mode
from sampler.state.sequence_table import IntArray, SequenceTable, Stage


def fill(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    outcome: StepOutcome,
    *,
    kind: TokenKind,
    is_draft: bool = False,
) -> None:
    """The positions that the rows speak of take their tokens."""
    scored, scores = step.scored, step.scores
    table.fill(
        scored.seats[rows],
        scored.positions[rows],
        scores.token[rows],
        kind=kind,
        confidence=scores.probability[rows],
    )
    outcome.fills.append(Fill(rows, kind, is_draft))


def append(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    requests: SeatedRequests,
    outcome: StepOutcome,
) -> None:
    """The drawn tokens are final, and the only thing that their sequences got."""
    seats, positions = step.scored.seats[rows], step.scored.positions[rows]
    fill(rows, step, table, outcome, kind=TokenKind.AR)
    special = table.is_special[seats]
    if special.any():
        requests.take(seats[special], positions[special])
    table.finish(seats, positions + 1)
    outcome.appended = seats


def draw_singles(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    requests: SeatedRequests,
    outcome: StepOutcome,
) -> None:
    """Tokens that come one by one where the sequence might have drafted; none is final yet."""
    seats = step.scored.seats[rows]
    fill(rows, step, table, outcome, kind=TokenKind.AR)
    requests.take(seats, step.scored.positions[rows])
    outcome.singles.append(rows)
    outcome.moved += seats.tolist()


def verify(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    requests: SeatedRequests,
    outcome: StepOutcome,
) -> list[int]:
    """Confirm proposals by what the rows draw; the first other token is final, too. The seats."""
    seats = step.scored.seats[rows]
    moved: list[int] = np.unique(seats).tolist()
    for seat in moved:
        own = rows[seats == seat]
        # Behind a prompt that was cut there may be room for fewer proposals, or for none.
        start = int(table.final[seat])
        stop = min(int(table.canvas_stop[seat]), start + own.size - 1)
        equal = step.scores.token[own[:-1]] == table.tokens[seat, start:stop]
        confirmed = int(np.argmin(np.append(equal, False)))
        new_stop = min(start + confirmed + 1, int(table.limit[seat]))
        _fill_verified(own[: new_stop - start], confirmed, step, table, outcome)
        positions = np.arange(start, new_stop)
        requests.take(np.full(positions.size, seat), positions)
        table.finish(seat, new_stop)
        # The confirmed proposals were stored as they will stay; the last draw was not run.
        table.settle(seat, min(start + confirmed, new_stop))
        add_round(own, table, seat, outcome, offered=stop - start, confirmed=confirmed)
        table.set_stage(seat, Stage.SETTLE)
    outcome.moved += moved
    return moved


def check(rows: IntArray, step: StepScores, table: SequenceTable, outcome: StepOutcome) -> int:
    """The same in any order, for one sequence: masks at the proposals' positions draw for them.

    How many tokens are final; the proposals behind them are open again.
    """
    positions, drawn = step.scored.positions[rows], step.scores.token[rows]
    seat = int(step.scored.seats[rows[0]])
    equal = drawn == table.tokens[seat, positions]
    confirmed = rows.size if equal.all() else int(np.argmin(equal))
    count = min(confirmed + 1, rows.size)
    _fill_verified(rows[:count], confirmed, step, table, outcome)
    table.take_back(step.scored.seats[rows[count:]], positions[count:])
    table.settle(seat, int(table.final[seat]) + confirmed)
    table.set_stage(seat, Stage.DRAFT)
    add_round(rows, table, seat, outcome, offered=rows.size, confirmed=confirmed)
    outcome.moved.append(seat)
    return count


def _fill_verified(
    rows: IntArray, confirmed: int, step: StepScores, table: SequenceTable, outcome: StepOutcome
) -> None:
    fill(rows[:confirmed], step, table, outcome, kind=TokenKind.VERIFIED)
    fill(rows[confirmed:], step, table, outcome, kind=TokenKind.AR)


def add_round(
    rows: IntArray,
    table: SequenceTable,
    seat: int,
    outcome: StepOutcome,
    *,
    offered: int,
    confirmed: int,
) -> None:
    """Keep how a verification ended."""
    is_drafted = bool(table.round_width[seat] > 0)
    outcome.rounds.append(Round(rows, offered, confirmed, is_drafted))


def propose(rows: IntArray, step: StepScores, table: SequenceTable, outcome: StepOutcome) -> None:
    """Drafts that will be verified: every position takes its token, none is final."""
    scored = step.scored
    seats = scored.seats[rows]
    table.propose(
        seats, scored.positions[rows], step.scores.token[rows], step.scores.probability[rows]
    )
    seats = np.unique(seats)
    # Their clients may want to see them.
    outcome.moved += seats[table.is_special[seats]].tolist()


class Accepted(NamedTuple):
    """What canvases [n] accepted: positions that were open, and others that were edited."""

    seats: list[int]
    filled: list[int]
    edited: list[int]


def accept(
    rows: IntArray,
    step: StepScores,
    table: SequenceTable,
    requests: SeatedRequests,
    outcome: StepOutcome,
    *,
    by_position: bool,
) -> Accepted:
    """Fill open positions with accepted drafts, as each sequence's acceptance rule says."""
    scored, scores = step.scored, step.scores
    if rows.size == 0:
        return Accepted([], [], [])
    decision = decide(
        rows,
        scored,
        scores,
        table,
        mask_id=-1 if step.mask_id is None else step.mask_id,
        by_position=by_position,
    )
    seats, positions = scored.seats[rows], scored.positions[rows]
    taken = requests.hold(seats, positions, scores.token[rows], decision.accepted)
    reopened = _remask(seats[taken], table)
    fill(rows[taken], step, table, outcome, kind=TokenKind.DIFFUSION, is_draft=True)
    table.take_back(*reopened)
    own, line = np.unique(seats, return_inverse=True)
    num_taken = np.bincount(line[taken], minlength=own.size)
    edited = np.bincount(line[decision.edited], minlength=own.size)
    revised = edited + np.bincount(np.searchsorted(own, reopened[0]), minlength=own.size)
    table.count_steps(own, num_taken - edited, edited)
    outcome.num_edited += int(edited.sum())
    outcome.num_wasted += rows.size - int(taken.sum())
    outcome.moved += own.tolist()
    outcome.revised += zip(own.tolist(), revised.tolist(), strict=True)
    return Accepted(own.tolist(), (num_taken - edited).tolist(), edited.tolist())


def _remask(gaining: IntArray, table: SequenceTable) -> tuple[IntArray, IntArray]:
    """(seats, positions) that become open again; never in a step that accepts nothing."""
    seats = np.unique(gaining)
    return remasked(seats[table.remask[seats] > 0], table)


def draft_rows(rows: IntArray, step: StepScores, table: SequenceTable) -> tuple[IntArray, IntArray]:
    """Rows that drafted, counted: those that will be verified, and those that may be accepted."""
    seats = step.scored.seats[rows]
    table.count_drafts(seats, step.scored.positions[rows])
    verifies = table.mode[seats] == Mode.SPECULATIVE
    return rows[verifies], rows[~verifies]
