"""`StepInput`: a plan as tensors on the device, and which of its rows are scored for what.

Shapes: S spans, T rows, R scored rows.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import PagedBatch
from sampler.spans.latent_spans import LatentSpans
from sampler.spans.plan import Plan
from sampler.spans.span_rule import SpanRule
from sampler.state.decoding import Mode
from sampler.state.sequence_table import IntArray, SequenceTable
from sampler.step.latent_rows import LaidOut, latent_rows
from sampler.step.latent_store import LatentStep
from sampler.step.ratio_step import RatioStep
from sampler.step.step_buffer import StepBuffer
from weights.network.interface import NetworkInput


class RowKind(IntEnum):
    """What a row is run for."""

    SETTLE = 0
    PROPOSE = 1
    DRAFT = 2
    CHECK = 3


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows whose scores are wanted, on the host, in the order of the plan. All are [R].

    rows:      their index among the T rows
    spans:     index of their span in the plan
    seats:     seat of their sequence
    positions: the position that their scores speak of
    ranks:     the rank of that position
    kinds:     `RowKind` of each
    is_given:  the position's token is known: only its log-probability is wanted (a prompt's
               token, when the request asks for them)
    branches:  accepted proposals that the row's branch begins behind, -1 outside branches; None
               when there are none
    """

    rows: IntArray
    spans: IntArray
    seats: IntArray
    positions: IntArray
    ranks: IntArray
    kinds: NDArray[np.int8]
    is_given: NDArray[np.bool_]
    branches: IntArray | None = None


@dataclass(frozen=True, slots=True)
class StepInput:
    """What the runner needs for one step.

    latents: how the latents of this step come about; None when no row's latent is below t = 1
    ratio:   what is drafted and verified by ratio, or None
    """

    network: NetworkInput
    scored: ScoredRows
    latents: LatentStep | None = None
    ratio: RatioStep | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """All rows of a plan, on the host; every array is [T].

    behind: how far an entry lies behind that of its rank: the masks that check proposals, and
            branches of drafts, lie behind all of these
    branch_start: the entry where the row's branch begins; -1 outside branches
    """

    span: IntArray
    seat: IntArray
    entry: IntArray
    kind: NDArray[np.int8]
    behind: IntArray
    branch_start: IntArray | None = None


