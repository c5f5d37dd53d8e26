"""Canvases that are decided part by part and become final when no position of them is open."""

from typing import Protocol

from sampler.spans.drawn_tokens import Accepted
from sampler.spans.step_outcome import StepOutcome
from sampler.state.sequence_table import NEVER_EDIT, SequenceTable, Stage


class OpensCanvases(Protocol):
    """A span rule whose canvases follow each other."""

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """What follows when everything up to `final` is final."""


def close_full(rule: OpensCanvases, table: SequenceTable, seat: int, outcome: StepOutcome) -> None:
    """A canvas without open positions is final; the next one opens while the answer goes on."""
    if table.has_open(seat):
        return
    table.finish(seat, int(table.canvas_stop[seat]))
    outcome.num_closed += 1
    outcome.canvas_steps.append(int(table.canvas_steps[seat]))
    if table.final[seat] < table.limit[seat]:
        rule.open_canvas(table, seat)
        outcome.num_opened += int(table.stage[seat] == Stage.DRAFT)


def close_after_step(
    rule: OpensCanvases,
    table: SequenceTable,
    seat: int,
    outcome: StepOutcome,
    *,
    filled: int,
    edited: int,
) -> None:
    """Move to the next part after a drafting step, and close what is full and edited no more."""
    table.move_part(seat)
    if filled == 0 and not table.has_open(seat):
        table.count_edit_step(seat)
    edits = table.edit_confidence[seat] < NEVER_EDIT
    tired = table.edit_steps[seat] >= table.max_edit_steps[seat]
    # A canvas that may be edited is done when a step changed nothing.
    if not edits or tired or filled + edited == 0:
        close_full(rule, table, seat, outcome)


def close_after_steps(
    rule: OpensCanvases, table: SequenceTable, accepted: Accepted, outcome: StepOutcome
) -> None:
    """The same for every canvas that was drafted."""
    for seat, filled, edited in zip(*accepted, strict=True):
        close_after_step(rule, table, seat, outcome, filled=filled, edited=edited)
