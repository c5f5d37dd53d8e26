"""The table is the only writer of its columns; what its methods leave behind."""

import ast
from pathlib import Path

import numpy as np

from sampler.border.request import TokenKind
from sampler.state.decoding import resolve_decoding
from sampler.state.latent_table import LatentTable
from sampler.state.sequence_table import SequenceTable, Stage
from tests.tiny import CAUSAL_RULE, request

ROOT = Path(__file__).parents[3]
TABLES = {"table", "latents"}
IN_PLACE = {"at", "put", "copyto", "place", "putmask"}


def table_of(**options):
    table = SequenceTable(num_seats=3, max_context=64, page_size=4, has_order=False, **options)
    one = request("a", [5, 6, 7], max_tokens=12, frequency_penalty=0.5)
    seat = table.seat(one, resolve_decoding(one.params, CAUSAL_RULE), number=0, seed=1, room=15)
    return table, seat


def columns():
    table = SequenceTable(
        num_seats=1,
        max_context=8,
        page_size=4,
        has_order=True,
        latents=LatentTable(1, num_levels=8),
    )
    return set(vars(table)) | set(vars(table.latents))


def is_column(target, names):
    """Whether a target is `table.column`, or a part of it."""
    while isinstance(target, ast.Subscript):
        target = target.value
    if not isinstance(target, ast.Attribute) or target.attr not in names:
        return False
    owner = target.value
    return (owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")) in TABLES


def written(node, names):
    """Targets that a statement or a call of NumPy writes to."""
    if isinstance(node, ast.Assign):
        found = [part for target in node.targets for part in getattr(target, "elts", [target])]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        found = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        in_place = node.func.attr in IN_PLACE and ast.unparse(node.func).startswith("np.")
        found = node.args[:1] if in_place else []
        found += [keyword.value for keyword in node.keywords if keyword.arg == "out"]
        found += [node.func.value] if node.func.attr in {"fill", "sort", "put"} else []
    else:
        found = []
    return [target for target in found if is_column(target, names)]


def test_columns_are_written_in_the_wing_of_the_state_only():
    names = columns()
    writes = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "sampler").rglob("*.py"))
        if path.parent.name != "state"
        for node in ast.walk(ast.parse(path.read_text()))
        if written(node, names)
    ]
    assert writes == []


def test_such_writes_would_be_found():
    text = """
table.final[seat] += 1
self.table.tokens[seat, 1:2] = a
table.stage[seat], other = b
np.add.at(table.attempts, at, 1)
np.maximum(a, b, out=table.carry)
latents.progress[at] = t
"""
    lines = {node.lineno for node in ast.walk(ast.parse(text)) if written(node, columns())}
    assert lines == {2, 3, 4, 5, 6, 7}


def test_filling_again_replaces_token_kind_and_count():
    table, seat = table_of()
    table.open_positions(seat, slice(3, 7))
    seats, positions = np.full(2, seat), np.array([3, 5])
    table.fill(seats, positions, np.array([8, 8]), kind=TokenKind.DIFFUSION, confidence=0.5)
    table.fill(seats[:1], positions[:1], np.array([9]), kind=TokenKind.AR, confidence=1.0)
    assert table.tokens[seat, 3:6].tolist() == [9, 0, 8]
    assert table.is_open[seat, 3:7].tolist() == [False, True, False, True]
    assert table.notes[seat].token_counts == {8: 1, 9: 1}


def test_a_narrowed_canvas_loses_what_was_filled_behind_its_end():
    table, seat = table_of()
    table.open_positions(seat, slice(3, 9))
    table.begin_canvas(seat, 9)
    seats, positions = np.full(3, seat), np.array([3, 6, 8])
    table.fill(seats, positions, np.array([8, 8, 8]), kind=TokenKind.DIFFUSION, confidence=0.5)
    table.narrow(seat, 5)
    assert table.canvas_stop[seat] == 5
    assert table.is_open[seat, 3:9].tolist() == [False, True, False, False, False, False]
    assert table.notes[seat].token_counts == {8: 1}


def test_a_canvas_that_is_handed_to_ar_is_drawn_one_by_one():
    table, seat = table_of()
    table.open_positions(seat, slice(3, 9))
    table.begin_canvas(seat, 9)
    one = np.array([seat]), np.array([3]), np.array([8])
    table.fill(*one, kind=TokenKind.DIFFUSION, confidence=0.5)
    table.hand_to_ar(seat, 4)
    assert (table.final[seat], table.canvas_stop[seat], table.ar_until[seat]) == (4, 4, 9)
    assert table.stage[seat] == Stage.SETTLE
    table.check(seat)


def test_proposals_stand_in_no_answer_and_are_taken_back_with_the_step():
    table, seat = table_of()
    before = table.tokens[seat].copy()
    table.undo.begin()
    table.begin_step()
    table.propose_behind(seat, np.array([8, 9], dtype=np.int32), 0.0)
    assert table.canvas_stop[seat] == 5
    assert table.stage[seat] == Stage.VERIFY
    assert not table.notes[seat].token_counts
    table.undo.take_back()
    assert table.canvas_stop[seat] == 3
    assert table.stage[seat] == Stage.SETTLE
    assert table.tokens[seat].tolist() == before.tolist()


def test_a_schedule_is_read_step_by_step():
    table = SequenceTable(num_seats=1, max_context=16, page_size=4, has_order=True)
    table.set_schedule(0, np.array([3, 1, 2]))
    table.set_schedule(0, np.array([2, 1]))
    assert [table.next_scheduled(0) for _ in range(3)] == [2, 1, 0]
