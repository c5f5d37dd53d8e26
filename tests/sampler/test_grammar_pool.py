"""Grammars compile beside the loop: once per text, bounded, while everybody else goes on."""

import json
import threading
import time

import pytest

from sampler.border.errors import RequestError
from sampler.border.request import FinishReason, GrammarKind, GrammarSpec
from sampler.grammar_pool import GrammarPool
from sampler.seats.constraint import Grammars
from tests.sampler.seats.test_constraint import CharacterTokenizer
from tests.tiny import (
    CAUSAL_RULE,
    EOS,
    VOCABULARY,
    collect,
    hash_engine,
    request,
    run_all,
    wait_for_grammars,
)

WORD = GrammarSpec(GrammarKind.REGEX, "[a-z]{3}")


class SlowGrammars:
    """Compiles when it is told to, and counts."""

    def __init__(self):
        self.real = Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])
        self.may_go_on = threading.Event()
        self.texts = []

    def compile(self, spec):
        self.texts.append(spec.text)
        assert self.may_go_on.wait(20)
        return self.real.compile(spec)


@pytest.fixture
def slow():
    grammars = SlowGrammars()
    yield grammars
    grammars.may_go_on.set()


def constrained(name, spec=WORD, **options):
    return request(name, [5, 6], grammar=spec, ignore_eos=False, **options)


def test_others_go_on_while_a_grammar_compiles_and_nobody_sits_for_it(slow):
    engine = hash_engine(CAUSAL_RULE, grammars=slow, max_sequences=1)
    engine.submit(constrained("held"))
    engine.submit(request("free", [7], max_tokens=4))
    outputs = [engine.step() for _ in range(4)]
    assert len(collect(outputs)["free"][0]) == 4
    assert (engine.scheduler.num_seated, engine.scheduler.pool.num_held) == (0, 0)
    assert engine.is_only_compiling
    assert outputs[-1].metrics.num_waiting == 1
    slow.may_go_on.set()
    assert run_all(engine)["held"][1][-1].finish is FinishReason.STOP


def test_one_text_compiles_once(slow):
    slow.may_go_on.set()
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    for _ in range(2):
        answers = run_all(engine, *(constrained(str(n)) for n in range(12)))
        assert {answers[str(n)][1][-1].finish for n in range(12)} == {FinishReason.STOP}
    assert slow.texts == [WORD.text]


def test_a_request_that_is_cancelled_while_its_grammar_compiles_is_gone(slow):
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    engine.submit(constrained("first"))
    engine.submit(constrained("second", GrammarSpec(GrammarKind.REGEX, "x")))
    engine.cancel("first", reports=True)
    engine.cancel("second")
    assert [delta.finish for delta in engine.step().deltas] == [FinishReason.ABORT]
    assert not engine.has_work
    slow.may_go_on.set()
    time.sleep(0.05)
    assert engine.step().deltas == []
    # Nobody waited for the second any more, and it had not begun.
    assert slow.texts == [WORD.text]


def test_a_grammar_that_does_not_compile_refuses_its_requests_only(slow):
    slow.may_go_on.set()
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    bad = GrammarSpec(GrammarKind.REGEX, "[")
    answers = run_all(engine, constrained("bad", bad), constrained("good"))
    last = answers["bad"][1][-1]
    assert last.is_refusal
    assert last.error_field == "response_format"
    assert answers["good"][1][-1].finish is FinishReason.STOP


def test_a_compiler_that_breaks_ends_its_request_with_an_error(slow, monkeypatch):
    slow.may_go_on.set()
    monkeypatch.setattr(slow, "compile", lambda _: 1 // 0)
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    last = run_all(engine, constrained("a"))["a"][1][-1]
    assert last.finish is FinishReason.ERROR
    assert not last.is_refusal


def test_an_id_that_waits_for_its_grammar_is_taken(slow):
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    engine.submit(constrained("a"))
    engine.submit(constrained("a"))
    (delta,) = engine.step().deltas
    assert delta.finish is FinishReason.ERROR


def test_only_the_latest_grammars_are_kept(slow):
    slow.may_go_on.set()
    pool = GrammarPool(slow, capacity=2)
    specs = [GrammarSpec(GrammarKind.REGEX, f"a{{{n}}}") for n in (1, 2, 3, 4, 1)]
    for number, spec in enumerate(specs):
        pool.add(request(str(number), [1], grammar=spec), spec)
        while not pool.has_compiled:
            time.sleep(0.001)
        assert [one.request.id for one in pool.take_compiled()] == [str(number)]
        assert len(pool._kept) <= 2
    assert slow.texts == [spec.text for spec in specs]


def test_json_has_no_long_runs_of_blanks():
    grammars = Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])
    encode = CharacterTokenizer().encode
    for schema in ({"type": "object"}, True, {"x-guidance": {"whitespace_pattern": "[ ]+"}}):
        spec = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))
        few = encode("{" + 32 * " " + '"a":  1}', add_special_tokens=False)
        many = encode("{" + 33 * " ", add_special_tokens=False)
        assert grammars.constraint(spec).take(few) == len(few)
        assert grammars.constraint(spec).take(many) == 33


def test_a_schema_that_is_none_is_refused():
    grammars = Grammars(CharacterTokenizer(), vocabulary_size=VOCABULARY, eos_ids=[EOS])
    with pytest.raises(RequestError, match="does not compile"):
        grammars.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, "[1]"))


def test_waiting_for_a_grammar_ends(slow):
    engine = hash_engine(CAUSAL_RULE, grammars=slow)
    engine.submit(constrained("a"))
    slow.may_go_on.set()
    wait_for_grammars(engine)
    assert engine.has_compiled
