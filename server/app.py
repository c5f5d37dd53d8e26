"""`create_app`: routes, middleware, start and stop. No globals; two apps can live in a process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from sampler import EngineStopped, RequestError
from server.engine import Engine
from server.error_responses import ApiError, answer_of, error_response
from server.middleware.auth import Authenticate
from server.middleware.body_limits import BodyLimits
from server.middleware.observe import Observe
from server.middleware.security_headers import SecurityHeaders
from server.openapi import openapi_of
from server.routes import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    models,
    responses,
    tokenize,
)
from server.routes.playground import playground_router
from server.settings import Settings
from server.state import ServerState, package_version
from server.watch.metrics import ServerMetrics
from server.watch.tracing import NoTracing, Tracing
from weights.families import FamilyRule
from weights.text.chat_template import ChatTemplate
from weights.text.tokenizer import Tokenizer

_ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    models.router,
    tokenize.router,
    health.router,
)

_MESSAGES_PATHS = ("/v1/messages", "/v1/messages/count_tokens")


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    settings: Settings,
    *,
    model_name: str | None = None,
    rule: FamilyRule | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; its lifespan starts the engine, unless it runs already, and stops it.

    model_name: what clients call the model when the settings do not say; the engine's name for
                it when left out
    rule:       how the model's family decodes; lets what it cannot do be refused here
    tracing:    told of every request; closed at the end

    Raises SettingsError when the API keys cannot be read.
    """
    told = tracing or NoTracing()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not engine.is_alive:
            await engine.start()
        try:
            names = settings.served_model_name or (model_name or engine.info.name,)
            metrics = ServerMetrics(
                engine, settings, model_name=names[0], max_tokens=engine.info.context_length
            )
            app.state.server = ServerState(
                engine,
                tokenizer,
                chat_template,
                settings,
                metrics,
                model_names=names,
                rule=rule,
                tracing=told,
            )
            yield
        finally:
            await engine.stop(drain_s=0.0)
            await asyncio.to_thread(told.close)

    app = FastAPI(
        title="Estuary",
        description="Inference server for models that decode autoregressively, by diffusion, or "
        "both.",
        version=package_version(),
        lifespan=lifespan,
        # The interactive pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.openapi = openapi_of(app)  # type: ignore[method-assign]
    for router in _ROUTERS:
        app.include_router(router)
    if settings.playground:
        app.include_router(playground_router())
    _add_middleware(app, settings)
    for error in (ApiError, RequestError, EngineStopped, ValidationError, HTTPException):
        app.add_exception_handler(error, _answer_error)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """The last one added is the outermost."""
    app.add_middleware(
        BodyLimits, limit_bytes=settings.max_body_size, timeout_s=settings.body_timeout
    )
    app.add_middleware(Authenticate, keys=settings.all_api_keys())
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "authorization",
                "content-type",
                "x-api-key",
                "x-request-id",
                "traceparent",
                "tracestate",
            ],
            expose_headers=["x-request-id", "traceparent"],
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Observe)


async def _answer_error(request: Request, error: Exception) -> Response:
    # Anthropic's shape has one field more; it holds no path that a header could change.
    is_messages = request.scope["path"].endswith(_MESSAGES_PATHS)
    return error_response(answer_of(error), has_type=is_messages)
