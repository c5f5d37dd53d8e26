"""The answers of one body: whatever ends one of them, whoever waits is told."""

import asyncio

import pytest

from sampler import EngineStopped, SamplingParams
from sampler.border.request import Request
from server.replies.running_answers import RunningAnswers
from server.settings import load_settings
from server.text.answer_text import TextRules
from server.watch.metrics import ServerMetrics
from server.watch.tracing import NoTrace
from tests.server.scripted_engine import ScriptedEngine, saying

pytestmark = pytest.mark.anyio


class FailingAtTheEnd(NoTrace):
    def answer_ended(self, *_arguments, **_options):
        raise RuntimeError("told too late")


def _answers(tokenizer, engine, **options):
    metrics = ServerMetrics(engine, load_settings({}), model_name="tiny", max_tokens=512)
    request = Request(id="a", prompt=(65,), params=SamplingParams(max_tokens=8))
    return RunningAnswers(
        engine, tokenizer, [request], rules=TextRules(), metrics=metrics, **options
    )


async def test_a_failure_behind_the_end_of_an_answer_reaches_whoever_waits(tokenizer):
    engine = ScriptedEngine()
    await engine.start()
    answers = _answers(tokenizer, engine, trace=FailingAtTheEnd())
    with pytest.raises(RuntimeError, match="told too late"):
        await asyncio.wait_for(answers.whole(1), 5)
    assert answers.is_finished
    answers.close()


async def test_deltas_behind_the_last_one_change_nothing(tokenizer):
    engine = ScriptedEngine(lambda request: [*saying("hello")(request)] * 2)
    await engine.start()
    answers = _answers(tokenizer, engine)
    (answer,) = await asyncio.wait_for(answers.whole(1), 5)
    answers.close()
    assert answer.text == "hello"
    assert engine.cancelled == []


async def test_a_stream_that_just_ends_is_an_error_for_its_client(tokenizer):
    engine = ScriptedEngine(lambda request: saying("hello")(request)[:2])
    await engine.start()
    answers = _answers(tokenizer, engine)
    with pytest.raises(EngineStopped, match="without a reason"):
        await asyncio.wait_for(answers.whole(1), 5)
    answers.close()
