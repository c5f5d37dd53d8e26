"""Steps that fail: their cause ends with an error, everybody else has the tokens of a quiet day."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sampler.border.request import FinishReason
from sampler.step_failure import leaves_doubt
from tests.sampler.test_canvas_engine import RULES
from tests.tiny import CAUSAL_RULE, HashRunner, check_engine, hash_engine, request, run_all

POISON = 48
CASES = {
    "causal": (CAUSAL_RULE, None),
    **{name: RULES[name] for name in ("two_mode_speculative", "block", "ranked", "whole")},
}


class PoisonedRunner(HashRunner):
    """Fails at every step that runs the poison, as a kernel fails at a value."""

    error = IndexError

    def run(self, step, spec):
        if POISON in step.network.token_ids.tolist():
            raise self.error("index -1 is out of bounds")
        return super().run(step, spec)


class NotANumberRunner(HashRunner):
    """Scores of rows whose sequence holds the poison are no numbers."""

    def run(self, step, spec):
        scores = super().run(step, spec)
        network = step.network
        starts = network.batch.span_starts.tolist()
        tokens = network.token_ids.tolist()
        entropy = scores.entropy.copy()
        for index, row in enumerate(network.score_rows.tolist()):
            span = next(s for s in range(len(starts) - 1) if row < starts[s + 1])
            if POISON in tokens[starts[span] : starts[span + 1]]:
                entropy[index] = np.nan
        return replace(scores, entropy=entropy)


def requests_of(decoding, *, poisoned=(), count=9):
    return [
        request(
            str(number),
            [5 + number, *([POISON] if number in poisoned else [7]), 9, 4 + number],
            max_tokens=7,
            decoding=decoding,
            seed=number,
        )
        for number in range(count)
    ]


def engine_of(rule, runner=HashRunner, **options):
    engine = hash_engine(rule, max_sequences=6, vocabulary=POISON, **options)
    engine.vocabulary = replace(engine.vocabulary, size=POISON + 1)
    engine.runner = runner(64, 4, vocabulary=POISON)
    return engine


@pytest.mark.parametrize("runner", [PoisonedRunner, NotANumberRunner])
@pytest.mark.parametrize("poisoned", [(0,), (3, 8), tuple(range(9))])
@pytest.mark.parametrize("name", CASES)
def test_only_the_cause_of_a_failing_step_ends(name, poisoned, runner):
    rule, decoding = CASES[name]
    quiet = run_all(engine_of(rule), *requests_of(decoding))
    engine = engine_of(rule, runner)
    answers = run_all(engine, *requests_of(decoding, poisoned=poisoned))
    for number in range(9):
        tokens, deltas = answers[str(number)]
        if number in poisoned:
            assert deltas[-1].finish is FinishReason.ERROR
            assert not deltas[-1].is_refusal
        else:
            assert tokens == quiet[str(number)][0]
            assert deltas[-1].finish is FinishReason.LENGTH
    assert engine.metrics.requests_failed == len(poisoned)
    assert engine.metrics.steps_taken_back > 0
    wrong = len(poisoned) if runner is NotANumberRunner else 0
    assert engine.metrics.requests_not_a_number == wrong
    assert engine.scheduler.pool.num_held == 0


def test_what_a_failed_request_stored_is_not_found_again():
    engine = engine_of(CAUSAL_RULE, NotANumberRunner, max_rows=8)
    long = request("a", [*range(3, 15), POISON, 4], max_tokens=2)
    run_all(engine, long)
    assert engine.scheduler.pool.num_idle == 0


def test_a_failure_while_planning_ends_its_request_only():
    engine = engine_of(CAUSAL_RULE)
    quiet = run_all(engine_of(CAUSAL_RULE), *requests_of(None))
    seat = engine.table.seat

    def failing(one, *arguments, **options):
        if one.id == "4":
            raise ZeroDivisionError
        return seat(one, *arguments, **options)

    engine.table.seat = failing
    answers = run_all(engine, *requests_of(None))
    assert answers["4"][1][-1].error == "ZeroDivisionError in the step"
    assert all(answers[str(n)][0] == quiet[str(n)][0] for n in range(9) if n != 4)


def test_a_request_that_cannot_be_taken_in_ends_alone(monkeypatch):
    engine = engine_of(CAUSAL_RULE)
    monkeypatch.setattr(engine, "_check_decoding", lambda one: 1 // (one.id != "1"))
    answers = run_all(engine, *requests_of(None, count=3))
    assert answers["1"][1][-1].finish is FinishReason.ERROR
    assert answers["2"][1][-1].finish is FinishReason.LENGTH
    check_engine(engine)


def test_a_broken_invariant_ends_the_engine():
    engine = engine_of(CAUSAL_RULE, type("Broken", (PoisonedRunner,), {"error": AssertionError}))
    with pytest.raises(AssertionError):
        run_all(engine, *requests_of(None, poisoned=(1,)))


def test_a_failure_while_a_step_is_applied_ends_the_engine(monkeypatch):
    engine = engine_of(CAUSAL_RULE)
    monkeypatch.setattr(engine.advance.deltas, "write", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run_all(engine, *requests_of(None))


@pytest.mark.parametrize(
    ("error", "doubt"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (AssertionError(), True),
        (torch.OutOfMemoryError("out of memory"), False),
        (RuntimeError("index -1 is out of bounds for dimension 1 with size 512"), False),
    ],
)
def test_which_failures_leave_doubt(error, doubt):
    assert leaves_doubt(error) is doubt
