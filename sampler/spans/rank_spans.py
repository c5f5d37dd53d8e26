"""`RankSpans`: any order, causal in rank (Eso-LM B): entries lie in the order of decoding.

The prompt takes the first ranks in natural order, a suffix the ones after it. Then per step the
tokens of the last step settle and `num_drafts` masks are drafted, each seeing the entries up to
its own. Which position comes at which rank is drawn at the start, from the request's own seed:
first a diffusion part in random order, several at a time, then the rest from left to right, one
by one. From: Sahoo et al. 2025, Esoteric Language Models, sections 3-4; arXiv 2506.01928. We
draw counts and order for each request by itself, so that a batch cannot change them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels import PURPOSE_ORDER
from sampler.border.request import Request
from sampler.spans.plan import Plan
from sampler.state.acceptance import Rule
from sampler.state.decoding import Mode
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule

# From: the authors' LogLinear noise, eps: t = 1 keeps this share unmasked.
_SCHEDULE_EPS = 1e-3
DEFAULT_STEPS = 128


@dataclass(frozen=True, slots=True)
class RankSchedule:
    """The order of the open positions, and how many are drafted in each step.

    positions: [n] by rank
    counts:    [steps], their sum is n
    """

    positions: IntArray
    counts: IntArray


def draw_schedule(
    open_positions: IntArray, *, alpha_0: float, num_steps: int, generator: np.random.Generator
) -> RankSchedule:
    """Draw counts and order as the paper's sampler does, for one sequence.

    With t falling from 1 to 0 in `num_steps` steps, each open position is decoded in the step
    from t to s with probability (alpha_s - alpha_t) / (1 - alpha_t), alpha_t = alpha_0 (1 - (1 -
    eps) t); steps that decode nothing are dropped. What is left goes into one last step when
    alpha_0 is 1, else left to right one by one.
    """
    total = open_positions.size
    counts: list[int] = []
    left = total
    for step in range(num_steps):
        t = 1 - step / num_steps
        s = t - 1 / num_steps
        alpha_t, alpha_s = (alpha_0 * (1 - (1 - _SCHEDULE_EPS) * time) for time in (t, s))
        count = int(generator.binomial(left, min(max((alpha_s - alpha_t) / (1 - alpha_t), 0), 1)))
        if count > 0:
            counts.append(count)
            left -= count
    if left > 0 and alpha_0 == 1:
        counts.append(left)
        left = 0
    positions = generator.permutation(open_positions)
    positions[total - left :] = np.sort(positions[total - left :])
    return RankSchedule(positions=positions, counts=np.array(counts + [1] * left, dtype=np.int64))


def strided_schedule(open_positions: IntArray, *, alpha_0: float, num_parts: int) -> RankSchedule:
    """The sub-context order: one position of every stretch at a time, then left to right.

    The positions are cut into `num_parts` stretches of equal length; the first share alpha_0 of
    each stretch is decoded in parallel, stretch by stretch at equal offsets.
    """
    stretches = np.array_split(open_positions, num_parts)
    length = max(stretch.size for stretch in stretches)
    rows = [
        np.array([stretch[i] for stretch in stretches if i < stretch.size]) for i in range(length)
    ]
    parallel = rows[: int(length * alpha_0)]
    rest = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *rows[len(parallel) :]]))
    return RankSchedule(
        positions=np.concatenate([*parallel, rest]).astype(np.int64),
        counts=np.array([row.size for row in parallel] + [1] * rest.size, dtype=np.int64),
    )


class RankSpans:
    """Spans of an any-order family that is causal in rank."""

    decides_by_position = False

    settled_speak_of_next = False
    drafts_speak_of_next = False

    def __init__(self, rule: FamilyRule) -> None:
        self.rule = rule
        self.suppresses_mask = rule.suppresses_mask
        self._counts: dict[int, list[int]] = {}

    def room(self, request: Request, *, block_length: int, context_length: int) -> int:  # noqa: ARG002
        """Prompt, answer and suffix."""
        return len(request.prompt) + request.params.max_tokens + len(request.suffix)

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:
        """Give the known tokens the first ranks, and open the first window of the answer."""
        assert table.order is not None, "an any-order family keeps an order"
        length, num_suffix = len(request.prompt), len(request.suffix)
        answer_stop = length + request.params.max_tokens
        known = length + num_suffix
        table.order[seat, :length] = np.arange(length)
        table.order[seat, length:known] = np.arange(answer_stop, answer_stop + num_suffix)
        table.tokens[seat, answer_stop : answer_stop + num_suffix] = request.suffix
        table.is_open[seat, length:answer_stop] = False
        table.final[seat] = table.canvas_stop[seat] = table.prompt_stop[seat] = known
        self.open_canvas(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Open the next window of the answer and draw its order."""
        known, window = int(table.final[seat]), int(table.block_length[seat])
        num_suffix = int(table.room[seat] - table.limit[seat])
        # Ranks of the answer follow the suffix; its windows are consecutive positions.
        start = known - num_suffix
        stop = min(start + window, int(table.limit[seat]))
        self.begin_canvas(table, seat, self._schedule(table, seat, np.arange(start, stop)))

    def _schedule(self, table: SequenceTable, seat: int, positions: IntArray) -> RankSchedule:
        """The order of a window: the published draw, or left to right where nothing else is asked.

        Autoregressive decoding is the order from left to right, one by one. An adaptive sequence
        queries masks from left to right unless it names alpha_0.
        """
        alpha_0 = float(table.alpha_0[seat])
        if table.mode[seat] == Mode.AR:
            alpha_0 = 0.0
        length = int(table.sub_context[seat])
        if length and alpha_0 > 0:
            num_parts = -(-positions.size // length)
            return strided_schedule(positions, alpha_0=alpha_0, num_parts=num_parts)
        return draw_schedule(
            positions,
            alpha_0=alpha_0,
            num_steps=int(table.steps_planned[seat]),
            generator=np.random.default_rng(
                [abs(int(table.seeds[seat])), PURPOSE_ORDER, int(positions[0])]
            ),
        )

    def begin_canvas(self, table: SequenceTable, seat: int, schedule: RankSchedule) -> None:
        """Open the positions of a schedule."""
        assert table.order is not None, "an any-order family keeps an order"
        start = int(table.final[seat])
        table.order[seat, start : start + schedule.positions.size] = schedule.positions
        table.is_open[seat, schedule.positions] = True
        table.canvas_stop[seat] = start + schedule.positions.size
        table.stage[seat] = Stage.DRAFT
        table.canvas_steps[seat] = 0
        self._counts[seat] = schedule.counts.tolist()
        self.next_count(table, seat)

    def next_count(self, table: SequenceTable, seat: int) -> None:
        """How many masks the next step drafts: the schedule's count, or the sequence's width.

        Where the balance chooses, it is one until a round begins (`begin_rounds`).
        """
        left = int(table.canvas_stop[seat] - table.final[seat])
        verifies = bool(table.mode[seat] == Mode.SPECULATIVE)
        follows = not verifies and table.rule[seat] == Rule.EVERYTHING
        chosen = 1 if table.is_auto[seat] else int(table.width[seat])
        wanted = self._counts[seat].pop(0) if follows and left else chosen
        # A checked proposal needs two entries; both must lie inside what the sequence may use.
        table.num_drafts[seat] = min(wanted, left)
        table.round_width[seat] = wanted if verifies and not table.is_auto[seat] else 0

    def starts_round(self, table: SequenceTable, seats: IntArray) -> NDArray[np.bool_]:
        """Which of the seats [n] verify drafts and are about to draft, their prompts settled."""
        starts: NDArray[np.bool_] = table.mode[seats] == Mode.SPECULATIVE
        starts &= table.stage[seats] == Stage.DRAFT
        starts &= table.settled[seats] >= table.prompt_stop[seats]
        return starts & (table.canvas_stop[seats] > table.final[seats])

    def begin_rounds(self, table: SequenceTable, seats: IntArray, widths: IntArray) -> None:
        """So many masks are drafted now and checked in the step after; width 0 accepts one."""
        left = table.canvas_stop[seats] - table.final[seats]
        table.num_drafts[seats] = np.minimum(np.maximum(widths, 1), left)
        table.round_width[seats] = np.where(widths > 0, table.num_drafts[seats], 0)

    def accept_ranks(self, table: SequenceTable, seat: int, count: int) -> None:
        """Put the accepted ones of the drafted ranks first; they are final."""
        assert table.order is not None, "an any-order family keeps an order"
        start = int(table.final[seat])
        drafted = table.order[seat, start : start + int(table.num_drafts[seat])].copy()
        is_open = table.is_open[seat, drafted]
        table.order[seat, start : start + drafted.size] = np.concatenate(
            (drafted[~is_open], drafted[is_open])
        )
        assert int((~is_open).sum()) == count, "what is accepted has a token"
        table.final[seat] += count
        self.next_count(table, seat)

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Never called: no settled row draws a token."""

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """The tokens of the last step settle, the next masks are drafted or proposals checked."""
        final = table.final[seats]
        verifies = table.stage[seats] == Stage.VERIFY
        count = table.num_drafts[seats]
        propose_stop = final + np.where(verifies, count, 0)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=propose_stop,
            draft_stop=propose_stop + count,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=np.zeros(seats.size, dtype=np.bool_),
            causal_drafts=np.ones(seats.size, dtype=np.bool_),
            draft_limit=table.canvas_stop[seats],
            checks=verifies,
        )

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Anywhere."""
        return min(int(table.settled[seat]) + rows, settle_stop)

    def settle_limits(self, table: SequenceTable, seats: IntArray, entries: IntArray) -> IntArray:  # noqa: ARG002
        """The entries of lower rank and the row's own."""
        return entries + 1

    def sharing_length(self, table: SequenceTable, seat: int) -> int:  # noqa: ARG002
        """An entry depends on nothing of higher rank."""
        return 1

    def shareable_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Tokens and positions of what is final, by rank."""
        return self._by_rank(table, seat, int(table.final[seat]))

    def keyed_text(self, table: SequenceTable, seat: int) -> NDArray[np.int32]:
        """Tokens and positions of what is settled, by rank."""
        return self._by_rank(table, seat, int(table.settled[seat]))

    def _by_rank(self, table: SequenceTable, seat: int, stop: int) -> NDArray[np.int32]:
        assert table.order is not None, "an any-order family keeps an order"
        positions = table.order[seat, :stop]
        return np.stack((table.tokens[seat, positions], positions), axis=1)
