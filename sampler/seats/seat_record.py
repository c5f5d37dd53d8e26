"""`SeatRecord`: what the engine remembers of a seated request beside the arrays."""

from collections import Counter
from dataclasses import dataclass, field

from sampler.border.request import Request, RequestStats, TokenLogprob, TokenTrace
from sampler.seats.constraint import Constraint
from sampler.seats.prediction import Endings, Proposer


@dataclass(slots=True)
class SeatRecord:
    """Written by `Scheduler` and `Advance` only; times are monotonic seconds.

    stop_ids:        tokens that end the answer, the model's own among them unless ignored
    page_key:        prefix-cache key of the last page that has one
    num_keyed:       pages that have a key
    token_counts:    how often each token stands in the answer, kept only for penalties
    constraint:      the state of the answer's grammar, if it has one
    proposer:        guesses how the answer goes on, if there is anything to guess from
    endings:         of the text, where a canvas's drafts give way to what it repeats
    pending_*:       reported with the next delta
    """

    request: Request
    seed: int
    stop_ids: frozenset[int]
    page_key: bytes
    constraint: Constraint | None = None
    proposer: Proposer | None = None
    endings: Endings | None = None
    num_keyed: int = 0
    cached_tokens: int = 0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    num_preemptions: int = 0
    num_revised: int = 0
    token_counts: Counter[int] = field(default_factory=Counter)
    pending_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    pending_trace: dict[int, TokenTrace] = field(default_factory=dict)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    def stats(
        self, *, answer_tokens: int, steps: int, kind_counts: list[int], finished_s: float
    ) -> RequestStats:
        """What the request cost, for its last delta; kind_counts in the order of `TOKEN_KINDS`."""
        ar, diffusion, verified = kind_counts
        proposer = self.proposer
        return RequestStats(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            answer_tokens=answer_tokens,
            steps=steps,
            ar_tokens=ar,
            diffusion_tokens=diffusion,
            verified_tokens=verified,
            revised_tokens=self.num_revised,
            num_preemptions=self.num_preemptions,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s or finished_s,
            finished_s=finished_s,
            # What was confirmed behind the end of the answer is no part of it.
            accepted_prediction_tokens=min(proposer.num_accepted, verified) if proposer else 0,
            rejected_prediction_tokens=proposer.num_rejected if proposer else 0,
        )
