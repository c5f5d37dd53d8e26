"""The application around a scripted engine, and clients that speak to it in process."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import httpx
import hypothesis
import pytest
from fastapi import FastAPI

from server.app import create_app
from server.settings import Settings, load_settings
from server.translate.model_text import ModelText
from tests.server.scripted_engine import ScriptedEngine, byte_tokenizer, template
from weights import GenerationDefaults

# How long an example takes says nothing on a machine that others use too.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def restored_logging():
    """Commands set up the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = False


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@dataclass
class Served:
    """A running application."""

    app: FastAPI
    engine: ScriptedEngine
    client: httpx.AsyncClient
    settings: Settings

    async def chat(self, **fields) -> httpx.Response:
        messages = [{"role": "user", "content": "hi"}]
        return await self.client.post("/v1/chat/completions", json={"messages": messages} | fields)

    async def complete(self, **fields) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": "ab"} | fields)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tokenizer) -> Serve:
    @asynccontextmanager
    async def running(
        engine: ScriptedEngine | None = None,
        *,
        chat_template=None,
        rule=None,
        generation=None,
        tracing=None,
        **flags,
    ) -> AsyncIterator[Served]:
        engine = engine or ScriptedEngine()
        settings = load_settings(flags)
        text = ModelText(
            tokenizer, chat_template or template(), rule, generation or GenerationDefaults()
        )
        app = create_app(engine, text, settings, tracing=tracing)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield Served(app, engine, client, settings)

    return running


def events(response: httpx.Response) -> list[dict]:
    """The JSON of each event of a stream that ended as it should."""
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def error_of(response: httpx.Response) -> dict:
    """The error body, whose four fields are always there."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
