"""In which order an any-order family decodes positions, and how many of them in each step.

From: Sahoo et al. 2025, Esoteric Language Models, sections 3-4; arXiv 2506.01928.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# From: the authors' LogLinear noise, eps: t = 1 keeps this share unmasked.
_SCHEDULE_EPS = 1e-3


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
