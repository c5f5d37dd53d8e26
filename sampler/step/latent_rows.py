"""The latent rows of a step: what the network is told of them, and how their latents come about.

Shapes: T rows, R scored rows, L latent rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler.state.decoding import Mode
from sampler.state.latent_table import IntArray, LatentTable
from sampler.state.sequence_table import SequenceTable
from sampler.step.latent_store import LatentStep
from sampler.step.step_buffer import StepBuffer
from weights.network.latent import LatentRows


@dataclass(frozen=True, slots=True)
class LaidOut:
    """Rows of a step on the host: the seat and the position of each; all [n]."""

    seats: IntArray
    positions: IntArray


def latent_rows(
    rows: LaidOut,
    is_draft: NDArray[np.bool_],
    offsets: IntArray,
    scored_index: IntArray,
    scored: LaidOut,
    table: SequenceTable,
    *,
    buffer: StepBuffer,
) -> tuple[LatentRows | None, LatentStep | None]:
    """Lay out the latents of a step; (None, None) when it drafts nothing.

    rows:         all rows of the step, by their own positions
    is_draft:     [T], whether a row drafts
    offsets:      [T], of each row in its canvas or branch
    scored_index: [R], which rows are scored
    scored:       the scored rows, by the positions that they speak of
    """
    chosen = np.flatnonzero(is_draft)
    if chosen.size == 0:
        return None, None
    assert table.latents is not None, "a latent family has a table of latents"
    seats, positions = rows.seats[chosen], rows.positions[chosen]
    # Drafts that will be verified hold nothing yet.
    on_canvas = table.mode[seats] == Mode.DIFFUSION
    columns = positions % LatentTable.columns
    progress = np.where(on_canvas, table.latents.progress[seats, columns], 1.0)
    levels = np.round(progress * table.latents.num_levels).astype(np.int64)
    chosen_scored = np.flatnonzero(is_draft[scored_index])
    latents = LatentRows(
        rows=buffer.place(chosen),
        scored=buffer.place(chosen_scored),
        levels=buffer.place(levels),
        offsets=buffer.place(offsets[chosen]),
        of_scored=buffer.place(np.searchsorted(chosen, scored_index[chosen_scored])),
        run=_run(chosen, buffer),
        scored_run=_run(chosen_scored, buffer),
    )
    if not on_canvas.any():
        return latents, None
    return latents, _moves(seats, positions, on_canvas, scored, table, buffer)


def _run(index: IntArray, buffer: StepBuffer) -> slice | None:
    """The rows as a slice where they are one; on a GPU they stay data, so that graphs replay."""
    is_run = index.size > 0 and index[-1] - index[0] == index.size - 1
    if not is_run or buffer.device.type != "cpu":
        return None
    return slice(int(index[0]), int(index[-1]) + 1)


def _moves(
    seats: IntArray,
    positions: IntArray,
    on_canvas: NDArray[np.bool_],
    scored: LaidOut,
    table: SequenceTable,
    buffer: StepBuffer,
) -> LatentStep:
    latents = table.latents
    assert latents is not None, "a latent family has a table of latents"
    columns = positions % LatentTable.columns
    at = (seats, columns)
    parts = (latents.keep, latents.expected, latents.start, latents.slope, latents.noise)
    moves = np.stack([part[at] for part in parts], axis=1)
    # Noise picks tokens: as much of it as the temperature has. So z at temperature T is a latent of
    # the tempered distribution, whose exact posterior is softmax(logits / T); greedy has none.
    temperatures = table.temperature[seats]
    moves[:, 4] *= np.sqrt(temperatures)
    # A row that drafts for verification shares the ring with nobody's canvas, and keeps nothing.
    moves[~on_canvas] = 0
    ready = on_canvas & ~table.is_open[seats, positions]
    remembers = latents.remembers[at] & on_canvas
    speaks = _speaking_of_open(scored, table)
    return LatentStep(
        slots=buffer.place(seats * LatentTable.columns + columns),
        moves=buffer.place(moves.astype(np.float32)),
        remembers=buffer.place(remembers),
        progress=buffer.place(latents.previous[at].astype(np.float32)),
        tokens=buffer.place(np.where(ready, table.tokens[seats, positions], -1).astype(np.int64)),
        seeds=buffer.place(table.seeds[seats]),
        positions=buffer.place(positions),
        draws=buffer.place(latents.noise_draws[at]),
        has_noise=bool(moves[:, 4].any()),
        has_memory=bool(remembers.any() or moves[:, 2].any()),
        is_tempered=bool(((temperatures > 0) & (temperatures != 1) & on_canvas).any()),
        scored_rows=buffer.place(speaks),
        scored_slots=buffer.place(
            scored.seats[speaks] * LatentTable.columns
            + scored.positions[speaks] % LatentTable.columns
        ),
    )


def _speaking_of_open(scored: LaidOut, table: SequenceTable) -> IntArray:
    """Which scored rows speak of an open position of a canvas of latents."""
    columns = np.minimum(scored.positions, table.is_open.shape[1] - 1)
    is_open = table.is_open[scored.seats, columns]
    return np.flatnonzero(is_open & (table.mode[scored.seats] == Mode.DIFFUSION))
