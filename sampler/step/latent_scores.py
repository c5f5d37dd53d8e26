"""Scores of steps whose rows hold latents: output prior, and temperature in what is expected.

Shapes: R scored rows, V vocabulary, d hidden width, d_z latent width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels import Int8Weight, RowScores, ScoreSpec, score_rows
from weights.network.interface import Network
from weights.network.latent import LatentRows


def score_latents(
    network: Network, hidden: Tensor, latents: LatentRows, spec: ScoreSpec, *, is_tempered: bool
) -> RowScores:
    """Score hidden [R, d]; the expected embedding is of the distribution that is drawn from.

    Where the network has an output prior, [h, c z, -s] meets [W, E, |e|^2]: the exact likelihood
    of a row's latent is added to its logits (`weights.network.latent.Likelihood`).

    is_tempered: whether some row has a temperature besides 0 and 1
    """
    latent = network.latent
    assert latent is not None, "only networks with latents get them"
    head, rows = network.head_weight, hidden
    if latent.prior is not None:
        head, rows = latent.prior.head, latent.prior.widen(hidden, latents)
    spec = replace(spec, embedding=latent.embedding)
    scores = score_rows(rows, head, network.head_bias, spec)
    expected = scores.expected_embedding
    if is_tempered:
        expected = _tempered(rows, head, network.head_bias, spec)
    assert expected is not None, "it was asked for"
    # At temperature 0 all mass is on the most likely token.
    certain = latent.embedding[scores.argmax].to(expected.dtype)
    is_greedy = (spec.temperature == 0).unsqueeze(1)
    return replace(scores, expected_embedding=torch.where(is_greedy, certain, expected))


def _tempered(
    rows: Tensor, head: Tensor | Int8Weight, bias: Tensor | None, spec: ScoreSpec
) -> Tensor | None:
    """Expected embeddings [R, d_z] under logits divided by the rows' temperatures.

    The rows are divided, so that no kernel need know of it; what is added to logits, too.
    """
    assert bias is None, "networks with latents have no bias in their head"
    temperature = torch.where(spec.temperature > 0, spec.temperature, 1.0)
    adjust = spec.adjust
    if adjust is not None:
        entries = torch.arange(adjust.values.shape[0], device=rows.device)
        own = torch.searchsorted(adjust.row_starts.long(), entries, right=True) - 1
        adjust = replace(adjust, values=adjust.values / temperature[own])
    cooled = replace(
        spec,
        temperature=torch.zeros_like(spec.temperature),
        adjust=adjust,
        num_top=0,
        given=None,
    )
    divided = rows / temperature.unsqueeze(1).to(rows.dtype)
    return score_rows(divided, head, bias, cooled).expected_embedding
