"""`prediction`, `decoding.drafts` and `cache_salt`: what reaches the engine and what comes back."""

import pytest

from sampler import DecodingMode, Delta, FinishReason
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine, saying, stats
from tests.server.test_decoding import BLOCKS
from weights import FamilyRule

pytestmark = pytest.mark.anyio


def predicted(content):
    return {"type": "content", "content": content}


@pytest.mark.parametrize(
    "content", ["known", [{"type": "text", "text": "kno"}, {"type": "text", "text": "wn"}]]
)
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_the_predicted_text_reaches_the_engine_as_tokens(serve, kind, content):
    async with serve(rule=FamilyRule()) as served:
        response = await getattr(served, kind)(prediction=predicted(content), n=2)
    assert response.status_code == 200, response.text
    assert [bytes(one.prediction) for one in served.engine.submitted] == [b"known"] * 2


async def test_usage_tells_what_the_prediction_was_worth(serve):
    def script(request):
        told = stats(request, 3, accepted_prediction_tokens=2, rejected_prediction_tokens=5)
        return [Delta(request.id, token_ids=(65,) * 3, finish=FinishReason.LENGTH, stats=told)]

    async with serve(ScriptedEngine(script)) as served:
        body = (await served.chat(prediction=predicted("AAB"))).json()
    details = body["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == 2
    assert details["rejected_prediction_tokens"] == 5


async def test_the_official_client_can_predict(serve):
    import httpx2
    import openai

    async with serve(ScriptedEngine(saying("x"))) as served:
        client = openai.AsyncOpenAI(
            api_key="none",
            base_url="http://test/v1",
            http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=served.app)),
        )
        answer = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            prediction={"type": "content", "content": "x"},
        )
        await client.close()
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prediction": "x"}, "prediction"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": {"type": "content", "content": 5}}, "prediction.content"),
        ({"prediction": {"type": "wish", "content": "x"}}, "prediction.type"),
        ({"prediction": predicted("x" * 600)}, "prediction"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 5e-324}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"decoding": {"drafts": "wishes"}}, "decoding.drafts"),
        ({"decoding": {"drafts": "ngram", "mode": "ar"}}, "decoding.drafts"),
        ({"decoding": {"width": 4}}, "decoding.width"),
        ({"decoding": {"mode": "speculative"}}, "decoding.mode"),
    ],
)
async def test_what_cannot_be_is_named(serve, fields, param):
    async with serve(rule=FamilyRule()) as served:
        answers = [await served.chat(**fields), await served.complete(**fields)]
    assert {answer.status_code for answer in answers} == {400}
    assert {error_of(answer)["param"] for answer in answers} == {param}
    assert served.engine.submitted == []


@pytest.mark.parametrize(
    "fields", [{"prediction": predicted("x")}, {"decoding": {"drafts": "ngram"}}]
)
async def test_a_model_that_cannot_verify_refuses(serve, fields):
    async with serve(ScriptedEngine(modes=("diffusion",)), rule=BLOCKS) as served:
        response = await served.chat(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] in ("prediction", "decoding.drafts")


async def test_lookup_is_asked_for_with_its_width(serve):
    decoding = {"mode": "speculative", "drafts": "ngram", "width": 4}
    async with serve(rule=FamilyRule()) as served:
        response = await served.chat(decoding=decoding)
    asked = served.engine.submitted[0].params.decoding
    assert response.status_code == 200, response.text
    assert (asked.drafts, asked.width, asked.mode) == ("ngram", 4, DecodingMode.SPECULATIVE)


async def test_the_salt_reaches_the_engine(serve):
    async with serve() as served:
        await served.chat(cache_salt="tenant 7")
        await served.complete()
    assert [one.cache_salt for one in served.engine.submitted] == ["tenant 7", ""]
