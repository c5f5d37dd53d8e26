"""How likely a text is: exactly, under an order (Eso-LM), or left to right (causal models).

An any-order model that is causal in rank gives all conditionals of an order in one forward over
2 L rows: the text by rank, and at every rank a mask that sees what has a lower rank, and itself.
The mean over orders of the probability is a lower bound of the text's own in expectation of its
logarithm, tighter with more orders. From: Sahoo et al. 2025, Esoteric Language Models, section
on exact likelihood; arXiv 2506.01928. Burda et al. 2016, importance weighted bound; 1509.00519.

Shapes: L tokens of the text.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import KVCache, PagedBatch, ScoreSpec, allocate_kv_cache, score_rows
from sampler.spans.rank_spans import draw_schedule
from weights.families import FamilyRule, Order, Settle
from weights.network.interface import Network, NetworkInput

_PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model says of a text, in nats.

    logprob:   of the whole text: exact for a causal model, else the importance-weighted bound
    by_order:  [K] float64, the exact log-probability under each order that was drawn
    by_token:  [L] float32 by position, of the first order; 0 for tokens that are given
    num_scored: tokens that count, for a perplexity of exp(-logprob / num_scored)
    """

    logprob: float
    by_order: NDArray[np.float64]
    by_token: NDArray[np.float32]
    num_scored: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability of a scored token."""
        return math.exp(-self.logprob / self.num_scored)


def text_likelihood(
    network: Network,
    rule: FamilyRule,
    tokens: list[int],
    *,
    num_orders: int = 1,
    alpha_0: float | None = None,
    seed: int = 0,
) -> Likelihood:
    """Score a text of at least two tokens.

    num_orders, alpha_0, seed: for any-order models: how many orders are drawn, the share of
    each that is random (default: the checkpoint's own), and the seed of the draw

    Raises ValueError for a family that gives no likelihood, or sizes that cannot be.
    """
    if len(tokens) < 2:
        raise ValueError(f"a text to score needs at least 2 tokens, got {len(tokens)}")
    if num_orders < 1:
        raise ValueError(f"num_orders must be at least 1, got {num_orders}")
    if "ar" in rule.modes and rule.order is Order.LEFT_TO_RIGHT:
        return _causal_likelihood(network, rule, tokens)
    if rule.order is not Order.ANY or rule.settle is not Settle.CAUSAL:
        raise ValueError("this family gives bounds only, no likelihood of a text under an order")
    share = alpha_0 if alpha_0 is not None else rule.acceptance.alpha_0
    return _any_order_likelihood(
        network, rule, tokens, alpha_0=1.0 if share is None else share,
        orders=num_orders, generator=np.random.default_rng(seed),
    )  # fmt: skip


def order_logprobs(network: Network, rule: FamilyRule, tokens: Tensor, order: Tensor) -> Tensor:
    """Log-probability of each token given those of lower rank: [L] float32 by rank.

    tokens [L] int64 by position; order [L] int64, position of each rank
    """
    if rule.mask_token_id is None:
        raise ValueError("a family without a mask token has no orders")
    length = tokens.shape[0]
    ranked = tokens[order]
    masks = torch.full_like(ranked, rule.mask_token_id)
    ranks = torch.arange(length)
    entries = torch.arange(2 * length)
    limits = torch.cat((ranks + 1, ranks))
    window_starts = torch.cat((torch.zeros_like(ranks), ranks + length))
    window_stops = torch.cat((torch.zeros_like(ranks), ranks + length + 1))
    return _given_logprobs(
        network,
        NetworkInput(
            token_ids=torch.cat((ranked, masks)),
            positions=torch.cat((order, order)),
            score_rows=entries[length:],
            batch=_one_span(entries, limits, window_starts, window_stops),
        ),
        given=ranked,
        suppressed=(rule.mask_token_id,) if rule.suppresses_mask else (),
    )


def _any_order_likelihood(
    network: Network,
    rule: FamilyRule,
    tokens: list[int],
    *,
    alpha_0: float,
    orders: int,
    generator: np.random.Generator,
) -> Likelihood:
    text = torch.tensor(tokens)
    totals = []
    first: NDArray[np.float32] | None = None
    for _ in range(orders):
        # A schedule with one step draws the random share of an order as the sampler does.
        schedule = draw_schedule(
            np.arange(len(tokens)), alpha_0=alpha_0, num_steps=1, generator=generator
        )
        order = torch.from_numpy(schedule.positions)
        logprobs = order_logprobs(network, rule, text, order)
        totals.append(float(logprobs.double().sum()))
        if first is None:
            first = np.zeros(len(tokens), dtype=np.float32)
            first[schedule.positions] = logprobs.numpy()
    assert first is not None, "at least one order is drawn"
    by_order = np.array(totals)
    return Likelihood(
        logprob=float(np.logaddexp.reduce(by_order) - math.log(orders)),
        by_order=by_order,
        by_token=first,
        num_scored=len(tokens),
    )


def _causal_likelihood(network: Network, rule: FamilyRule, tokens: list[int]) -> Likelihood:
    text = torch.tensor(tokens)
    entries = torch.arange(len(tokens))
    logprobs = _given_logprobs(
        network,
        NetworkInput(
            token_ids=text,
            positions=entries,
            score_rows=entries[:-1],
            batch=_one_span(entries, entries + 1, None, None),
        ),
        given=text[1:],
        suppressed=(rule.mask_token_id,)
        if rule.suppresses_mask and rule.mask_token_id is not None
        else (),
    )
    by_token = np.concatenate(([0.0], logprobs.numpy())).astype(np.float32)
    total = float(logprobs.double().sum())
    return Likelihood(total, np.array([total]), by_token, len(tokens) - 1)


@torch.inference_mode()
def _given_logprobs(
    network: Network, step: NetworkInput, *, given: Tensor, suppressed: tuple[int, ...]
) -> Tensor:
    """Log-probability of the given tokens [R] at the scored rows: [R] float32."""
    hidden = network.forward(step, _scratch_cache(network, step.batch))
    zeros = torch.zeros(given.shape[0], dtype=torch.int64)
    spec = ScoreSpec(
        temperature=torch.zeros(given.shape[0]),
        seeds=zeros,
        positions=zeros,
        purposes=zeros.int(),
        attempts=zeros.int(),
        suppressed=suppressed,
        given=given,
    )
    scores = score_rows(hidden, network.head_weight, network.head_bias, spec)
    assert scores.given_logprob is not None, "given tokens are scored"
    return scores.given_logprob


def _one_span(
    entries: Tensor, limits: Tensor, window_starts: Tensor | None, window_stops: Tensor | None
) -> PagedBatch:
    num_rows = entries.shape[0]
    return PagedBatch(
        span_starts=torch.tensor([0, num_rows], dtype=torch.int32),
        page_table=torch.arange(-(-num_rows // _PAGE_SIZE), dtype=torch.int32)[None],
        slots=entries,
        limits=limits.int(),
        max_span=num_rows,
        max_limit=num_rows,
        window_starts=None if window_starts is None else window_starts.int(),
        window_stops=None if window_stops is None else window_stops.int(),
    )


def _scratch_cache(network: Network, batch: PagedBatch) -> KVCache:
    return allocate_kv_cache(
        num_layers=network.num_layers,
        num_pages=batch.page_table.shape[1],
        page_size=_PAGE_SIZE,
        num_kv_heads=network.num_kv_heads,
        head_dim=network.head_dim,
        dtype=network.token_table.dtype,
        device=network.token_table.device,
        is_zeroed=network.is_row_exact,
    )
