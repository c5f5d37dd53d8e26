"""`CanvasSpans`: families that decode left to right by canvas: block diffusion and two-mode models.

Settling rows are causal (Nemotron-Labs-Diffusion) or see their whole block (SDAR, BD3-LM,
LLaDA2, Fast-dLLM v2); a canvas sees everything before its end. A seeded family first settles
what is final, and the token that its last row draws opens the next canvas; others settle a
finished block in the step that drafts the next one.
"""

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request
from sampler.spans.plan import Plan
from sampler.state.decoding import Mode
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule, Grid, Settle, Speaks


class CanvasSpans:
    """Spans of a family with a canvas at the end of each text."""

    decides_by_position = True

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.settled_speak_of_next = rule.settled_speaks_of is Speaks.NEXT
        self.drafts_speak_of_next = rule.draft_speaks_of is Speaks.NEXT
        self.suppresses_mask = rule.suppresses_mask
        self._settles_blocks = rule.settle is Settle.BLOCK
        self._grid_is_absolute = rule.grid is Grid.ABSOLUTE

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:
        """The end of the block in which the answer's limit lies, inside the context."""
        limit = len(request.prompt) + request.params.max_tokens
        origin = 0 if self._grid_is_absolute else len(request.prompt)
        end = origin + -(-(limit - origin) // block_length) * block_length
        return max(min(end, context_length), limit)

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Leave the prompt's tail inside an open block to the first canvas."""
        if table.mode[seat] != Mode.DIFFUSION or not self._grid_is_absolute:
            return
        length = len(request.prompt)
        whole = length // int(table.block_length[seat]) * int(table.block_length[seat])
        table.final[seat] = table.canvas_stop[seat] = table.prompt_stop[seat] = whole
        self.open_canvas(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Open the block after what is final; a seeded family settles first to get its seed."""
        start, length = int(table.final[seat]), int(table.prompt_length[seat])
        if self.rule.seeded and start >= length:
            table.stage[seat] = Stage.SETTLE
            return
        self._open_from(table, seat, known=max(start, length))

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Open all of the block but its first position."""
        self._open_from(table, seat, known=int(table.final[seat]) + 1)

    def _open_from(self, table: SequenceTable, seat: int, *, known: int) -> None:
        """Open the positions from `known` to the end of the block that starts at `final`."""
        start, block = int(table.final[seat]), int(table.block_length[seat])
        end = (start // block + 1) * block if self._grid_is_absolute else start + block
        stop = min(end, int(table.room[seat]))
        table.canvas_stop[seat] = stop
        table.is_open[seat, known:stop] = True
        table.is_fixed[seat, start:known] = True
        table.stage[seat] = Stage.DRAFT
        table.canvas_steps[seat] = table.edit_steps[seat] = table.part_steps[seat] = 0
        table.carry[seat] = 0
        part = int(table.sub_block_length[seat])
        table.part_start[seat] = start + (known - start) // part * part
        part_stop = min(int(table.part_start[seat]) + part, stop)
        table.part_open[seat] = part_stop - known

    @property
    def can_hand_to_ar(self) -> bool:
        """Whether a settling row draws the next token, so that a canvas can be given up."""
        return self.rule.seeded and not self._settles_blocks

    def hand_to_ar(self, table: SequenceTable, seat: int) -> IntArray:
        """Give the canvas up from its first open position on; what was filled behind it.

        The positions come one by one from settling rows, and the next canvas starts where the
        next canvas would have started.
        """
        start, stop = int(table.final[seat]), int(table.canvas_stop[seat])
        first = start + int(table.is_open[seat, start:stop].argmax())
        filled: IntArray = first + np.flatnonzero(~table.is_open[seat, first:stop])
        table.is_open[seat, first:stop] = False
        table.final[seat] = table.canvas_stop[seat] = first
        table.stage[seat] = Stage.SETTLE
        table.ar_until[seat] = stop
        return filled

    def starts_round(self, table: SequenceTable, seats: IntArray) -> NDArray[np.bool_]:
        """Which of the seats [n] verify drafts and are about to draft: one token is to settle."""
        final = table.final[seats]
        starts: NDArray[np.bool_] = table.mode[seats] == Mode.SPECULATIVE
        starts &= table.stage[seats] == Stage.SETTLE
        starts &= table.settled[seats] == final - 1
        return starts & (final > table.prompt_length[seats])

    def begin_rounds(self, table: SequenceTable, seats: IntArray, widths: IntArray) -> None:
        """Open what the next step drafts and the one after it verifies; width 0 only settles."""
        final = table.final[seats]
        # The last token rides in the window; behind the last proposal one more token is drawn.
        stop = np.minimum(final - 1 + widths, table.limit[seats] - 1)
        drafts = stop > final
        for seat, first, end in zip(
            seats[drafts].tolist(), final[drafts].tolist(), stop[drafts].tolist(), strict=True
        ):
            table.is_open[seat, first:end] = True
        table.canvas_stop[seats] = np.where(drafts, stop, final)
        table.stage[seats] = np.where(drafts, Stage.DRAFT, Stage.SETTLE)
        table.round_width[seats] = np.where(drafts, stop - final + 1, 0)

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Settle what is final; draft the canvas or verify its proposals, as the stage says."""
        stage, final = table.stage[seats], table.final[seats]
        stop = table.canvas_stop[seats]
        drafts, verifies = stage == Stage.DRAFT, stage == Stage.VERIFY
        # A drafter that will be verified sees the seed inside its canvas, both ways: the seed's
        # own entry is stored by the verifying pass.
        redrafts_seed = drafts & (table.mode[seats] == Mode.SPECULATIVE)
        settle_stop = final - redrafts_seed
        propose_stop = np.where(verifies, stop, settle_stop)
        draft_stop = np.where(drafts, stop, propose_stop)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=settle_stop,
            propose_stop=propose_stop,
            draft_stop=draft_stop,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=~drafts,
            causal_drafts=np.zeros(seats.size, dtype=np.bool_),
            draft_limit=draft_stop,
            checks=np.zeros(seats.size, dtype=np.bool_),
        )

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Anywhere in a causal family, at the edge of a block in others."""
        stop = min(int(table.settled[seat]) + rows, settle_stop)
        if self._settles_blocks and stop < settle_stop:
            block = int(table.block_length[seat])
            stop -= (stop - self._origin(table, seat)) % block
        return stop

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:
        """Up to the row's own entry, or to the end of its block."""
        if not self._settles_blocks:
            return entries + 1
        block = table.block_length[seats]
        origin = 0 if self._grid_is_absolute else table.prompt_length[seats]
        ends: IntArray = ((entries - origin) // block + 1) * block + origin
        return np.minimum(ends, table.room[seats])

    def sharing_length(self, table: SequenceTable, seat: int) -> int:
        """The block, where an entry depends on all of its block."""
        return int(table.block_length[seat]) if self._settles_blocks else 1

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """What is final, less the last token where its row has yet to draw the next one."""
        drawn_later = table.stage[seat] != Stage.DRAFT
        spare = 1 if drawn_later or table.mode[seat] == Mode.SPECULATIVE else 0
        return table.text(seat, max(int(table.final[seat]) - spare, 0))

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """The settled tokens."""
        return table.text(seat, int(table.settled[seat]))

    def _origin(self, table: SequenceTable, seat: int) -> int:
        return 0 if self._grid_is_absolute else int(table.prompt_length[seat])
