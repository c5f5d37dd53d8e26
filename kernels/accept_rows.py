"""Which open positions of every canvas are accepted this step, and which proposals are verified.

Rules for the whole batch as tensor code, no host reads. Every rule that accepts drafts takes
`is_open` (positions that were drafted and have no token yet) and accepts at least one of them
where there is any.

Shapes: S sequences, W positions of the widest canvas; shorter canvases are padded with positions
that are not open.
"""

import torch
from torch import Tensor


def rank_positions(preference: Tensor, is_open: Tensor) -> Tensor:
    """Place [S, W] int64 of every position by falling preference; open ones first, ties leftmost.

    preference [S, W] float, is_open [S, W] bool
    """
    keyed = preference.float().masked_fill(~is_open, float("-inf"))
    # An open position may itself prefer -inf: sorting twice keeps it before those not open.
    order = keyed.argsort(dim=1, descending=True, stable=True)
    closed_last = (~is_open).gather(1, order).to(torch.int8).argsort(dim=1, stable=True)
    order = order.gather(1, closed_last)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def accept_quota(preference: Tensor, is_open: Tensor, quota: Tensor) -> Tensor:
    """The `quota` [S] int (at least one) open positions of highest preference: [S, W] bool.

    Left to right is the rule with preference = -position; random order, with uniform noise.
    """
    return is_open & (rank_positions(preference, is_open) < quota.clamp_min(1)[:, None])


def accept_threshold(preference: Tensor, is_open: Tensor, threshold: Tensor) -> Tensor:
    """Open positions whose preference reaches the threshold [S] float, or else the best one.

    With confidence as preference: From Wu et al. 2025, Fast-dLLM, section 3.3; arXiv 2505.22618.
    """
    best = rank_positions(preference, is_open) == 0
    return is_open & (best | (preference >= threshold[:, None]))


def accept_margin(p1: Tensor, p2: Tensor, is_open: Tensor, margin: Tensor) -> Tensor:
    """Open positions whose two best probabilities [S, W] differ by margin [S], or else the best."""
    return accept_threshold(p1 - p2, is_open, margin)


def accept_factor(confidence: Tensor, is_open: Tensor, factor: Tensor) -> Tensor:
    """The n most confident open positions, n the largest with conf_(n) >= 1 - factor / (n + 1).

    confidence [S, W], factor [S]. From: Wu et al. 2025, Fast-dLLM, theorem 1 as the factor rule;
    arXiv 2505.22618.
    """
    place = rank_positions(confidence, is_open)
    passes = is_open & (confidence >= 1 - factor[:, None] / (place + 2))
    count = torch.where(passes, place + 1, 0).amax(1, keepdim=True)
    return is_open & (place < count.clamp_min(1))


def accept_entropy_bound(entropy: Tensor, is_open: Tensor, bound: Tensor) -> Tensor:
    """Open positions by rising entropy while the entropies of the earlier ones stay within bound.

    entropy [S, W] nats, bound [S] nats. From: Ben-Hamu et al. 2025, Accelerated sampling from
    masked diffusion models via entropy bounded unmasking; arXiv 2505.24857. Ordered by entropy,
    sum minus largest is the sum of the earlier ones.
    """
    place = rank_positions(-entropy, is_open)
    ordered = torch.empty_like(entropy).scatter_(1, place, entropy.masked_fill(~is_open, 0.0))
    within = ordered.cumsum(1).roll(1, 1) <= bound[:, None]
    # Nothing is before the first, which is accepted whatever the bound.
    within[:, :1] = True
    return is_open & within.gather(1, place)


def accept_distance(
    entropy: Tensor, is_open: Tensor, threshold: Tensor, distance_weight: Tensor
) -> Tensor:
    """Open positions whose entropy plus weight times distance is below the threshold, or the best.

    entropy [S, W] nats; threshold, distance_weight [S]; distance counts positions from the first
    open one. From: Liu et al. 2025, WeDLM; arXiv 2512.22737.
    """
    positions = torch.arange(is_open.shape[1], device=is_open.device)
    first = torch.where(is_open, positions, is_open.shape[1]).amin(1, keepdim=True)
    effort = entropy + distance_weight[:, None] * (positions - first)
    best = rank_positions(-effort, is_open) == 0
    return is_open & (best | (effort < threshold[:, None]))


def leading_run(flags: Tensor) -> Tensor:
    """The flags [S, W] bool before the first that is off."""
    return flags.to(torch.int8).cummin(1).values.bool()


def edit_tokens(
    token: Tensor,
    current: Tensor,
    confidence: Tensor,
    is_filled: Tensor,
    threshold: Tensor,
) -> Tensor:
    """Filled positions [S, W] bool whose token should change to the newly likelier one.

    token, current [S, W] int64; confidence [S, W] of token; is_filled [S, W] bool: has a token
    that may still change (no prompt); threshold [S]. From: LLaDA2.1; arXiv 2602.08676.
    """
    return is_filled & (token != current) & (confidence > threshold[:, None])


def remask_tokens(
    confidence: Tensor, is_filled: Tensor, uniform: Tensor, probability: Tensor
) -> Tensor:
    """Filled positions [S, W] bool that become open again with probability sigma_i.

    confidence [S, W]: probability of each token when it was accepted; uniform [S, W] in (0, 1);
    probability [S]: sigma_max of the step. sigma_i is softmax over filled positions of minus
    confidence, times sigma_max. From: Wang et al. 2025, ReMDM, section 4.1 (confidence schedule);
    arXiv 2503.00307.
    """
    share = (-confidence.float()).masked_fill(~is_filled, float("-inf")).softmax(1)
    return is_filled & (uniform < share * probability[:, None])


def verify_drawn(proposed: Tensor, drawn: Tensor, is_proposed: Tensor) -> Tensor:
    """Proposals [S, W] bool confirmed by coupled draws: a run from the left of equal tokens.

    proposed, drawn [S, W] int64: the proposal at a position and the target's own token for it,
    drawn with noise of (seed, position); is_proposed [S, W] bool, itself a run from the left.
    The token after the run is the target's own, so the result is what the target alone gives.
    """
    return leading_run(is_proposed & (proposed == drawn))


def verify_ratio(
    target_probability: Tensor,
    draft_probability: Tensor,
    uniform: Tensor,
    is_proposed: Tensor,
) -> Tensor:
    """Proposals [S, W] bool kept with probability min(1, p / q), a run from the left.

    target_probability, draft_probability [S, W] of the proposed token (tempered as drawn);
    uniform [S, W] in (0, 1). From: Leviathan et al. 2023, algorithm 1; arXiv 2211.17192. After a
    refusal the token must come from max(0, p - q): `residual_draw`.
    """
    kept = uniform * draft_probability <= target_probability
    return leading_run(is_proposed & kept)


def residual_draw(target_logits: Tensor, draft_logits: Tensor, gumbel: Tensor) -> Tensor:
    """Tokens [r] int64 from max(0, p - q), normalised; from p itself where p = q.

    target_logits, draft_logits, gumbel: [r, V] float32, tempered; a bounded number of rows (the
    refused ones) at a time.
    """
    target = target_logits.softmax(1)
    residual = (target - draft_logits.softmax(1)).clamp_min(0.0)
    is_empty = residual.sum(1, keepdim=True) <= 0
    residual = torch.where(is_empty, target, residual)
    return (residual.log() + gumbel).argmax(1)
