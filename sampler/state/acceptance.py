"""Which drafted tokens a request accepts: its rule and knobs, as arrays, applied to canvases.

Names are the field's: `threshold` (Fast-dLLM), `threshold_or_quota` (SDAR, LLaDA2), `quota`
(LLaDA low-confidence remasking), `time_quota` (Dream), `threshold_in_quota` (Dream with a
threshold), `factor` (Fast-dLLM), `entropy_bound` (EB-sampler), `entropy_distance` (WeDLM),
`margin`, `first_hitting` (BD3-LM), `rank_order` (Eso-LM). What decides between positions is the
`preference`: confidence, margin, entropy, random or left_to_right.

Every rule accepts at least one open position where there is one.

Shapes: S canvases, W positions of the widest; padding is not open.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from kernels import (
    PURPOSE_CHOICE,
    accept_distance,
    accept_entropy_bound,
    accept_factor,
    accept_quota,
    accept_threshold,
    uniform_noise,
)


class Rule(IntEnum):
    """How many open positions are accepted."""

    THRESHOLD = 0
    THRESHOLD_OR_QUOTA = 1
    QUOTA = 2
    TIME_QUOTA = 3
    THRESHOLD_IN_QUOTA = 4
    FACTOR = 5
    ENTROPY_BOUND = 6
    ENTROPY_DISTANCE = 7
    EVERYTHING = 8


class Preference(IntEnum):
    """Which open positions come first."""

    CONFIDENCE = 0
    MARGIN = 1
    ENTROPY = 2
    RANDOM = 3
    LEFT_TO_RIGHT = 4


@dataclass(frozen=True, slots=True)
class RuleName:
    """What a name in the API means; None leaves the preference to the request."""

    rule: Rule
    preference: Preference | None = None


RULES = {
    "threshold": RuleName(Rule.THRESHOLD),
    "threshold_or_quota": RuleName(Rule.THRESHOLD_OR_QUOTA),
    "quota": RuleName(Rule.QUOTA),
    "time_quota": RuleName(Rule.TIME_QUOTA),
    "threshold_in_quota": RuleName(Rule.THRESHOLD_IN_QUOTA),
    "factor": RuleName(Rule.FACTOR),
    "entropy_bound": RuleName(Rule.ENTROPY_BOUND, Preference.ENTROPY),
    "entropy_distance": RuleName(Rule.ENTROPY_DISTANCE, Preference.ENTROPY),
    "margin": RuleName(Rule.THRESHOLD, Preference.MARGIN),
    "left_to_right": RuleName(Rule.QUOTA, Preference.LEFT_TO_RIGHT),
    "first_hitting": RuleName(Rule.QUOTA, Preference.RANDOM),
    "rank_order": RuleName(Rule.EVERYTHING, Preference.LEFT_TO_RIGHT),
}


@dataclass(frozen=True, slots=True)
class CanvasScores:
    """What the network says of the open positions of S canvases.

    is_open:    [S, W] bool, may be accepted now
    token:      [S, W] int64, drawn
    confidence: [S, W] float32, probability of the drawn token
    p1, p2:     [S, W] float32, the two best probabilities
    entropy:    [S, W] float32, nats
    positions:  [S, W] int64
    """

    is_open: Tensor
    token: Tensor
    confidence: Tensor
    p1: Tensor
    p2: Tensor
    entropy: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class CanvasKnobs:
    """How each of the S canvases accepts; all are [S].

    rule, preference: int64, of `Rule` and `Preference`
    threshold:        float32: probability, margin, factor, nats, as the rule says
    distance_weight:  float32, nats per position
    quota:            int64, positions that the schedule gives this step
    seeds, attempts:  int64, counters of the random preference
    """

    rule: Tensor
    preference: Tensor
    threshold: Tensor
    distance_weight: Tensor
    quota: Tensor
    seeds: Tensor
    attempts: Tensor


def accept(scores: CanvasScores, knobs: CanvasKnobs) -> Tensor:
    """Which open positions are accepted: [S, W] bool."""
    preference = _preference(scores, knobs)
    accepted = torch.zeros_like(scores.is_open)
    for rule in Rule:
        chosen = (knobs.rule == rule)[:, None]
        accepted |= chosen & _apply(rule, scores, knobs, preference)
    return accepted


def _apply(rule: Rule, scores: CanvasScores, knobs: CanvasKnobs, preference: Tensor) -> Tensor:
    is_open, threshold = scores.is_open, knobs.threshold
    match rule:
        case Rule.THRESHOLD:
            return accept_threshold(preference, is_open, threshold)
        case Rule.QUOTA | Rule.TIME_QUOTA:
            return accept_quota(preference, is_open, knobs.quota)
        case Rule.THRESHOLD_OR_QUOTA:
            passing = is_open & (preference > threshold[:, None])
            enough = passing.sum(1) >= knobs.quota.clamp_min(1)
            by_quota = accept_quota(preference, is_open, knobs.quota)
            return torch.where(enough[:, None], passing, by_quota)
        case Rule.THRESHOLD_IN_QUOTA:
            within = accept_quota(preference, is_open, knobs.quota)
            return within & accept_threshold(preference, is_open, threshold)
        case Rule.FACTOR:
            return accept_factor(scores.confidence, is_open, threshold)
        case Rule.ENTROPY_BOUND:
            return accept_entropy_bound(scores.entropy, is_open, threshold)
        case Rule.ENTROPY_DISTANCE:
            return accept_distance(scores.entropy, is_open, threshold, knobs.distance_weight)
        case Rule.EVERYTHING:
            return is_open


def _preference(scores: CanvasScores, knobs: CanvasKnobs) -> Tensor:
    """What each canvas ranks its positions by, larger first: [S, W] float32."""
    positions = scores.positions
    noise = uniform_noise(
        knobs.seeds[:, None].expand_as(positions).flatten(),
        positions.flatten(),
        torch.full_like(positions, PURPOSE_CHOICE).flatten(),
        knobs.attempts[:, None].expand_as(positions).flatten(),
        torch.zeros(1, dtype=torch.int64),
    ).view_as(positions)
    choices = torch.stack(
        (
            scores.confidence,
            scores.p1 - scores.p2,
            -scores.entropy,
            noise,
            -positions.float(),
        )
    )
    lines = torch.arange(scores.is_open.shape[0])
    return choices[knobs.preference, lines]


def leftmost_part(is_open: Tensor, part_length: Tensor) -> Tensor:
    """Open positions in the leftmost part of `part_length` [S] columns that has any: [S, W]."""
    columns = torch.arange(is_open.shape[1]).expand_as(is_open)
    part = columns // part_length[:, None]
    first = torch.where(is_open, part, is_open.shape[1]).amin(1, keepdim=True)
    return is_open & (part == first)
