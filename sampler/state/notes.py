"""`SeatNotes`: what a request wants to know of its tokens, kept right by the table's writes."""

from collections import Counter
from dataclasses import dataclass, field

from sampler.border.request import TokenLogprob, TokenTrace


@dataclass(slots=True)
class SeatNotes:
    """Of one seated request, by position; what was sent is forgotten.

    counts_tokens: whether its penalties need `token_counts`
    token_counts:  how often each token stands in the answer
    logprobs:      how likely tokens were that are not sent yet
    trace:         how tokens came that are not sent yet
    """

    counts_tokens: bool = False
    token_counts: Counter[int] = field(default_factory=Counter)
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    trace: dict[int, TokenTrace] = field(default_factory=dict)
    _counted: dict[int, int] = field(default_factory=dict)

    def fill(self, position: int, token: int) -> None:
        """The position takes a token, whatever it had before."""
        if self.counts_tokens:
            self._discount(position)
            self.token_counts[token] += 1
            self._counted[position] = token

    def take_back(self, position: int) -> None:
        """The position loses its token, if it had one."""
        self.logprobs.pop(position, None)
        self.trace.pop(position, None)
        self._discount(position)

    def _discount(self, position: int) -> None:
        before = self._counted.pop(position, None)
        if before is not None:
            self.token_counts[before] -= 1
            if self.token_counts[before] == 0:
                del self.token_counts[before]