def build_step_input(
    plan: Plan,
    table: SequenceTable,
    rule: SpanRule,
    *,
    mask_token_id: int,
    wants_prompt: NDArray[np.bool_] | None,
    buffer: StepBuffer,
) -> StepInput:
    """Lay out the rows of a plan.

    mask_token_id: what a row of an open position holds; unused by models without drafts
    wants_prompt:  [seats] bool, sequences whose prompt tokens are to be scored, or None
    buffer:        takes the tensors to the device; to be flushed before they are read
    """
    rows = _lay_out(plan)
    # A branch may reach behind the last position there is; nobody reads what it says there.
    rank = np.minimum(rows.entry - rows.behind, table.max_context - 1)
    position = rank if table.order is None else table.order[rows.seat, rank]
    position = position.astype(np.int64, copy=False)
    masked = table.is_open[rows.seat, position] | (rows.kind == RowKind.CHECK)
    token_ids = np.where(masked, mask_token_id, table.tokens[rows.seat, position])
    page_size = table.page_size
    limits = _limits(plan, rows, table, rule)
    num_entries = max(int(plan.draft_stop.max()), int(limits.max()))
    window_starts, window_stops = _windows(plan, rows, buffer)
    pages = table.pages[plan.seats, : -(-num_entries // page_size)]
    page = pages[rows.span, rows.entry // page_size].astype(np.int64)
    counts = plan.draft_stop - plan.first
    starts = np.zeros(plan.num_spans + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    scored = _choose_scored(plan, rows, position, table, rule, wants_prompt=wants_prompt)
    latents, latent_step = None, None
    if isinstance(rule, LatentSpans):
        latents, latent_step = latent_rows(
            LaidOut(rows.seat, position),
            rows.kind == RowKind.DRAFT,
            _offsets(rows, table),
            scored.rows,
            LaidOut(scored.seats, scored.positions),
            table,
            num_levels=rule.latent.num_levels,
            buffer=buffer,
        )
    batch = PagedBatch(
        span_starts=buffer.place(starts),
        page_table=buffer.place(pages),
        slots=buffer.place(page * page_size + rows.entry % page_size),
        limits=buffer.place(limits.astype(np.int32)),
        max_span=int(counts.max()),
        max_limit=num_entries,
        window_starts=window_starts,
        window_stops=window_stops,
    )
    network = NetworkInput(
        token_ids=buffer.place(token_ids.astype(np.int64)),
        positions=buffer.place(position),
        score_rows=buffer.place(scored.rows),
        batch=batch,
        draft_rows=_self_drafted(plan, rows, table, buffer),
        latents=latents,
    )
    return StepInput(network=network, scored=scored, latents=latent_step)


def _lay_out(plan: Plan) -> _Rows:
    counts = plan.draft_stop - plan.first
    span = np.repeat(np.arange(plan.num_spans), counts)
    before = np.cumsum(counts) - counts
    entry = np.arange(span.size) + (plan.first - before)[span]
    kind = (entry >= plan.settle_stop[span]).astype(np.int8)
    kind += entry >= plan.propose_stop[span]
    if plan.checks.any():
        kind += (kind == RowKind.DRAFT) & plan.checks[span]
    proposals = (plan.propose_stop - plan.settle_stop)[span]
    behind = np.where(kind == RowKind.CHECK, proposals, 0)
    branch_start = None
    if plan.branch_width is not None and plan.branch_width.any():
        branch_start, behind = _branches(plan, span, entry, kind)
    return _Rows(span, plan.seats[span], entry, kind, behind, branch_start)


def _branches(
    plan: Plan, span: IntArray, entry: IntArray, kind: NDArray[np.int8]
) -> tuple[IntArray, IntArray]:
    """Where each row's branch begins (-1 outside branches), and how far it lies behind."""
    assert plan.branch_width is not None, "only called for a plan with branches"
    assert plan.branches is not None, "branches have a number"
    width = np.maximum(plan.branch_width, 1)[span]
    number = (entry - plan.propose_stop[span]) // width
    start = plan.propose_stop[span] + number * width
    offered = (plan.propose_stop - plan.settle_stop)[span]
    # One branch alone is the one after full acceptance.
    accepted = np.where(plan.branches[span] > 1, number, offered)
    is_branch = (kind == RowKind.DRAFT) & (plan.branch_width[span] > 0)
    behind = start - (plan.settle_stop[span] + accepted)
    return np.where(is_branch, start, -1), np.where(is_branch, behind, 0)


def _limits(plan: Plan, rows: _Rows, table: SequenceTable, rule: SpanRule) -> IntArray:
    """How many entries each row [T] sees; proposals are causal in every family."""
    limits = rule.settle_limits(table, rows.seat, rows.entry)
    limits = np.where(rows.kind == RowKind.PROPOSE, rows.entry + 1, limits)
    limits = np.where(rows.kind == RowKind.CHECK, rows.entry - rows.behind, limits)
    of_drafts = np.where(plan.causal_drafts[rows.span], rows.entry + 1, plan.draft_limit[rows.span])
    if rows.branch_start is not None:
        is_branch = rows.branch_start >= 0
        of_drafts = np.where(is_branch, rows.branch_start - rows.behind, of_drafts)
    return np.where(rows.kind == RowKind.DRAFT, of_drafts, limits)


def _offsets(rows: _Rows, table: SequenceTable) -> IntArray:
    """How far each row [T] stands from the first one of its canvas or branch."""
    start = table.final[rows.seat]
    if rows.branch_start is not None:
        start = np.where(rows.branch_start >= 0, rows.branch_start, start)
    offsets: IntArray = np.maximum(rows.entry - start, 0)
    return offsets


def _windows(
    plan: Plan, rows: _Rows, buffer: StepBuffer
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The extra interval [T] that rows see: a checking mask its own entry, a branch itself."""
    is_check = rows.kind == RowKind.CHECK
    if rows.branch_start is not None:
        assert plan.branch_width is not None, "branches have a width"
        width = np.where(rows.branch_start >= 0, plan.branch_width[rows.span], 0)
        start = np.maximum(rows.branch_start, 0).astype(np.int32)
        return buffer.place(start), buffer.place(start + width.astype(np.int32))
    if not is_check.any():
        return None, None
    start = np.where(is_check, rows.entry, 0).astype(np.int32)
    return (
        buffer.place(start),
        buffer.place(start + is_check.astype(np.int32)),
    )


def _self_drafted(
    plan: Plan, rows: _Rows, table: SequenceTable, buffer: StepBuffer
) -> torch.Tensor | None:
    """Rows [T] that draft what the same network will verify, or None when there are none."""
    if not (plan.draft_stop > plan.propose_stop).any():
        return None
    verified = (table.mode[rows.seat] == Mode.SPECULATIVE) & (table.round_width[rows.seat] > 0)
    drafted = (rows.kind == RowKind.DRAFT) & verified
    return buffer.place(drafted) if drafted.any() else None


def _choose_scored(
    plan: Plan,
    rows: _Rows,
    position: IntArray,
    table: SequenceTable,
    rule: SpanRule,
    *,
    wants_prompt: NDArray[np.bool_] | None,
) -> ScoredRows:
    is_draft = rows.kind >= RowKind.DRAFT
    shift = np.where(is_draft, rule.drafts_speak_of_next, rule.settled_speak_of_next)
    spoken_of = position + shift
    last_settled = rows.entry == plan.settle_stop[rows.span] - 1
    draws = last_settled & (plan.scores_settled & ~plan.is_cut)[rows.span]
    if rule.settled_speak_of_next:
        draws |= rows.kind == RowKind.PROPOSE
    draws |= rows.kind == RowKind.CHECK
    if is_draft.any():
        wanted = _wants_draft(rows, spoken_of, table)
        if rows.branch_start is not None:
            # The last position is drawn by the row before it: it needs no draft.
            in_answer = spoken_of < table.limit[rows.seat] - 1
            wanted = np.where(rows.branch_start >= 0, in_answer, wanted)
        draws |= (rows.kind == RowKind.DRAFT) & wanted
    chosen = draws
    if wants_prompt is not None:
        in_prompt = spoken_of < table.prompt_length[rows.seat]
        chosen = draws | (wants_prompt[rows.seat] & in_prompt & (rows.kind == RowKind.SETTLE))
    index = np.flatnonzero(chosen)
    branches = None
    if rows.branch_start is not None:
        accepted = rows.branch_start - rows.behind - plan.settle_stop[rows.span]
        branches = np.where(rows.branch_start >= 0, accepted, -1)[index]
    return ScoredRows(
        rows=index,
        spans=rows.span[index],
        seats=rows.seat[index],
        positions=spoken_of[index],
        ranks=(rows.entry - rows.behind + shift)[index],
        kinds=rows.kind[index],
        is_given=~draws[index],
        branches=branches,
    )


def _wants_draft(rows: _Rows, spoken_of: IntArray, table: SequenceTable) -> NDArray[np.bool_]:
    """Drafts whose position may change now: open or editable, in the part that is decided."""
    columns = np.minimum(spoken_of, table.is_open.shape[1] - 1)
    changes = table.is_open[rows.seat, columns]
    edits = table.edit_confidence[rows.seat] <= 1
    if edits.any():
        changes = changes | (edits & ~table.is_fixed[rows.seat, columns])
    if table.order is not None:
        return changes
    part = table.part_start[rows.seat]
    inside = (spoken_of >= part) & (spoken_of < part + table.sub_block_length[rows.seat])
    whole = table.mode[rows.seat] == Mode.SPECULATIVE
    wanted: NDArray[np.bool_] = changes & (inside | whole)
    return wanted & (spoken_of < table.canvas_stop[rows.seat])
