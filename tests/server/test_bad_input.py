"""Bad input: each a 4xx with the API's error body that names the field, and the server goes on."""

import asyncio
import json

import pytest

from sampler import Delta, FinishReason
from server.translate.model_text import ModelText
from tests.server.asgi import AsgiExchange
from tests.server.conftest import error_of
from tests.server.scripted_engine import ScriptedEngine, template

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": [}',
        b'{"messages": "\xff\xfe"}',
        b'{"messages": "\\ud800"}',
        b"[" * 5000 + b"]" * 5000,
    ],
)
async def test_what_is_no_json_is_refused(serve, body):
    async with serve() as served:
        response = await served.client.post(CHAT, content=body, headers=JSON)
        after = await served.chat()
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"
    assert error_of(response)["type"] == "invalid_request_error"
    assert after.status_code == 200


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true"])
async def test_a_body_that_is_no_object_is_refused(serve, body):
    async with serve() as served:
        response = await served.client.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages.0.content.0.type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 1.5}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(key): 1 for key in range(2000)}}, "logit_bias"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a" * 300]}, "stop.0"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"decoding": {"mode": "warp"}}, "decoding.mode"),
        ({"decoding": {"mode": "diffusion"}}, "decoding.mode"),
        ({"decoding": {"width": 8}}, "decoding.width"),
        ({"decoding": {"confidence": 0}}, "decoding.confidence"),
        ({"decoding": {"speed": 3}}, "decoding.speed"),
        ({"decoding": {"stream": "steps"}}, "decoding.stream"),
        ({"decoding": {"stream": "often"}}, "decoding.stream"),
        ({"decoding": 5}, "decoding"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"diffusing": True}, "diffusing"),
    ],
)
async def test_a_chat_field_that_cannot_be_served_is_named(serve, fields, param):
    async with serve() as served:
        response = await served.chat(**fields)
        after = await served.chat()
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert error_of(response)["type"] == "invalid_request_error"
    assert param.split(".")[0] in error_of(response)["message"]
    assert after.status_code == 200
    assert len(served.engine.submitted) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt.1"),
        ({"prompt": ["a", 5]}, "prompt.1"),
        ({"prompt": [5, "a"]}, "prompt.0.1"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0.0"),
        ({"prompt": [[97], [98, 2**40]]}, "prompt.1.1"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 1024, "n": 2}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
async def test_a_completion_field_that_cannot_be_served_is_named(serve, fields, param):
    async with serve() as served:
        response = await served.complete(**fields)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert served.engine.submitted == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_are_refused(serve, number):
    body = f'{{"prompt": "a", "temperature": {number}}}'
    async with serve() as served:
        response = await served.client.post(COMPLETIONS, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["param"] == "temperature"


async def test_a_prompt_longer_than_the_context_is_refused(serve):
    async with serve() as served:
        text = await served.complete(prompt="x" * 512)
        tokens = await served.complete(prompt=[5] * 512)
        chat = await served.chat(messages=[{"role": "user", "content": "x" * 512}])
    assert [error_of(each)["code"] for each in (text, tokens, chat)] == [
        "context_length_exceeded"
    ] * 3
    assert [error_of(each)["param"] for each in (text, tokens, chat)] == [
        "prompt",
        "prompt",
        "messages",
    ]


async def test_too_many_tokens_asked_for_are_refused(serve):
    async with serve() as served:
        completion = await served.complete(prompt="x" * 500, max_tokens=13)
        chat = await served.chat(max_completion_tokens=10**9)
        fitting = await served.complete(prompt="x" * 500, max_tokens=12)
    assert error_of(completion)["param"] == "max_tokens"
    assert error_of(chat)["param"] == "max_completion_tokens"
    assert error_of(chat)["code"] == "context_length_exceeded"
    assert fitting.status_code == 200


async def test_a_template_that_raises_is_a_400(serve):
    async with serve() as served:
        response = await served.chat(messages=[{"role": "user", "content": "forbidden"}])
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"
    assert "no such words" in error_of(response)["message"]


async def test_a_template_cannot_reach_out_of_its_sandbox(serve):
    source = "{{ messages.__class__.__mro__ }}"
    async with serve(chat_template=template(source)) as served:
        response = await served.chat()
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


async def test_a_large_body_is_refused_by_its_announced_size(serve):
    async with serve() as served:
        response = await served.complete(prompt="x" * 10_000_000)
        after = await served.complete()
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"
    assert after.status_code == 200


async def test_a_large_body_is_refused_while_it_arrives(serve):
    async with serve(max_body_size=2000) as served:
        parts = [b'{"prompt": "'] + [b"x" * 500] * 10
        exchange = AsgiExchange(served.app, COMPLETIONS, None, body_parts=parts)
        await exchange.run()
    assert exchange.status == 413
    assert json.loads(exchange.text)["error"]["code"] == "body_too_large"


async def test_a_slow_body_is_refused(serve):
    async with serve(body_timeout=0.02) as served:
        parts = [b'{"prompt": ', asyncio.Event(), b'"a"}']
        exchange = AsgiExchange(served.app, COMPLETIONS, None, body_parts=parts)
        await asyncio.wait_for(exchange.run(), 5)
    assert exchange.status == 408
    assert json.loads(exchange.text)["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", None])
async def test_a_body_of_another_type_is_refused(serve, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    async with serve() as served:
        response = await served.client.post(COMPLETIONS, content=b"{}", headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v1/chat/completions/", "/redoc"])
async def test_an_unknown_route_is_a_404_in_json(serve, path):
    async with serve() as served:
        response = await served.client.get(path)
        metrics = (await served.client.get("/metrics")).text
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"
    assert f'handler="{path}"' not in metrics
    assert 'http_requests_total{handler="unmatched",method="GET",status="4xx"} 1.0' in metrics


async def test_a_wrong_method_is_a_405_in_json(serve):
    async with serve() as served:
        response = await served.client.get(CHAT)
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"


async def test_many_errors_make_a_short_answer(serve):
    messages = [{"role": "alien", "content": "secret words" * 100}] * 500
    async with serve() as served:
        response = await served.chat(messages=messages)
    assert response.status_code == 400
    assert len(response.content) < 2000
    assert "secret" not in response.text


async def test_a_model_without_a_template_cannot_chat(tokenizer):
    import httpx

    from server.app import create_app
    from server.settings import load_settings

    app = create_app(ScriptedEngine(), ModelText(tokenizer, None), load_settings({}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client,
    ):
        response = await client.post(CHAT, json={"messages": [{"role": "user", "content": "x"}]})
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


def refusing(request):
    return [
        Delta(
            request.id,
            finish=FinishReason.ERROR,
            error="decoding.width must be at most 4, got 9",
            is_refusal=True,
            error_field="decoding.width",
        )
    ]


async def test_what_only_the_engine_can_refuse_is_a_400_too(serve):
    async with serve(ScriptedEngine(script=refusing)) as served:
        response = await served.chat()
    assert response.status_code == 400
    assert error_of(response)["param"] == "decoding.width"
    assert "at most 4" in error_of(response)["message"]


async def test_a_fault_of_the_engine_is_a_500_without_details(serve):
    def failing(request):
        return [Delta(request.id, finish=FinishReason.ERROR, error="secret path")]

    async with serve(ScriptedEngine(script=failing)) as served:
        response = await served.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
