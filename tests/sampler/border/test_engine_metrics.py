"""Counters of rounds: what is bounded stays bounded, and all of it crosses the border."""

from sampler.border.engine_metrics import MAX_COUNTED_PLACES, EngineMetrics
from sampler.border.messages import StepOutput, TokenBatch, decode_from_engine, encode_frame


def test_places_of_a_round_are_counted_up_to_an_end():
    metrics = EngineMetrics()
    metrics.observe_round(offered=3, confirmed=2, by_canvas=True)
    metrics.observe_round(offered=1000, confirmed=1000, by_canvas=False)
    assert metrics.proposals_accepted_at == [2, 2] + [1] * (MAX_COUNTED_PLACES - 2)
    assert metrics.proposals_accepted == 1002
    assert metrics.canvas_tokens_verified == 2
    assert metrics.rows_wasted == 1


def test_counters_of_rounds_cross_the_border():
    metrics = EngineMetrics()
    metrics.observe_round(offered=3, confirmed=2, by_canvas=True)
    frame = encode_frame(StepOutput(tokens=TokenBatch(), deltas=[], metrics=metrics))
    assert decode_from_engine(frame[4:]).metrics == metrics
