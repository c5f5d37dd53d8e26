"""The official Python client, unmodified, against the application."""

import httpx2
import openai
import pytest
from pydantic import BaseModel

from sampler import GrammarKind
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


class Greeting(BaseModel):
    """What a structured answer holds."""

    word: str


async def test_a_schema_is_kept_and_parsed(serve):
    engine = ScriptedEngine(saying('{"word": "hello"}'))
    async with serve(engine) as served, _client(served) as client:
        answer = await client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Greeting
        )
        responded = await client.responses.parse(model="tiny", input="hi", text_format=Greeting)
    grammars = [request.params.grammar.kind for request in engine.submitted]
    assert answer.choices[0].message.parsed == Greeting(word="hello")
    assert responded.output_parsed == Greeting(word="hello")
    assert grammars == [GrammarKind.JSON_SCHEMA] * 2


CALL = '<tool_call>{"name": "greet", "arguments": {"word": "hello"}}</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "greet", "parameters": Greeting.model_json_schema()},
}


async def test_calls_of_tools_come_whole_and_as_a_stream(serve):
    asked = {"model": "tiny", "messages": MESSAGES, "tools": [TOOL]}
    engine = ScriptedEngine(saying(CALL + CALL), context_length=4096)
    async with serve(engine) as served, _client(served) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
    for choice in (whole, streamed):
        calls = [(call.function.name, call.function.arguments)
                 for call in choice.message.tool_calls]  # fmt: skip
        assert calls == [("greet", '{"word": "hello"}')] * 2
        assert choice.finish_reason == "tool_calls"


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
