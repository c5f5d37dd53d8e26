"""`PagedBatch`: which rows of a step belong together, where they are stored, what each may see.

Shapes: T rows of the step, S spans (one per sequence that runs), P pages of the longest sequence.

A sequence's cache is a list of entries counted in cache order (its rank when decoding); entry
`e` of span `s` lies in slot `page_table[s, e // page_size] * page_size + e % page_size`.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """The device-side description of a step; every mask of every family is these integers.

    Row `t` sees the entries `first[t] <= e < limit[t]` of its own sequence and besides these
    `window_start[t] <= e < window_stop[t]`. An entry in both is seen once. A row that sees
    nothing gets zeros.

    span_starts:  [S + 1] int32, the rows of span s are `span_starts[s]:span_starts[s + 1]`;
                  ascending, no span is empty
    page_table:   [S, P] int32, unused tail entries may hold anything
    slots:        [T] int64, where the row's own key and value are written before attention reads
    limits:       [T] int32 >= 0
    firsts:       [T] int32 >= 0, or None when it is zero everywhere
    window_starts, window_stops: [T] int32, or None when no row has a window
    max_span:     the longest span, in rows
    max_limit:    the largest limit or window stop, in entries
    """

    span_starts: Tensor
    page_table: Tensor
    slots: Tensor
    limits: Tensor
    max_span: int
    max_limit: int
    firsts: Tensor | None = None
    window_starts: Tensor | None = None
    window_stops: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """T, the rows of the step."""
        return self.slots.shape[0]

    @property
    def num_spans(self) -> int:
        """S, the sequences of the step."""
        return self.page_table.shape[0]
