"""A planned step that is taken back leaves the whole engine as it was."""

from collections import OrderedDict, deque
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampler.seats.prediction import Endings
from sampler.state.sequence_table import SeatState
from sampler.undo import Undo
from tests.examples import num_examples
from tests.sampler.test_canvas_engine import RULES
from tests.sampler.test_latent_engine import NEXT
from tests.tiny import CAUSAL_RULE, hash_engine, request, run_all

ENGINES = {
    "causal": (CAUSAL_RULE, None),
    "looked_up": (CAUSAL_RULE, {"mode": "speculative", "drafts": "ngram"}),
    "latent_speculative": (NEXT, {"mode": "speculative", "width": 3}),
    "latent_diffusion": (NEXT, {"mode": "diffusion", "width": 4}),
    **RULES,
}
# Numbers of the pages that follow a seat's own, and all of an empty seat, mean nothing.
TEXTS = (
    "tokens",
    "is_open",
    "attempts",
    "order",
    "kinds",
    "is_fixed",
    "confidence",
    "draft_counts",
)


def frozen(value):
    """Anything the engine is made of, as plain values that can be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, OrderedDict | deque):
        return [frozen(item) for item in (value.items() if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        return {frozen(key): frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [frozen(item) for item in value]
    if isinstance(value, Endings | Undo) or callable(value):
        return None
    if hasattr(value, "__dict__"):
        return {name: frozen(item) for name, item in vars(value).items()}
    if hasattr(value, "__slots__"):
        return {name: frozen(getattr(value, name)) for name in value.__slots__}
    return value


def state_of(engine):
    """The whole state of an engine's host side."""
    table, scheduler = engine.table, engine.scheduler
    seats = np.flatnonzero(table.state != SeatState.EMPTY).tolist()
    columns = {
        name: array[seats].tolist()
        for name, array in vars(table).items()
        if isinstance(array, np.ndarray) and array.ndim == 1 and name != "_columns"
    }
    texts = {
        name: getattr(table, name)[seats, :64].tolist()
        for name in TEXTS
        if getattr(table, name) is not None
    }
    pages = [table.pages[seat, : table.num_pages[seat]].tolist() for seat in seats]
    latents = None
    if table.latents is not None:
        moves = (a for a in vars(table.latents).values() if isinstance(a, np.ndarray))
        latents = [array[seats].tolist() for array in moves]
    balance = scheduler.balance
    chosen = None
    if balance is not None:
        lines = {name: frozen(value) for name, value in vars(balance).items()}
        # Of a seat that is empty, these are set when it is taken.
        for name in ("_is_seeded", "_cap", "_patience", "_own_price", "_allowed"):
            lines[name] = getattr(balance, name)[seats].tolist()
        for name in ("acceptance", "_fixed"):
            lines[name]["_beliefs"] = getattr(balance, name)._beliefs[seats].tolist()
        chosen = lines
    rest = ("records", "_seat_of", "num_preemptions", "prefix_queries", "prefix_hits", "_seeds")
    return {
        "state": table.state.tolist(),
        "columns": columns,
        "texts": texts,
        "pages": pages,
        "latents": latents,
        "notes": [frozen(table.notes[seat]) for seat in seats],
        "balance": chosen,
        "pool": frozen(scheduler.pool),
        "prefixes": frozen(scheduler.prefix_cache),
        "waiting": sorted((e.priority, e.number) for e in scheduler.waiting._waiting.values()),
        "first": getattr(scheduler.waiting.first(), "number", None),
        **{name: frozen(getattr(scheduler, name)) for name in rest},
    }


prompts = st.lists(st.integers(3, 6), min_size=1, max_size=24)
asked = st.builds(
    dict,
    prompt=prompts,
    max_tokens=st.integers(1, 16),
    seed=st.none() | st.integers(0, 5),
    priority=st.integers(0, 1),
    temperature=st.sampled_from([0.0, 1.0]),
    prediction=st.just(()) | prompts,
)


@given(
    name=st.sampled_from(sorted(ENGINES)),
    rounds=st.lists(st.tuples(st.lists(asked, max_size=3), st.integers(0, 4)), max_size=6),
    num_pages=st.sampled_from([12, 24, 64]),
)
@settings(
    max_examples=num_examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_plan_and_undo_leave_the_whole_state_equal(name, rounds, num_pages):
    rule, decoding = ENGINES[name]
    engine = hash_engine(rule, num_pages=num_pages, max_sequences=4, max_rows=128)
    number = 0
    for wanted, steps in rounds:
        for one in wanted:
            fields = {key: one[key] for key in one if key not in ("prompt", "prediction")}
            new = request(f"r{number}", one["prompt"], decoding=decoding, **fields)
            prediction = tuple(one["prediction"]) if name == "causal" else ()
            engine.submit(replace(new, prediction=prediction))
            number += 1
        for _ in range(steps):
            plan_and_take_back(engine)
            engine.step()
        plan_and_take_back(engine)


def plan_and_take_back(engine):
    before = state_of(engine)
    engine.scheduler.begin_step()
    plan = engine.scheduler.plan(now_s=1.0)
    if plan is not None:
        engine._buffer.reset()
        engine._build(plan)
    engine.scheduler.undo.take_back()
    assert state_of(engine) == before


@given(name=st.sampled_from(sorted(ENGINES)), wanted=st.lists(asked, min_size=1, max_size=6))
@settings(max_examples=num_examples(8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_are_the_same_when_every_step_is_taken_back_once(name, wanted):
    def answers(*, takes_back):
        rule, decoding = ENGINES[name]
        engine = hash_engine(rule, num_pages=24, max_sequences=4, max_rows=128)
        if takes_back:
            step = engine.step

            def twice():
                plan_and_take_back(engine)
                return step()

            engine.step = twice
        requests = [
            request(
                str(number),
                one["prompt"],
                decoding=decoding,
                max_tokens=one["max_tokens"],
                seed=number,
            )
            for number, one in enumerate(wanted)
        ]
        return {name: tokens for name, (tokens, _) in run_all(engine, *requests).items()}

    assert answers(takes_back=True) == answers(takes_back=False)
