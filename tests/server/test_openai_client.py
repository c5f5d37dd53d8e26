"""The official Python client, unmodified, against the application."""

import httpx2
import openai
import pytest

from tests.server.scripted_engine import ScriptedEngine, saying

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hi"}]


def _client(served, key="none"):
    transport = httpx2.ASGITransport(app=served.app, raise_app_exceptions=False)
    return openai.AsyncOpenAI(
        api_key=key,
        base_url="http://test/v1",
        http_client=httpx2.AsyncClient(transport=transport),
        max_retries=0,
    )


async def test_chat(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served, _client(served) as client:
        answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chat_stream(serve):
    async with serve(ScriptedEngine(saying("hello"))) as served, _client(served) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "hello"
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 6


async def test_the_stream_helper_builds_the_whole(serve):
    asked = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    async with (
        serve(ScriptedEngine(saying("hello"))) as served,
        _client(served) as client,
        client.chat.completions.stream(**asked) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert [entry.token for entry in answer.choices[0].logprobs.content] == list("hello")


async def test_logprobs(serve):
    async with serve(ScriptedEngine(saying("hi"))) as served, _client(served) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=3
        )
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["h", "i"]
    assert [len(entry.top_logprobs) for entry in entries] == [3, 3]


async def test_completions(serve):
    async with serve(ScriptedEngine(saying("xyz"))) as served, _client(served) as client:
        answer = await client.completions.create(
            model="tiny", prompt=["a", "b"], logprobs=1, extra_body={"top_k": 5}
        )
        stream = await client.completions.create(model="tiny", prompt="a", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert [choice.text for choice in answer.choices] == ["xyz", "xyz"]
    assert answer.choices[0].logprobs.tokens == ["x", "y", "z"]
    assert text == "xyz"
    assert served.engine.submitted[0].params.top_k == 5


async def test_models(serve):
    async with serve() as served, _client(served) as client:
        models = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("tiny")
    assert models == ["tiny"]
    assert one.owned_by == "estuary"


async def test_errors_have_the_clients_own_types(serve):
    async with serve(ScriptedEngine(capacity=0), api_key=["right"]) as served:
        async with _client(served, key="wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with _client(served, key="right") as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="other", messages=MESSAGES)
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
            with pytest.raises(openai.InternalServerError) as full:
                await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert wrong.value.param == "temperature"
    assert full.value.status_code == 503


async def test_an_error_in_a_stream_is_raised(serve):
    def script(request):
        return [*saying("ab")(request)[:1], RuntimeError("boom")]

    async with serve(ScriptedEngine(script)) as served, _client(served) as client:
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError) as failure:
            [chunk async for chunk in stream]
    assert failure.value.code == "internal_error"
