"""Usage of a body's answers, as it grows."""

from collections.abc import Sequence

from sampler import RequestStats
from server.schema.common import (
    CompletionTokensDetails,
    DecodingUsage,
    PromptTokensDetails,
    Usage,
)
from server.text.answer_text import Piece


class UsageCount:
    """Adds up the pieces of all answers; a prompt counts once however often it is answered."""

    def __init__(
        self, prompt_lengths: Sequence[int], *, per_prompt: int, is_scoring: bool = False
    ) -> None:
        """Start at nothing; when scoring, the token that the engine had to draw is not counted."""
        self._prompt_tokens = sum(prompt_lengths)
        self._per_prompt = per_prompt
        self._is_scoring = is_scoring
        self._cached: dict[int, int] = {}
        self._num_tokens = 0
        self._forward_passes = 0
        self._stats: list[RequestStats] = []

    def add(self, index: int, piece: Piece) -> None:
        """Count what a piece brings to the answer `index`."""
        self.add_answer(index, num_tokens=piece.num_tokens, stats=piece.stats)

    def add_answer(self, index: int, *, num_tokens: int, stats: RequestStats | None) -> None:
        """Count tokens and, when they are known, the costs of the answer `index`."""
        if not self._is_scoring:
            self._num_tokens += num_tokens
        if stats is None:
            return
        self._forward_passes += stats.steps
        if not self._is_scoring:
            self._stats.append(stats)
        prompt = index // self._per_prompt
        known = self._cached.get(prompt, stats.cached_tokens)
        self._cached[prompt] = min(known, stats.cached_tokens)

    def usage(self) -> Usage:
        """The usage so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._num_tokens,
            total_tokens=self._prompt_tokens + self._num_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached.values())),
            completion_tokens_details=CompletionTokensDetails(
                accepted_prediction_tokens=sum(
                    stats.accepted_prediction_tokens for stats in self._stats
                ),
                rejected_prediction_tokens=sum(
                    stats.rejected_prediction_tokens for stats in self._stats
                ),
            ),
            decoding=DecodingUsage(
                forward_passes=self._forward_passes,
                ar_tokens=sum(stats.ar_tokens for stats in self._stats),
                diffusion_tokens=sum(stats.diffusion_tokens for stats in self._stats),
                verified_tokens=sum(stats.verified_tokens for stats in self._stats),
                revised_tokens=sum(stats.revised_tokens for stats in self._stats),
            ),
        )
