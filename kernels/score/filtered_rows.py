"""Rows of a step in which some ask for top tokens, top-k, top-p or min-p, on a GPU.

One product writes all logits of as many rows as fit into a kept buffer, as float32 sums; every
statistic, filter, draw and list of a row is made from these same numbers. Nothing is sorted and
nothing is read back; which rows filter is data, so a captured graph holds it all.

Shapes: R rows, V vocabulary entries.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from kernels.linear import Int8Weight
from kernels.noise_kernel import launch_noise_keys
from kernels.score.adjust_kernel import launch_adjust_
from kernels.score.buffer import FULL_BYTES, buffer_rows, rows_that_fit, write_logits
from kernels.score.filter_kernel import launch_draw_filtered_
from kernels.score.finish import finish_scores
from kernels.score.logits_kernel import launch_fold_logits, num_splits
from kernels.score.partials import empty_partials
from kernels.score.spec import RowScores, ScoreSpec, join_scores, spec_rows
from kernels.score.top_kernel import launch_top_tokens


def score_full_rows(
    hidden: Tensor,
    head_weight: Tensor | Int8Weight,
    head_bias: Tensor | None,
    spec: ScoreSpec,
    *,
    num_bytes: int = FULL_BYTES,
) -> RowScores:
    """Score hidden [R, d], R at least 1, with all logits of rows in a buffer of num_bytes.

    Expected embeddings are left out.
    """
    rows = hidden.shape[0]
    vocab = head_weight.shape[0] if isinstance(head_weight, Tensor) else head_weight.out_features
    most = rows_that_fit(num_bytes, vocab)
    is_listed = _listed_rows(spec, rows) if spec.num_top else None
    tiles = []
    for start in range(0, rows, most):
        stop = min(start + most, rows)
        logits = buffer_rows(hidden.device, num_bytes, stop - start, vocab)
        write_logits(hidden[start:stop], head_weight, head_bias, slice(0, vocab), logits)
        listed = None if is_listed is None else is_listed[start:stop]
        tiles.append(_score_tile(logits, spec_rows(spec, start, stop), listed))
    return join_scores(tiles)


def _score_tile(logits: Tensor, spec: ScoreSpec, is_listed: Tensor | None) -> RowScores:
    """Scores of logits [r, V], which are changed as the spec says."""
    rows, vocab = logits.shape
    launch_adjust_(logits, spec, suppressed_ids(spec.suppressed, logits.device), column_start=0)
    keys = launch_noise_keys(spec.seeds, spec.positions, spec.purposes, spec.attempts)
    partials = empty_partials(num_splits(rows, vocab), rows, 0, logits.device)
    launch_fold_logits(logits, keys, spec, partials, column_start=0, first_partial=0)
    scores = finish_scores(partials, spec)
    if spec.filters:
        launch_draw_filtered_(logits, keys, spec, scores)
    if is_listed is None:
        return scores
    ids, logprobs = launch_top_tokens(logits, scores, is_listed, spec.num_top)
    return replace(scores, top_ids=ids, top_logprobs=logprobs)


def _listed_rows(spec: ScoreSpec, rows: int) -> Tensor:
    """[R] int32, 1 where a row gets a top list."""
    if spec.wide_rows is None:
        return torch.ones(rows, dtype=torch.int32, device=spec.temperature.device)
    is_listed = torch.zeros(rows, dtype=torch.int32, device=spec.temperature.device)
    return is_listed.index_fill_(0, spec.wide_rows, 1)


@cache
def suppressed_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids on the device, sent once: they belong to the model, not to a step."""
    return torch.tensor(ids or (0,), dtype=torch.int32, device=device)
