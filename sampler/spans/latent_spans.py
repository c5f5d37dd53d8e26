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

import numpy as np
from numpy.typing import NDArray

from sampler.border.request import Request
from sampler.outcome.latent_moves import Information
from sampler.spans.plan import Plan
from sampler.spans.span_rule import CausalSpans
from sampler.state.decoding import Mode
from sampler.state.latent_knobs import Branches
from sampler.state.sequence_table import IntArray, SequenceTable, Stage
from weights.families import FamilyRule, Speaks


class LatentSpans(CausalSpans):
    """Spans of a family with latent canvases; what settles is as in AR."""

    def __init__(self, rule: FamilyRule) -> None:
        assert rule.latent is not None, "a family without latents has other spans"
        self.rule = rule
        self.latent = rule.latent
        self.information = Information(rule.latent.calibration)
        self.drafts_speak_of_next = rule.draft_speaks_of is Speaks.NEXT

    def open_sequence(self, table: SequenceTable, seat: int, request: Request) -> None:  # noqa: ARG002
        """Open the first canvas of a diffusion answer."""
        if table.mode[seat] == Mode.DIFFUSION:
            self.open_canvas(table, seat)

    def open_canvas(self, table: SequenceTable, seat: int) -> None:
        """Widen the canvas to its width; what joins it begins as noise."""
        assert table.latents is not None, "a latent family has a table of latents"
        first = int(table.canvas_stop[seat])
        table.part_start[seat] = table.final[seat]
        stop = min(int(table.final[seat] + table.width_now[seat]), int(table.limit[seat]))
        if stop > first:
            table.is_open[seat, first:stop] = True
            table.latents.open(seat, first, stop)
            table.canvas_stop[seat] = stop
        table.stage[seat] = Stage.DRAFT

    def open_seeded(self, table: SequenceTable, seat: int) -> None:
        """Never called: no settled row seeds a canvas."""

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
        table.num_drafts[seats] = np.where(fits, drafts, 0)
        table.round_width[seats] = np.where(offered > 0, offered + 1, 0)

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


def _num_branches(branches: IntArray, offered: IntArray) -> IntArray:
    """How many branches a step drafts that verifies so many proposals [n]."""
    count = np.where(branches == Branches.ALL, offered + 1, 1)
    return np.where((branches == Branches.NONE) & (offered > 0), 0, count)
