"""Partial scores of rows, over a part of the vocabulary each, and how they become whole.

Shapes: R rows, P partials, d_z latent width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.score.spec import RowScores, ScoreSpec

# Stands for minus infinity: its exponential is zero and its product with zero is not NaN.
NEVER = -1e30

PEAK, TOTAL, WEIGHTED, SECOND, SCORE, DRAWN_LOGIT, GIVEN_LOGIT = range(7)
NUM_NUMBERS = 7
BEST, DRAWN = range(2)
NUM_TOKENS = 2


@dataclass(frozen=True, slots=True)
class ScorePartials:
    """What P parts of the vocabulary say of each row; parts of all ranks may be joined along P.

    numbers:  [7, P, R] float32: largest logit, sum of exp(logit - largest), sum of the same times
              (logit - largest), second largest logit, best noisy tempered logit, the logit of the
              token it belongs to, the logit of the given token; absent logits are NEVER
    tokens:   [2, P, R] int32: the likeliest and the drawn token
    expected: [P, R, d_z] float32, sum of exp(logit - largest) times embedding, or None
    """

    numbers: Tensor
    tokens: Tensor
    expected: Tensor | None


def join_partials(parts: list[ScorePartials]) -> ScorePartials:
    """Partials of several ranks side by side."""
    expected = [part.expected for part in parts if part.expected is not None]
    return ScorePartials(
        torch.cat([part.numbers for part in parts], dim=1),
        torch.cat([part.tokens for part in parts], dim=1),
        torch.cat(expected) if expected else None,
    )


def merge_partials(partials: ScorePartials) -> ScorePartials:
    """One partial per row, P = 1; merging in any grouping gives the same up to rounding."""
    numbers, tokens = partials.numbers, partials.tokens.long()
    peaks, totals = numbers[PEAK], numbers[TOTAL]
    no_token = torch.iinfo(torch.int32).max
    peak = peaks.amax(0)  # [R]
    best = torch.where(peaks == peak, tokens[BEST], no_token).amin(0)
    # The second is another partial's largest or the second of any.
    is_best = (peaks == peak) & (tokens[BEST] == best)
    second = torch.maximum(torch.where(is_best, NEVER, peaks).amax(0), numbers[SECOND].amax(0))
    shift = peaks - peak
    shrink = shift.exp()
    score = numbers[SCORE].amax(0)
    drawn = torch.where(numbers[SCORE] == score, tokens[DRAWN], no_token).amin(0)
    is_drawn = (numbers[SCORE] == score) & (tokens[DRAWN] == drawn)
    merged = torch.stack(
        (
            peak,
            (totals * shrink).sum(0),
            ((numbers[WEIGHTED] + shift * totals) * shrink).sum(0),
            second,
            score,
            torch.where(is_drawn, numbers[DRAWN_LOGIT], NEVER).amax(0),
            numbers[GIVEN_LOGIT].amax(0),
        )
    )
    expected = None
    if partials.expected is not None:
        expected = (partials.expected * shrink[:, :, None]).sum(0, keepdim=True)
    return ScorePartials(merged[:, None], torch.stack((best, drawn)).int()[:, None], expected)


def finish_scores_reference(partials: ScorePartials, spec: ScoreSpec) -> RowScores:
    """Define `finish_scores`."""
    merged = merge_partials(partials)
    numbers, tokens = merged.numbers[:, 0], merged.tokens[:, 0].long()
    peak, total = numbers[PEAK], numbers[TOTAL]
    log_total = total.log()
    log_sum_exp = peak + log_total
    is_sampled = spec.temperature > 0
    drawn_logit = torch.where(is_sampled, numbers[DRAWN_LOGIT], peak)
    given = None
    if spec.given is not None:
        given = numbers[GIVEN_LOGIT] - log_sum_exp
        given = given.masked_fill(numbers[GIVEN_LOGIT] <= NEVER / 2, float("-inf"))
    expected = None
    if merged.expected is not None:
        expected = merged.expected[0] / total[:, None]
    return RowScores(
        token=torch.where(is_sampled, tokens[DRAWN], tokens[BEST]),
        probability=(drawn_logit - log_sum_exp).exp(),
        argmax=tokens[BEST],
        p1=total.reciprocal(),
        p2=(numbers[SECOND] - log_sum_exp).exp(),
        log_sum_exp=log_sum_exp,
        entropy=log_total - numbers[WEIGHTED] / total,
        given_logprob=given,
        expected_embedding=expected,
    )
