"""`StepInput`: a plan as tensors on the device, and which of its rows are scored for what.

Shapes: S spans, T rows, R scored rows.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import PagedBatch
from sampler.plan import Plan
from sampler.sequence_table import IntArray, SequenceTable
from sampler.span_rule import SpanRule
from weights.network import NetworkInput


class RowKind(IntEnum):
    """What a row is run for."""

    SETTLE = 0
    PROPOSE = 1
    DRAFT = 2


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows whose scores are wanted, on the host, in the order of the plan. All are [R].

    rows:      their index among the T rows
    spans:     index of their span in the plan
    seats:     seat of their sequence
    positions: the position that their scores speak of
    kinds:     `RowKind` of each
    is_given:  the position's token is known: only its log-probability is wanted (a prompt's
               token, when the request asks for them)
    """

    rows: IntArray
    spans: IntArray
    seats: IntArray
    positions: IntArray
    kinds: NDArray[np.int8]
    is_given: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepInput:
    """What the runner needs for one step."""

    network: NetworkInput
    scored: ScoredRows


@dataclass(frozen=True, slots=True)
class _Rows:
    """All rows of a plan, on the host; every array is [T]."""

    span: IntArray
    seat: IntArray
    entry: IntArray
    kind: NDArray[np.int8]


def build_step_input(
    plan: Plan,
    table: SequenceTable,
    rule: SpanRule,
    *,
    mask_token_id: int,
    wants_prompt: NDArray[np.bool_] | None,
    device: torch.device,
) -> StepInput:
    """Lay out the rows of a plan.

    mask_token_id: what a row of an open position holds; unused by models without drafts
    wants_prompt:  [seats] bool, sequences whose prompt tokens are to be scored, or None
    """
    rows = _lay_out(plan)
    position = rows.entry if table.order is None else table.order[rows.seat, rows.entry]
    position = position.astype(np.int64, copy=False)
    is_open = table.is_open[rows.seat, position]
    token_ids = np.where(is_open, mask_token_id, table.tokens[rows.seat, position])
    page_size = table.page_size
    pages = table.pages[plan.seats, : -(-int(plan.draft_stop.max()) // page_size)]
    page = pages[rows.span, rows.entry // page_size].astype(np.int64)
    limits = rule.limits(
        rows.entry,
        is_settling=rows.kind != RowKind.DRAFT,
        causal=plan.causal_drafts[rows.span],
        draft_stop=plan.draft_stop[rows.span],
    )
    counts = plan.draft_stop - plan.first
    starts = np.zeros(plan.num_spans + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    scored = _choose_scored(plan, rows, position, is_open, table=table, wants_prompt=wants_prompt)
    batch = PagedBatch(
        span_starts=torch.from_numpy(starts).to(device),
        page_table=torch.from_numpy(pages).to(device),
        slots=torch.from_numpy(page * page_size + rows.entry % page_size).to(device),
        limits=torch.from_numpy(limits.astype(np.int32)).to(device),
        max_span=int(counts.max()),
        max_limit=int(limits.max()),
    )
    network = NetworkInput(
        token_ids=torch.from_numpy(token_ids.astype(np.int64)).to(device),
        positions=torch.from_numpy(position).to(device),
        score_rows=torch.from_numpy(scored.rows).to(device),
        batch=batch,
        draft_rows=(
            torch.from_numpy(rows.kind == RowKind.DRAFT).to(device)
            if (plan.draft_stop > plan.propose_stop).any()
            else None
        ),
    )
    return StepInput(network=network, scored=scored)


def _lay_out(plan: Plan) -> _Rows:
    counts = plan.draft_stop - plan.first
    span = np.repeat(np.arange(plan.num_spans), counts)
    before = np.cumsum(counts) - counts
    entry = np.arange(span.size) + (plan.first - before)[span]
    kind = (entry >= plan.settle_stop[span]).astype(np.int8)
    kind += entry >= plan.propose_stop[span]
    return _Rows(span=span, seat=plan.seats[span], entry=entry, kind=kind)


def _choose_scored(
    plan: Plan,
    rows: _Rows,
    position: IntArray,
    is_open: NDArray[np.bool_],
    *,
    table: SequenceTable,
    wants_prompt: NDArray[np.bool_] | None,
) -> ScoredRows:
    last_settled = rows.entry == plan.settle_stop[rows.span] - 1
    draws = last_settled & (plan.scores_settled & ~plan.is_cut)[rows.span]
    draws |= (rows.kind == RowKind.PROPOSE) | ((rows.kind == RowKind.DRAFT) & is_open)
    chosen = draws
    if wants_prompt is not None:
        in_prompt = position + 1 < table.prompt_length[rows.seat]
        chosen = draws | (wants_prompt[rows.seat] & in_prompt & (rows.kind == RowKind.SETTLE))
    index = np.flatnonzero(chosen)
    kinds = rows.kind[index]
    # Settled rows and proposals of these models speak of the next position, drafts of their own.
    spoken_of = position[index] + (kinds != RowKind.DRAFT)
    return ScoredRows(
        rows=index,
        spans=rows.span[index],
        seats=rows.seat[index],
        positions=spoken_of,
        kinds=kinds,
        is_given=~draws[index],
    )
