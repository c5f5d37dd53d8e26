"""Canvases of a step laid side by side, so that one rule decides for the whole batch.

Shapes: R scored drafts, S canvases with drafts in the step, W columns of the widest.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import PURPOSE_CHOICE, edit_tokens, remask_tokens, uniform_noise
from sampler.state.acceptance import (
    CanvasKnobs,
    CanvasScores,
    Preference,
    Rule,
    accept,
    leftmost_part,
)
from sampler.state.decoding import Schedule
from sampler.state.sequence_table import IntArray, SequenceTable
from sampler.step.runner import HostScores
from sampler.step.step_input import ScoredRows

# Dream's time runs from 1 to this. From: Dream's generation code, eps.
_LAST_TIME = 1e-3


@dataclass(frozen=True, slots=True)
class Decision:
    """What S canvases do with R scored drafts; all arrays are [R], in the order of `rows`.

    rows:     indices into the scored rows of the step
    accepted: the position takes the drawn token
    edited:   of them, those that had another token before
    """

    rows: IntArray
    accepted: NDArray[np.bool_]
    edited: NDArray[np.bool_]


def decide(
    rows: IntArray,
    scored: ScoredRows,
    scores: HostScores,
    table: SequenceTable,
    *,
    mask_id: int,
    by_position: bool,
) -> Decision:
    """Apply each sequence's rule to its drafts: which are accepted, which replace a token.

    by_position: a column of a canvas is a position; otherwise a rank
    """
    seats_of_rows, positions, ranks = scored.seats[rows], scored.positions[rows], scored.ranks[rows]
    seats, line = np.unique(seats_of_rows, return_inverse=True)
    column = positions - table.part_start[seats_of_rows] if by_position else ranks
    base = np.full(seats.size, np.iinfo(np.int64).max)
    np.minimum.at(base, line, column)
    column = column - (np.minimum(base, 0) if by_position else base)[line]
    shape = (seats.size, int(column.max()) + 1)
    token = scores.token[rows]
    is_open = table.is_open[seats_of_rows, positions]
    canvas = CanvasScores(
        is_open=_spread(is_open & (token != mask_id), line, column, shape),
        token=_spread(token, line, column, shape),
        confidence=_spread(scores.probability[rows], line, column, shape),
        p1=_spread(scores.p1[rows], line, column, shape),
        p2=_spread(scores.p2[rows], line, column, shape),
        entropy=_spread(scores.entropy[rows], line, column, shape),
        positions=_spread(positions, line, column, shape),
    )
    knobs = _knobs(seats, table)
    if by_position:
        canvas = _narrowed(canvas, seats, table)
    accepted = accept(canvas, knobs)
    edited = _edits(canvas, seats, seats_of_rows, positions, line, column, table)
    taken = (accepted | edited)[line, column].numpy()
    return Decision(rows=rows, accepted=taken, edited=edited[line, column].numpy())


def quotas(seats: IntArray, table: SequenceTable) -> IntArray:
    """How many positions each sequence's schedule accepts in this step: [S]."""
    steps, planned = table.part_steps[seats], table.steps_planned[seats]
    opened = table.part_open[seats]
    schedule = table.schedule[seats]
    left = _open_counts(seats, table)
    block = table.sub_block_length[seats]
    # A denoising schedule is laid out over the whole block, whatever of it was known before;
    # bidirectional models lay it out over all blocks of the answer.
    even = block // planned + (steps < block % planned)
    remaining = -(-left // np.maximum(planned - steps, 1))
    times = np.linspace(1.0, _LAST_TIME, 2)
    now = times[0] + (times[1] - times[0]) * steps / planned
    then = times[0] + (times[1] - times[0]) * (steps + 1) / planned
    timed = np.where(steps + 1 >= planned, left, (left * (1 - then / now)).astype(np.int64))
    owed = opened // planned + table.carry[seats]
    by_schedule = np.select(
        [schedule == Schedule.EVEN, schedule == Schedule.REMAINING, schedule == Schedule.TIME],
        [even, remaining, timed],
        table.quota[seats],
    )
    return np.where(table.rule[seats] == Rule.THRESHOLD_IN_QUOTA, owed, by_schedule)


def remasked(seats: IntArray, table: SequenceTable) -> tuple[IntArray, IntArray]:
    """(seats, positions) that sequences reopen: ReMDM in the part that is being decided.

    A filled position is reopened with a probability that grows as its token was less sure when
    it was filled. A canvas that has taken all its planned steps reopens nothing, so that every
    canvas ends.
    """
    seats = seats[table.part_steps[seats] + 1 < table.steps_planned[seats]]
    if seats.size == 0:
        return seats, seats
    width = int(table.sub_block_length[seats].max())
    positions = table.part_start[seats, None] + np.arange(width)
    inside = (
        positions
        < np.minimum(
            table.part_start[seats] + table.sub_block_length[seats],
            np.minimum(table.canvas_stop[seats], table.limit[seats]),
        )[:, None]
    )
    columns = np.where(inside, positions, 0)
    lines = seats[:, None]
    filled = inside & ~table.is_open[lines, columns] & ~table.is_fixed[lines, columns]
    filled &= columns >= table.prompt_length[lines]
    counters = np.broadcast_to(table.canvas_steps[lines], columns.shape)
    uniform = uniform_noise(
        torch.from_numpy(np.broadcast_to(table.seeds[lines], columns.shape).ravel().copy()),
        torch.from_numpy(columns.ravel()),
        torch.full((columns.size,), PURPOSE_CHOICE),
        torch.from_numpy(counters.ravel().copy()),
        torch.ones(1, dtype=torch.int64),
    )
    reopened = remask_tokens(
        torch.from_numpy(table.confidence[lines, columns]),
        torch.from_numpy(filled),
        uniform.view(columns.shape),
        torch.from_numpy(table.remask[seats]) * torch.from_numpy(filled.sum(1)).float(),
    ).numpy()
    line, column = np.nonzero(reopened & filled)
    return seats[line], columns[line, column]


def _open_counts(seats: IntArray, table: SequenceTable) -> IntArray:
    """Open positions of each sequence inside the part that is being decided."""
    start = table.part_start[seats]
    stop = np.minimum(start + table.sub_block_length[seats], table.canvas_stop[seats])
    return np.array(
        [
            int(table.is_open[seat, a:b].sum())
            for seat, a, b in zip(seats.tolist(), start.tolist(), stop.tolist(), strict=True)
        ],
        dtype=np.int64,
    )


def _knobs(seats: IntArray, table: SequenceTable) -> CanvasKnobs:
    tired = table.canvas_steps[seats] >= table.max_steps[seats]
    # A canvas that does not converge goes on from left to right, one position at a time.
    rule = np.where(tired, Rule.QUOTA, table.rule[seats])
    preference = np.where(tired, Preference.LEFT_TO_RIGHT, table.preference[seats])
    quota = np.where(tired, 1, quotas(seats, table))
    return CanvasKnobs(
        rule=torch.from_numpy(rule),
        preference=torch.from_numpy(preference),
        threshold=torch.from_numpy(table.threshold[seats]),
        distance_weight=torch.from_numpy(table.distance_weight[seats]),
        quota=torch.from_numpy(quota),
        seeds=torch.from_numpy(table.seeds[seats]),
        attempts=torch.from_numpy(table.canvas_steps[seats]),
    )


def _narrowed(canvas: CanvasScores, seats: IntArray, table: SequenceTable) -> CanvasScores:
    """The same canvases, open only in the leftmost part that has open positions."""
    part = torch.from_numpy(table.sub_block_length[seats])
    return CanvasScores(
        is_open=leftmost_part(canvas.is_open, part),
        token=canvas.token,
        confidence=canvas.confidence,
        p1=canvas.p1,
        p2=canvas.p2,
        entropy=canvas.entropy,
        positions=canvas.positions,
    )


def _edits(
    canvas: CanvasScores,
    seats: IntArray,
    seats_of_rows: IntArray,
    positions: IntArray,
    line: IntArray,
    column: IntArray,
    table: SequenceTable,
) -> torch.Tensor:
    """Filled positions [S, W] whose token is replaced."""
    shape = tuple(canvas.is_open.shape)
    threshold = table.edit_confidence[seats]
    if not (threshold <= 1).any():
        return torch.zeros(shape, dtype=torch.bool)
    current = table.tokens[seats_of_rows, positions].astype(np.int64)
    filled = ~table.is_open[seats_of_rows, positions] & ~table.is_fixed[seats_of_rows, positions]
    return edit_tokens(
        canvas.token,
        _spread(current, line, column, shape),
        canvas.confidence,
        _spread(filled, line, column, shape),
        torch.from_numpy(threshold),
    )


def _spread(
    values: NDArray[np.generic], line: IntArray, column: IntArray, shape: tuple[int, ...]
) -> torch.Tensor:
    """Values [R] at their places in a tensor [S, W]; zero elsewhere."""
    spread = np.zeros(shape, dtype=values.dtype)
    spread[line, column] = values
    return torch.from_numpy(spread)


def uncertainty(entropy: float, vocabulary_size: int) -> float:
    """Entropy in nats as a share of the largest there can be, in [0, 1]."""
    return min(max(entropy / math.log(vocabulary_size), 0.0), 1.0)
