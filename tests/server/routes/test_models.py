"""`/v1/models`, `/tokenize` and `/detokenize`."""

import pytest

from tests.server.conftest import error_of
from tests.server.scripted_engine import BOS, ScriptedEngine

pytestmark = pytest.mark.anyio


async def test_every_served_name_is_listed(serve):
    engine = ScriptedEngine(modes=("ar", "speculative"))
    async with serve(engine, served_model_name=["short", "org/long"]) as served:
        listed = (await served.client.get("/v1/models")).json()
        one = (await served.client.get("/v1/models/org/long")).json()
        unknown = await served.client.get("/v1/models/none")
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["short", "org/long"]
    assert one["id"] == "org/long"
    assert one["root"] == "tiny"
    assert one["max_model_len"] == 512
    assert one["decoding_modes"] == ["ar", "speculative"]
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"


async def test_text_becomes_tokens_and_text_again(serve):
    async with serve() as served:
        tokens = (await served.client.post("/tokenize", json={"prompt": "né"})).json()
        text = (await served.client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
    assert tokens == {"count": 3, "max_model_len": 512, "tokens": [110, 0xC3, 0xA9]}
    assert text == {"prompt": "né"}


async def test_tokens_are_spelled_when_asked_for(serve):
    body = {"prompt": "ab", "return_token_strs": True}
    async with serve() as served:
        tokens = (await served.client.post("/tokenize", json=body)).json()
    assert tokens["token_strs"] == ["a", "b"]


async def test_messages_are_tokenized_behind_the_template(serve):
    body = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}
    async with serve() as served:
        tokens = (await served.client.post("/tokenize", json=body)).json()
    assert bytes(tokens["tokens"]) == b"<user>x\n"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens.1"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, BOS + 1]}, "tokens.1"),
        ("/detokenize", {"tokens": [10**12]}, "tokens.0"),
    ],
)
async def test_what_cannot_be_tokenized_is_named(serve, path, body, param):
    async with serve() as served:
        response = await served.client.post(path, json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_the_openapi_document_describes_every_body(serve):
    async with serve() as served:
        document = (await served.client.get("/openapi.json")).json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatBody"}
    assert "temperature" in document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"Message", "DecodingBody", "ChatCompletion"} <= set(document["components"]["schemas"])


@pytest.mark.parametrize("body", [{"input": "x", "model": "tiny"}, {}, None])
async def test_embeddings_are_refused_by_name(serve, body):
    async with serve() as served:
        response = await served.client.post("/v1/embeddings", json=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "unsupported_parameter"
    assert "embeddings" in error_of(response)["message"]
