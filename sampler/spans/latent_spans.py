"""`LatentSpans`: left-to-right settling with a canvas of latents behind it (Evo, our reading).

Settled rows are causal and exact. In diffusion mode the canvas slides: a step settles what became
final, and runs a latent row for every position of the canvas, which sees the text and the canvas.

In speculative mode the canvas only drafts, and the base's own rows verify, in one forward: a span
is the last final token, the proposals of the step before, and branches of latent rows. The branch
for a accepted proposals begins where the text would go on then: it sees the settled text, those
a proposals, and itself (a window). Whatever number is accepted, the drafts that follow it are
there. From: TiDAR, arXiv 2511.08923 ("think in diffusion, talk in AR"); branches after full
acceptance only, or in steps of their own, are ours.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sampler.balance.balance import branch_costs
from sampler.border.request import DecodingMode, DecodingParams, Request, TokenKind
from sampler.spans.drawn_tokens import fill, verify
from sampler.spans.latent_advance import evolve, follow_branch, slide
from sampler.spans.latent_moves import Information
from sampler.spans.plan import Plan
from sampler.spans.scored import RowKind, StepScores
from sampler.spans.span_rule import CausalSpans, WarmUpShape, follow_causal
from sampler.spans.step_outcome import SeatedRequests, StepOutcome
from sampler.state.decoding import Mode
from sampler.state.latent_knobs import Branches
from sampler.state.latent_table import LatentTable
from sampler.state.sequence_table import IntArray, SequenceTable
from weights.families import FamilyRule, Speaks

# Requests at a time, prompt tokens and width of drafts of what warming up runs; tokens of each.
_WARM_UP_SHAPES = ((1, 32, 3), (1, 1, 2), (1, 8, 5), (4, 4, 3), (16, 4, 2), (1, 16, 8))
_WARM_UP_TOKENS = 12


class LatentSpans(CausalSpans):
    """Spans of a family with latent canvases; what settles is as in AR."""

    def __init__(self, rule: FamilyRule) -> None:
        assert rule.latent is not None, "a family without latents has other spans"
        self.rule = rule
        self.latent = rule.latent
        self.information = Information(rule.latent.calibration)
        self.drafts_speak_of_next = rule.draft_speaks_of is Speaks.NEXT
        self.round_costs = branch_costs()

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:  # noqa: ARG002
        """Open the first canvas of a diffusion answer."""
        if table.mode[seat] == Mode.DIFFUSION:
            self.open_canvas(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Widen the canvas to its width; what joins it begins as noise."""
        assert table.latents is not None, "a latent family has a table of latents"
        first = int(table.canvas_stop[seat])
        stop = min(int(table.final[seat] + table.width_now[seat]), int(table.limit[seat]))
        if stop > first:
            table.open_positions(seat, slice(first, stop))
            table.latents.open(seat, first, stop)
        table.slide_canvas(seat, max(first, stop))

    def starts_round(self, table: SequenceTable, seats: IntArray) -> NDArray[np.bool_]:
        """Which of the seats [n] verify drafts: every step past the prompt is a round."""
        final = table.final[seats]
        starts: NDArray[np.bool_] = table.mode[seats] == Mode.SPECULATIVE
        starts &= table.settled[seats] == final - 1
        return starts & (final >= table.prompt_length[seats])

    def begin_rounds(self, table: SequenceTable, seats: IntArray, widths: IntArray) -> None:
        """So many tokens are drafted by each branch of this step; width 0 drafts nothing."""
        drafts = np.maximum(widths - 1, 0)
        # No more than the answer has room for behind the token that this step draws.
        drafts = np.minimum(drafts, np.maximum(table.limit[seats] - table.final[seats] - 2, 0))
        offered = table.canvas_stop[seats] - table.final[seats]
        count = _num_branches(table.branches[seats], offered)
        entries = table.canvas_stop[seats] + count * drafts
        fits = entries <= table.most_entries
        widths = np.where(offered > 0, offered + 1, 0)
        table.plan_drafts(seats, np.where(fits, drafts, 0), widths=widths)

    def spans(self, table: SequenceTable, seats: IntArray) -> Plan:
        """Settle what is final; verify proposals and draft branches, or run the canvas."""
        final, stop = table.final[seats], table.canvas_stop[seats]
        is_diffusion = table.mode[seats] == Mode.DIFFUSION
        is_speculative = table.mode[seats] == Mode.SPECULATIVE
        propose_stop = np.where(is_diffusion, final, stop)
        width = np.where(is_speculative, table.num_drafts[seats], 0)
        # Branches wait until the prompt is settled.
        width[table.settled[seats] < table.prompt_stop[seats] - 1] = 0
        branches = _num_branches(table.branches[seats], propose_stop - final)
        drafted = np.where(is_diffusion, stop - final, branches * width)
        if not self.drafts_speak_of_next:
            skips = np.zeros(seats.size, dtype=np.bool_)
        else:
            # A canvas of one position is what the settled row says: no row of its own is run.
            skips = is_diffusion & (stop - final <= 1)
        draft_stop = propose_stop + np.where(skips, 0, drafted)
        return Plan(
            seats=seats,
            first=table.settled[seats],
            settle_stop=final,
            propose_stop=propose_stop,
            draft_stop=draft_stop,
            is_cut=np.zeros(seats.size, dtype=np.bool_),
            scores_settled=~is_diffusion | self.drafts_speak_of_next,
            causal_drafts=np.zeros(seats.size, dtype=np.bool_),
            draft_limit=draft_stop,
            checks=np.zeros(seats.size, dtype=np.bool_),
            branch_width=width,
            branches=branches,
        )

    def cut(self, table: SequenceTable, seat: int, *, settle_stop: int, rows: int) -> int:
        """Anywhere; a row that draws for a canvas runs in the same step as the canvas."""
        waits = self.drafts_speak_of_next and table.mode[seat] == Mode.DIFFUSION
        return min(int(table.settled[seat]) + rows, settle_stop - waits)

    def after_step(
        self, rows: IntArray, step: StepScores, table: SequenceTable, requests: SeatedRequests
    ) -> StepOutcome:
        """Verify proposals and make others, or move latents and slide canvases on."""
        outcome = StepOutcome()
        modes = table.mode[step.scored.seats[rows]]
        self._count_moves(step.plan, table)
        self._follow(rows[modes == Mode.SPECULATIVE], step, table, requests, outcome)
        self._move(rows[modes == Mode.DIFFUSION], step, table, requests, outcome)
        follow_causal(rows[modes == Mode.AR], step, table, requests, outcome)
        return outcome

    def past_pinned(self, table: SequenceTable, seat: int, outcome: StepOutcome) -> None:  # noqa: ARG002
        """Slide the canvas on; nothing was said of how uncertain it is."""
        self._slide(table, seat, mean_uncertainty=None)
        table.cut_backlog(seat)

    def new_latents(self, num_seats: int) -> LatentTable:
        """Progress of latents, in the levels that the network knows."""
        return LatentTable(num_seats, num_levels=self.latent.num_levels)

    def warm_up(self, modes: tuple[str, ...]) -> Iterator[WarmUpShape]:
        """Branches, whose rows hold latents."""
        for count, length, width in _WARM_UP_SHAPES if "speculative" in modes else ():
            decoding = DecodingParams(mode=DecodingMode.SPECULATIVE, width=width, drafts="canvas")
            yield WarmUpShape(count, length, decoding, max_tokens=_WARM_UP_TOKENS)

    def _count_moves(self, plan: Plan, table: SequenceTable) -> None:
        """The latents of the step's canvases were moved as was due."""
        assert table.latents is not None, "a latent family has a table of latents"
        own = table.mode[plan.seats] == Mode.DIFFUSION
        first, stop = plan.propose_stop[own], plan.draft_stop[own]
        if (stop > first).any():
            count = stop - first
            seats = np.repeat(plan.seats[own], count)
            positions = np.arange(seats.size) + np.repeat(first - (np.cumsum(count) - count), count)
            table.latents.moved(seats, positions % LatentTable.columns)

    def _follow(
        self,
        rows: IntArray,
        step: StepScores,
        table: SequenceTable,
        requests: SeatedRequests,
        outcome: StepOutcome,
    ) -> None:
        """Verify proposals, and propose what the branch behind the confirmed ones drafted."""
        seats = step.scored.seats[rows]
        starts = table.final[seats]
        is_draft = step.scored.kinds[rows] == RowKind.DRAFT
        table.count_drafts(seats[is_draft], step.scored.positions[rows[is_draft]])
        for seat in verify(rows[~is_draft], step, table, requests, outcome):
            own = seats == seat
            confirmed = int(table.settled[seat] - starts[own][0])
            drafted = rows[own & is_draft]
            if drafted.size:
                follow_branch(
                    seat, drafted, confirmed=confirmed, table=table, step=step, requests=requests
                )

    def _move(
        self,
        rows: IntArray,
        step: StepScores,
        table: SequenceTable,
        requests: SeatedRequests,
        outcome: StepOutcome,
    ) -> None:
        """Fill positions whose latents are ready, move the others, slide canvases on."""
        if rows.size == 0:
            return
        scored, scores = step.scored, step.scores
        evolved = evolve(
            rows,
            scored,
            scores,
            table,
            self.information,
            vocabulary_size=step.vocabulary_size,
        )
        open_rows = evolved.rows
        seats, positions = scored.seats[open_rows], scored.positions[open_rows]
        taken = requests.hold(seats, positions, scores.token[open_rows], evolved.is_ready)
        table.count_drafts(seats, positions)
        for kind, chosen in (
            (TokenKind.AR, taken & evolved.is_exact),
            (TokenKind.DIFFUSION, taken & ~evolved.is_exact),
        ):
            fill(open_rows[chosen], step, table, outcome, kind=kind, is_draft=True)
        outcome.num_wasted += open_rows.size - int(taken.sum())
        moved: list[int] = np.unique(scored.seats[rows]).tolist()
        outcome.moved += moved
        uncertain = step.uncertainty(open_rows)
        for seat in moved:
            middle = table.final[seat] + max(int(table.width_now[seat]) // 2, 1)
            left = uncertain[(seats == seat) & (positions < middle)]
            table.count_canvas_step(seat)
            mean = float(left.mean()) if left.size else None
            self._slide(table, seat, mean_uncertainty=mean)

    def _slide(self, table: SequenceTable, seat: int, *, mean_uncertainty: float | None) -> None:
        slide(seat, mean_uncertainty=mean_uncertainty, table=table)
        if table.final[seat] < table.limit[seat]:
            self.open_canvas(table, seat)


def _num_branches(branches: IntArray, offered: IntArray) -> IntArray:
    """How many branches a step drafts that verifies so many proposals [n]."""
    count = np.where(branches == Branches.ALL, offered + 1, 1)
    return np.where((branches == Branches.NONE) & (offered > 0), 0, count)
