"""Forced tokens: where a grammar leaves no choice, a canvas is filled without a step.

What must come next (the quotes and names of a schema, for one) is put into the open positions at
the frontier. It is final as far as the grammar goes and costs no row; the next step drafts the rest
around it. Answers that verification holds to AR's tokens are left to the network: there the grammar
allows several ways to cut a text into tokens, and AR chooses among them.
"""

import numpy as np

from sampler.border.request import TokenKind, TokenLogprob, TokenTrace, has_penalties
from sampler.seats.seat_record import SeatRecord
from sampler.state.sequence_table import TOKEN_KINDS, SequenceTable

_DIFFUSION = TOKEN_KINDS.index(TokenKind.DIFFUSION)


def pin_forced(seat: int, record: SeatRecord, table: SequenceTable, *, mask_id: int | None) -> int:
    """Fill the positions behind the frontier of a canvas whose tokens are forced; how many."""
    constraint = record.constraint
    if constraint is None or record.request.params.allowed_token_ids is not None:
        return 0
    first, room = _frontier(seat, table)
    length = int(table.prompt_length[seat])
    if room == 0 or first - length != constraint.num_consumed:
        return 0
    forced = constraint.take_forced(room, but=mask_id)
    for offset, token in enumerate(forced):
        _note(record, first + offset, token, step=int(table.steps[seat]) - 1)
    filled = slice(first, first + len(forced))
    table.tokens[seat, filled] = forced
    table.is_open[seat, filled] = False
    table.kinds[seat, filled] = _DIFFUSION
    table.confidence[seat, filled] = 1.0
    return len(forced)


def _frontier(seat: int, table: SequenceTable) -> tuple[int, int]:
    """The first open position of a canvas, and how many are open from there on."""
    start = int(table.final[seat])
    stop = min(int(table.canvas_stop[seat]), int(table.limit[seat]))
    is_open = table.is_open[seat, start:stop]
    if not is_open.any():
        return start, 0
    first = int(is_open.argmax())
    behind = is_open[first:]
    return start + first, behind.size if behind.all() else int(np.argmin(behind))


def _note(record: SeatRecord, position: int, token: int, *, step: int) -> None:
    """What the request wants to know of a token that could be no other."""
    params = record.request.params
    if has_penalties(params):
        record.token_counts[token] += 1
    if params.logprobs is not None:
        record.pending_logprobs[position] = TokenLogprob(token_id=token, logprob=0.0)
    if params.decoding.trace:
        record.pending_trace[position] = TokenTrace(
            step=step, kind=TokenKind.DIFFUSION, uncertainty=0.0
        )
