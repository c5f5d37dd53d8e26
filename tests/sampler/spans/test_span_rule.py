"""A span rule is all that differs between families: one written here runs through the engine."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sampler.border.request import TokenKind
from sampler.engine_process import warm_up
from sampler.spans.drawn_tokens import draft_rows, fill
from sampler.spans.plan import Plan
from sampler.spans.span_rule import SpanRule
from sampler.spans.step_outcome import StepOutcome
from tests.sampler.test_canvas_engine import BLOCK, MASK
from tests.tiny import hash_engine, request, run_all
from weights.families import Grid, Settle, Speaks

ROOT = Path(__file__).parents[3]
# What it is told of the family does not name a rule of ours: blocks that settle causally.
FAMILY = replace(BLOCK, settle=Settle.CAUSAL, settled_speaks_of=Speaks.NOTHING, grid=Grid.NONE)
PROMPTS = {"a": [5, 6, 7], "b": list(range(3, 30)), "c": [9], "d": [5, 6, 7, 8, 9, 10, 11]}


class PairSpans(SpanRule):
    """Two positions at a time, both drafted by one forward and both accepted."""

    suppresses_mask = True

    def open_sequence(self, table, seat, request):  # noqa: ARG002
        self._open_pair(table, seat)

    def spans(self, table, seats):
        final, stop = table.final[seats], table.canvas_stop[seats]
        no = np.zeros(seats.size, dtype=np.bool_)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=final,
            draft_stop=stop,
            is_cut=no.copy(),
            scores_settled=no,
            causal_drafts=no,
            draft_limit=stop,
            checks=no,
        )

    def after_step(self, rows, step, table, requests):  # noqa: ARG002
        outcome = StepOutcome()
        _, rows = draft_rows(rows, step, table)
        fill(rows, step, table, outcome, kind=TokenKind.DIFFUSION, is_draft=True)
        seats = np.unique(step.scored.seats[rows])
        table.finish(seats, table.canvas_stop[seats])
        for seat in seats[table.final[seats] < table.limit[seats]].tolist():
            self._open_pair(table, seat)
        outcome.num_closed = seats.size
        outcome.moved = seats.tolist()
        return outcome

    def _open_pair(self, table, seat):
        first = int(table.final[seat])
        stop = min(first + 2, int(table.limit[seat]))
        table.open_positions(seat, slice(first, stop))
        table.open_canvas(seat, stop, part_start=first, part_open=stop - first)


@pytest.fixture
def pair_engine(monkeypatch):
    monkeypatch.setattr("sampler.engine.span_rule_for", lambda _: PairSpans())
    return lambda **options: hash_engine(FAMILY, eos=(), **options)


def requests(**fields):
    fields = {"max_tokens": 11, "temperature": 1.0, "seed": 3, **fields}
    return [request(name, prompt, **fields) for name, prompt in PROMPTS.items()]


@pytest.mark.parametrize("options", [{}, {"num_pages": 18}, {"max_rows": 12}, {"max_sequences": 2}])
def test_a_rule_written_in_a_test_runs_through_the_whole_engine(pair_engine, options):
    alone = {one.id: run_all(pair_engine(), one)[one.id][0] for one in requests()}
    engine = pair_engine(**options)
    answers = run_all(engine, *requests())
    assert {name: tokens for name, (tokens, _) in answers.items()} == alone
    assert all(len(tokens) == 11 and MASK not in tokens for tokens in alone.values())
    assert engine.metrics.canvases_closed == len(PROMPTS) * 6
    assert engine.metrics.tokens_diffusion == len(PROMPTS) * 11


def test_its_pages_are_found_again(pair_engine):
    engine = pair_engine()
    first = run_all(engine, *requests())
    again = run_all(engine, *requests())
    assert engine.scheduler.prefix_hits > 0
    assert {name: got for name, (got, _) in again.items()} == {
        name: got for name, (got, _) in first.items()
    }


def test_its_clients_get_what_they_ask_for(pair_engine):
    decoding = {"trace": True, "frames": True}
    one = request("x", [5, 6], max_tokens=5, decoding=decoding, logprobs=1, frequency_penalty=0.5)
    tokens, deltas = run_all(pair_engine(), one)["x"]
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == tokens
    assert [entry.step for delta in deltas for entry in delta.trace] == [0, 0, 1, 1, 2]
    assert all(delta.frame is not None for delta in deltas)


def test_an_engine_over_it_warms_up(pair_engine):
    engine = pair_engine(max_rows=256)
    warm_up(engine)
    assert not engine.has_work
    assert engine.metrics.steps == 0


def test_nobody_outside_asks_which_rule_it_is():
    asking = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "sampler").rglob("*.py"))
        if path.parent.name != "spans"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in {"isinstance", "issubclass", "type"}
        and any("Spans" in ast.unparse(part) or ".rule" in ast.unparse(part) for part in node.args)
    ]
    assert asking == []
