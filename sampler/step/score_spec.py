"""How each scored row is to be scored: from tables and requests to a `ScoreSpec`."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels import PURPOSE_DRAFT, PURPOSE_TARGET, AllowedTokens, ScoreSpec, SparseAdjust
from sampler.border.request import SamplingParams, has_penalties
from sampler.seats.constraint import Constraint
from sampler.seats.seat_record import SeatRecord
from sampler.state.acceptance import Rule
from sampler.state.decoding import Mode
from sampler.state.sequence_table import SequenceTable
from sampler.step.ratio_acceptance import drafts_by_ratio
from sampler.step.step_buffer import StepBuffer
from sampler.step.step_input import RowKind, ScoredRows

_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What scoring knows of the token ids of a model.

    mask_id:        the mask token, which never becomes part of an answer, or None
    mask_is_hidden: the mask token counts in no probability; otherwise it does, and a draft that
                    draws it stays open
    """

    size: int
    eos_ids: frozenset[int]
    mask_id: int | None = None
    mask_is_hidden: bool = False

    @property
    def hidden_ids(self) -> tuple[int, ...]:
        """Ids that count in no probability."""
        return () if self.mask_id is None or not self.mask_is_hidden else (self.mask_id,)


def build_score_spec(
    scored: ScoredRows,
    table: SequenceTable,
    records: list[SeatRecord | None],
    vocabulary: Vocabulary,
    *,
    buffer: StepBuffer,
) -> ScoreSpec:
    """Gather what `score_rows` needs for the R scored rows."""
    seats, positions = scored.seats, scored.positions
    # Whatever a draft is drawn from, verifying it by ratio gives the target's distribution: such
    # drafts go without penalties, bias and allowed tokens.
    by_ratio = drafts_by_ratio(scored, table)
    special = np.flatnonzero(table.is_special[seats] & ~by_ratio)
    chosen = _special_records(special, seats, records)
    # Drafts that coupled draws will verify are drawn with the noise of the verifying draw, which
    # makes the two agree as often as their distributions do. A position that is drafted once, in an
    # order fixed beforehand, needs no other noise than the target's either.
    is_draft = scored.kinds == RowKind.DRAFT
    is_draft &= (table.mode[seats] != Mode.SPECULATIVE) & (table.rule[seats] != Rule.EVERYTHING)
    is_draft |= by_ratio
    columns = np.minimum(positions, table.attempts.shape[1] - 1)
    attempts = np.where(is_draft, table.attempts[seats, columns], 0)
    purposes = np.where(is_draft, PURPOSE_DRAFT, PURPOSE_TARGET)
    top_k, top_p, min_p = table.top_k[seats], table.top_p[seats], table.min_p[seats]
    is_wide = (top_k > 0) | (top_p < 1) | (min_p > 0)
    is_wide[[row for row, record in chosen if _num_top(record.request.params)]] = True

    tensor = buffer.place
    return ScoreSpec(
        temperature=tensor(table.temperature[seats]),
        seeds=tensor(table.seeds[seats]),
        positions=tensor(positions),
        purposes=tensor(purposes.astype(np.int32)),
        attempts=tensor(attempts.astype(np.int32)),
        top_k=tensor(top_k) if top_k.any() else None,
        top_p=tensor(top_p) if (top_p < 1).any() else None,
        min_p=tensor(min_p) if min_p.any() else None,
        adjust=_adjust(chosen, scored, table, vocabulary, buffer),
        allowed=_allowed(chosen, scored, table, vocabulary, buffer) if chosen else None,
        suppressed=vocabulary.hidden_ids,
        num_top=max((_num_top(r.request.params) for _, r in chosen), default=0),
        given=tensor(_given(scored, table)) if scored.is_given.any() else None,
        wide_rows=tensor(np.flatnonzero(is_wide)) if is_wide.any() else None,
    )


def _special_records(
    special: NDArray[np.intp], seats: NDArray[np.int64], records: list[SeatRecord | None]
) -> list[tuple[int, SeatRecord]]:
    chosen = []
    for row in special.tolist():
        record = records[seats[row]]
        assert record is not None, "a scored row has a sequence"
        chosen.append((row, record))
    return chosen


def _num_top(params: SamplingParams) -> int:
    return max(params.logprobs or 0, params.prompt_logprobs or 0)


def _given(scored: ScoredRows, table: SequenceTable) -> NDArray[np.int64]:
    columns = np.minimum(scored.positions, table.tokens.shape[1] - 1)
    known = table.tokens[scored.seats, columns]
    return np.where(scored.is_given, known, 0).astype(np.int64)


def _adjust(
    chosen: list[tuple[int, SeatRecord]],
    scored: ScoredRows,
    table: SequenceTable,
    vocabulary: Vocabulary,
    buffer: StepBuffer,
) -> SparseAdjust | None:
    """Penalties, logit bias, forbidden stop and mask tokens, as sparse lists per row."""
    entries: dict[int, dict[int, tuple[float, float]]] = {}
    seats = scored.seats
    for row, record in chosen:
        if not scored.is_given[row]:
            entries[row] = _entries(record, _proposed_before(row, scored, table))
            if scored.positions[row] < table.min_length[scored.seats[row]]:
                for token_id in record.stop_ids | vocabulary.eos_ids:
                    entries[row][token_id] = (1.0, float("-inf"))
    mask_id = vocabulary.mask_id
    if mask_id is not None and not vocabulary.mask_is_hidden:
        # A draft that nothing verifies after a round of width 0 is the token itself.
        single = (table.mode[seats] == Mode.SPECULATIVE) & (table.round_width[seats] == 0)
        forbids = (scored.kinds != RowKind.DRAFT) | single | table.draws_mask[seats]
        for row in np.flatnonzero(forbids & ~scored.is_given).tolist():
            entries.setdefault(row, {})[mask_id] = (1.0, float("-inf"))
    return _packed(entries, scored.rows.size, buffer) if any(entries.values()) else None


