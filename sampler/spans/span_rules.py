"""Which `SpanRule` serves a family."""

from sampler.spans.canvas_spans import CanvasSpans
from sampler.spans.latent_spans import LatentSpans
from sampler.spans.rank_spans import RankSpans
from sampler.spans.span_rule import CausalSpans, SpanRule
from sampler.spans.whole_spans import WholeSpans
from sampler.spans.window_spans import WindowSpans
from weights.families import DraftLimit, FamilyRule, Order, Settle


def span_rule_for(rule: FamilyRule) -> SpanRule:
    """The spans of a family, by its order and by what its settling rows see."""
    if not rule.drafts:
        return CausalSpans()
    if rule.latent is not None:
        return LatentSpans(rule)
    if rule.settle is Settle.NEVER:
        return WholeSpans(rule)
    if rule.order is Order.ANY:
        return RankSpans(rule)
    if rule.draft_limit is DraftLimit.OWN_ENTRY:
        return WindowSpans(rule)
    return CanvasSpans(rule)
