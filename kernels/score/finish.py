"""Partial scores of all parts of the vocabulary become the scores of rows.

Shapes: R rows, P partials.
"""

from kernels.dispatch import runs_triton
from kernels.score.finish_kernel import launch_finish_scores
from kernels.score.partials import ScorePartials, finish_scores_reference
from kernels.score.spec import RowScores, ScoreSpec


def finish_scores(partials: ScorePartials, spec: ScoreSpec) -> RowScores:
    """Scores of rows whose partials cover the whole vocabulary (without top lists)."""
    # Expected embeddings are sums over partials as wide as a latent: PyTorch's work.
    is_plain = partials.expected is None and partials.numbers.shape[2] > 0
    if is_plain and runs_triton(partials.numbers):
        return launch_finish_scores(partials, spec)
    return finish_scores_reference(partials, spec)