def _packed(
    entries: dict[int, dict[int, tuple[float, float]]], num_rows: int, buffer: StepBuffer
) -> SparseAdjust:
    counts = np.zeros(num_rows, dtype=np.int64)
    ids: list[int] = []
    pairs: list[tuple[float, float]] = []
    for row in sorted(entries):
        counts[row] = len(entries[row])
        ids.extend(entries[row])
        pairs.extend(entries[row].values())
    starts = np.zeros(num_rows + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    both = np.array(pairs, dtype=np.float32)
    return SparseAdjust(
        row_starts=buffer.place(starts),
        token_ids=buffer.place(np.array(ids, dtype=np.int32)),
        penalties=buffer.place(both[:, 0]),
        values=buffer.place(both[:, 1]),
    )


def _proposed_before(row: int, scored: ScoredRows, table: SequenceTable) -> list[int]:
    """Proposals between what is final and the position that a verifying row speaks of."""
    if scored.kinds[row] not in (RowKind.PROPOSE, RowKind.CHECK):
        return []
    seat = scored.seats[row]
    ranks = np.arange(table.final[seat], scored.ranks[row])
    positions = ranks if table.order is None else table.order[seat, ranks]
    proposed: list[int] = table.tokens[seat, positions].tolist()
    return proposed


def _entries(record: SeatRecord, proposed: list[int]) -> dict[int, tuple[float, float]]:
    """(repetition penalty, added value) of every logit that the request changes."""
    params = record.request.params
    entries = {token_id: (1.0, value) for token_id, value in params.logit_bias}
    if not has_penalties(params):
        return entries
    counts = record.token_counts + Counter(proposed)
    repeated: set[int] = set()
    if params.repetition_penalty != 1.0:
        repeated = set(record.request.prompt) | set(counts)
    for token_id in repeated | set(counts):
        count = counts[token_id]
        _, value = entries.get(token_id, (1.0, 0.0))
        value -= params.presence_penalty * (count > 0) + params.frequency_penalty * count
        entries[token_id] = (params.repetition_penalty if token_id in repeated else 1.0, value)
    return entries


def _allowed(
    chosen: list[tuple[int, SeatRecord]],
    scored: ScoredRows,
    table: SequenceTable,
    vocabulary: Vocabulary,
    buffer: StepBuffer,
) -> AllowedTokens | None:
    """Bitmasks of the rows that may draw some tokens only."""
    rows = np.full(scored.rows.size, -1, dtype=np.int32)
    masks: list[NDArray[np.int32]] = []
    by_seat: dict[int, tuple[SeatRecord, list[int]]] = {}
    for row, record in chosen:
        if not scored.is_given[row]:
            by_seat.setdefault(int(scored.seats[row]), (record, []))[1].append(row)
    for seat, (record, own) in by_seat.items():
        for row, mask in _masks(seat, own, record, scored, table, vocabulary):
            rows[row] = len(masks)
            masks.append(mask)
    if not masks:
        return None
    return AllowedTokens(
        bitmask=buffer.place(np.stack(masks)),
        rows=buffer.place(rows),
    )


def _masks(
    seat: int,
    rows: list[int],
    record: SeatRecord,
    scored: ScoredRows,
    table: SequenceTable,
    vocabulary: Vocabulary,
) -> list[tuple[int, NDArray[np.int32]]]:
    """(row, allowed tokens) of one sequence, from its list of allowed ids and its grammar."""
    listed = record.request.params.allowed_token_ids
    masks: dict[int, NDArray[np.int32]] = {}
    if listed is not None:
        own = bitmask(listed, vocabulary.size)
        masks = dict.fromkeys(rows, own)
    if record.constraint is not None:
        for row, mask in _grammar_masks(seat, rows, record.constraint, scored, table):
            masks[row] = mask & masks[row] if row in masks else mask
    return list(masks.items())


def _grammar_masks(
    seat: int, rows: list[int], constraint: Constraint, scored: ScoredRows, table: SequenceTable
) -> list[tuple[int, NDArray[np.int32]]]:
    """What the grammar allows at the frontier, and behind each proposal that it allows."""
    ordered = sorted(rows, key=lambda row: int(scored.positions[row]))
    proposes = [row for row in ordered if scored.kinds[row] != RowKind.DRAFT]
    if proposes:
        start = int(scored.positions[proposes[0]])
        proposed = table.tokens[seat, start : start + len(proposes) - 1].tolist()
        return list(zip(proposes, constraint.masks_along(proposed), strict=False))
    frontier = next((row for row in ordered if table.is_open[seat, scored.positions[row]]), None)
    return [] if frontier is None else [(frontier, constraint.mask())]


def bitmask(token_ids: tuple[int, ...], vocabulary_size: int) -> NDArray[np.int32]:
    """A set of token ids as bits [ceil(V / 32)] int32: bit j of word w is token 32 w + j."""
    ids = np.asarray(token_ids, dtype=np.int64)
    words = np.zeros(-(-vocabulary_size // _WORD_BITS), dtype=np.uint32)
    bits = np.left_shift(np.uint32(1), (ids % _WORD_BITS).astype(np.uint32))
    np.bitwise_or.at(words, ids // _WORD_BITS, bits)
    return words.view(np.int32)
